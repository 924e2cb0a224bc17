from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from lit_consistency.callbacks import RunRecord
from lit_consistency.cli.fit import build
from lit_consistency.evaluation.compare import compare_folders
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import SCRATCH, WORLD, arguments, finished, fit


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from scratch with AdamW."""
    return finished(tmp_path_factory.mktemp("base"))


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_the_folder_holds_what_was_run_and_what_came_out(base: Path) -> None:
    names = {path.name for path in base.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "model"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    content = record(base)
    assert content["status"] == "finished"
    assert content["optimizer"] == "AdamW"
    assert content["optimizer_choices"] == {}
    assert content["base"] is None
    assert content["steps"] == 4
    assert sum(row["parameters"] for row in content["parameters"]) == 15_600
    assert content["data"]["train"]["source"]["world"] == "MarkovChains"
    assert {"torch", "litgpt", "lightning"} <= set(content["versions"])
    assert content["final_metrics"]["distance/all"] > 0


def test_the_record_says_what_the_optimizer_chose(tmp_path: Path) -> None:
    finished(tmp_path, optimizer="muon")
    rows = record(tmp_path / "run")["optimizer_choices"]["newton_schulz"]
    assert {"device": "cpu", "shape": [16, 16], "form": "direct", "dtype": "float32"} in rows


def test_the_config_is_complete(base: Path) -> None:
    config = yaml.safe_load((base / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["eps"] == 1e-8
    assert config["trainer"]["use_distributed_sampler"] is False
    assert config["checkpoint"] == {
        "every_n_steps": 0,
        "every_n_minutes": 15.0,
        "keep": 2,
        "at_end": True,
        "series": None,
        "best": None,
    }


def test_provenance_leads_back_to_the_pretraining_optimizer(base: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was pretrained with.*", category=UserWarning)
        fit(tmp_path / "one", base=base / "model", optimizer="mofo")  # of AdamW's family
    with pytest.warns(UserWarning, match="was pretrained with AdamW and is now trained with Muon, of another family"):
        fit(tmp_path / "two", base=tmp_path / "one" / "run" / "model", optimizer="muon")
    provenance = read_provenance(tmp_path / "two" / "run" / "model")
    assert provenance is not None
    assert [stage["optimizer"] for stage in provenance.stages] == ["AdamW", "MoFO", "Muon"]
    assert provenance.pretraining_optimizer == "AdamW"
    assert provenance.tokens > 0
    assert record(tmp_path / "two" / "run")["optimizer_mismatch"] is True
    assert record(tmp_path / "one" / "run")["optimizer_mismatch"] is False
    assert provenance.base_hash == record(tmp_path / "two" / "run")["base_hash"]


def test_provenance_tells_the_bases_of_a_sweep_apart(tmp_path: Path) -> None:
    schedule = "lit_consistency.optimizers.Cosine"
    for rate in (0.25, 0.5):
        fit(tmp_path / f"{rate}", f"--model.optimizer.init_args.lr={rate}", f"--model.schedule={schedule}")
    stages = [read_provenance(tmp_path / f"{rate}" / "run" / "model") for rate in (0.25, 0.5)]
    assert [stage.optimizer_options["lr"] for stage in stages if stage] == [0.25, 0.5]
    for stage in stages:
        assert stage is not None
        assert stage.optimizer_options["eps"] == 1e-8
        assert stage.schedule is not None
        assert stage.schedule["class_path"] == schedule
        assert stage.final_metrics["distance/all"] > 0
        assert stage.final_metrics["train/loss"] > 0
    assert stages[0].final_metrics != stages[1].final_metrics  # type: ignore[union-attr]


def test_numbers_of_steps_that_were_left_are_shown_no_more(tmp_path: Path) -> None:
    """After going on from an earlier checkpoint every step stands once, in metrics.jsonl and in TensorBoard."""
    steps = ["--trainer.max_steps=6", "--checkpoint.every_n_steps=2", "--checkpoint.keep=3"]
    fit(tmp_path, *steps)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002.ckpt"
    build(arguments(tmp_path, *SCRATCH, *steps, f"--ckpt_path={checkpoint}")).execute()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    lines = [line["step"] for line in RunFolder(tmp_path / "run").read_metrics() if "train/loss" in line]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_hparams_are_what_distinguishes_a_run(base: Path) -> None:
    events = EventAccumulator(str(base))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "final/distance/all", "distance/all"} <= tags
    assert events.Scalars("final/distance/all")[-1].value > 0
    # one experiment would hide the metrics of all runs that declare others
    assert "_hparams_/experiment" not in events.summary_metadata
    declared = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = parse_session_start_info_plugin_data(declared)
    given = {key: value.string_value or value.number_value for key, value in start.hparams.items()}
    expected = {
        "lr": 3e-4,
        "weight_decay": 0.0,
        "schedule": "Constant",
        "batch": 8,
        "steps": 4,
        "base": "none",
        "seed": 0,
    }
    expected |= {"optimizer": "AdamW", "method": "full", "model": "pythia-14m", "data": "WorldText"}
    assert given.items() >= expected.items()
    assert "rank" not in given


def test_another_place_for_the_final_model(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bases" / "mine"
    fit(tmp_path, f"--run.final_dir={folder}")
    assert (folder / "lit_model.pth").is_file()
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(ValueError, match=r"final_dir = .*mine: exists"):
        fit(tmp_path / "again", f"--run.final_dir={folder}")
    assert not (tmp_path / "again").exists()
    fit(tmp_path / "again", f"--run.final_dir={folder}", "--run.overwrite=true")


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".hidden", "x" * 101, "a\0b"])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name = "):
        RunRecord(name=name)


def test_runs_without_a_name_get_a_time_stamp_each_of_its_own() -> None:
    names = {RunRecord().name for _ in range(20)}
    assert all(re.fullmatch(r"20\d{6}-\d{6}-[0-9a-f]{4}", name) for name in names)
    assert len(names) > 15


def test_items_of_the_first_and_the_last_measurement_are_kept(tmp_path: Path) -> None:
    source = "lit_consistency.data.worlds.WorldText"
    fit(
        tmp_path,
        f"--data.init_args.validation={source}",
        f"--data.init_args.validation.init_args.world={WORLD}",
    )
    folder = RunFolder(tmp_path / "run")
    final = folder.read_record()["final_metrics"]
    (comparison,), _ = compare_folders(folder.first_measured, folder.last_measured)
    assert comparison.task == "validation"
    assert comparison.second == pytest.approx(final["learn/validation"], rel=1e-9)
    assert comparison.first == pytest.approx(folder.read_record()["base_metrics"]["learn/validation"], rel=1e-9)
    assert comparison.difference.stderr > 0
