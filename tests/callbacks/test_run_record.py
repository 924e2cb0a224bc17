from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_consistency.callbacks import RunRecord
from lit_consistency.records.provenance import read_provenance
from tests.runs import fit


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from scratch with AdamW."""
    root = tmp_path_factory.mktemp("base")
    fit(root)
    return root / "run"


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_the_folder_holds_what_was_run_and_what_came_out(base: Path) -> None:
    names = {path.name for path in base.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "model"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    found = record(base)
    assert found["status"] == "finished"
    assert found["optimizer"] == "AdamW"
    assert found["optimizer_choices"] == {}
    assert found["base"] is None
    assert found["steps"] == 4
    assert sum(row["parameters"] for row in found["parameters"]) == 15_600
    assert found["data"]["train"]["source"]["world"] == "MarkovChains"
    assert {"torch", "litgpt", "lightning"} <= set(found["versions"])
    assert found["final_metrics"]["distance/all"] > 0


def test_the_record_says_what_the_optimizer_chose(tmp_path: Path) -> None:
    fit(tmp_path, optimizer="muon")
    rows = record(tmp_path / "run")["optimizer_choices"]["newton_schulz"]
    assert {"device": "cpu", "shape": [16, 16], "form": "direct", "dtype": "float32"} in rows


def test_the_config_is_complete(base: Path) -> None:
    config = yaml.safe_load((base / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["eps"] == 1e-8
    assert config["trainer"]["use_distributed_sampler"] is False
    assert config["checkpoint"] == {"every_n_steps": 0, "keep": 2, "at_end": False}


def test_provenance_leads_back_to_the_pretraining_optimizer(base: Path, tmp_path: Path) -> None:
    fit(tmp_path / "one", base=base / "model")
    with pytest.warns(UserWarning, match="was pretrained with AdamW and is now trained with Muon"):
        fit(tmp_path / "two", base=tmp_path / "one" / "run" / "model", optimizer="muon")
    found = read_provenance(tmp_path / "two" / "run" / "model")
    assert found is not None
    assert [stage["optimizer"] for stage in found.stages] == ["AdamW", "AdamW", "Muon"]
    assert found.pretraining_optimizer == "AdamW"
    assert found.tokens > 0
    assert record(tmp_path / "two" / "run")["optimizer_mismatch"] is True
    assert record(tmp_path / "one" / "run")["optimizer_mismatch"] is False
    assert found.base_hash == record(tmp_path / "two" / "run")["base_hash"]


def test_the_same_optimizer_is_no_reason_to_warn(base: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, base=base / "model")


def test_hparams_show_the_final_metrics(base: Path) -> None:
    events = EventAccumulator(str(base))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "final/distance/all", "distance/all"} <= tags
    assert events.Scalars("final/distance/all")[-1].value > 0
    assert "_hparams_/session_start_info" in events.summary_metadata
    declared = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    assert b"final/distance/all" in declared


def test_another_place_for_the_final_model(base: Path, tmp_path: Path) -> None:
    place = tmp_path / "bases" / "mine"
    fit(tmp_path, f"--run.final_dir={place}")
    assert (place / "lit_model.pth").is_file()
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(ValueError, match=r"final_dir = .*mine: exists"):
        fit(tmp_path / "again", f"--run.final_dir={place}")
    assert not (tmp_path / "again").exists()
    fit(tmp_path / "again", f"--run.final_dir={place}", "--run.overwrite=true")


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".hidden", "x" * 101, "a\0b"])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name = "):
        RunRecord(name=name)


def test_runs_without_a_name_get_a_time_stamp_each_of_its_own() -> None:
    names = {RunRecord().name for _ in range(20)}
    assert all(re.fullmatch(r"20\d{6}-\d{6}-[0-9a-f]{4}", name) for name in names)
    assert len(names) > 15
