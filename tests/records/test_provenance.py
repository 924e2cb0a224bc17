from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_consistency.records.provenance import Provenance, current_versions, family, read_provenance
from tests.model.tiny_models import tiny_provenance


def test_it_is_read_back_as_written(tmp_path: Path) -> None:
    written = tiny_provenance(run="böse ünïcode", tokens=10**12, steps=3, seed=0, command="fit --config a.yaml")
    written.write(tmp_path)
    assert read_provenance(tmp_path) == written


def test_a_folder_without_it_gives_none(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None


def test_history_grows_by_one_entry_per_stage(tmp_path: Path) -> None:
    first = tiny_provenance(optimizer="Muon", tokens=100)
    fields = {"model": "pythia-14m", "method": "lora", "stage": "sft"}
    second = first.next_stage(**fields, optimizer="AdamW", base="checkpoints/a", base_hash="ab")
    third = second.next_stage(**fields, optimizer="SGD", base="checkpoints/b", base_hash="cd")
    third.write(tmp_path)
    read = read_provenance(tmp_path)
    assert [len(stage.history) for stage in (first, second, read)] == [0, 1, 2]
    assert [stage["optimizer"] for stage in read.stages] == ["Muon", "AdamW", "SGD"]
    assert read.history[0]["tokens"] == 100
    assert read.pretraining_optimizer == "Muon"
    assert read.optimizer == "SGD"


def test_a_base_of_unknown_past_has_no_known_pretraining_optimizer() -> None:
    finetuned = tiny_provenance(stage="sft", base="checkpoints/EleutherAI/pythia-14m")
    again = finetuned.next_stage(model="pythia-14m", optimizer="Muon", method="full", stage="sft", base="checkpoints/a")
    assert finetuned.pretraining_optimizer is None
    assert again.pretraining_optimizer is None


def test_keys_of_a_newer_version_are_skipped(tmp_path: Path) -> None:
    tiny_provenance(seed=7).write(tmp_path)
    with open(tmp_path / "provenance.yaml", "a") as file:
        file.write("energy: {kWh: 3}\n")
    assert read_provenance(tmp_path) == tiny_provenance(seed=7)


def test_only_plain_types_are_written(tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError):
        tiny_provenance(tokens=np.int64(3)).write(tmp_path)
    with pytest.raises(yaml.YAMLError):
        tiny_provenance(base=tmp_path).write(tmp_path)
    assert not (tmp_path / "provenance.yaml").exists()


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "model: m\noptimizer: o\nstage: s\n", "a: [", "!!python/object:os.x {}"]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "provenance.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"provenance.yaml: expected"):
        read_provenance(tmp_path)


def test_versions_name_what_computes() -> None:
    assert current_versions().keys() == {"lit_consistency", "torch", "lightning", "litgpt"}
    assert Provenance("m", "o", "full", "sft").versions == current_versions()


def test_optimizers_of_one_family_apply_one_update() -> None:
    assert family("MoFO") == family("AdamW") == "AdamW"
    assert family("FilteredMuon") == family("Muon") == "Muon"
    assert len({family(name) for name in ("AdamW", "Muon", "SGD", "Lion", "Shampoo")}) == 5
