"""The run's folder, read as it was written."""

from __future__ import annotations

import math
from pathlib import Path

from lit_consistency.records.run_folder import RunFolder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    assert folder.is_empty
    assert (folder.read_config(), folder.read_record(), folder.read_metrics()) == ({}, {}, [])
    folder.write_config("trainer: {max_steps: 4, max_epochs: null}\n")
    folder.write_record({"status": "running", "base": Path("a/b"), "loss": math.nan})
    assert folder.read_record() == {"status": "running", "base": "a/b", "loss": None}
    assert not folder.is_empty
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "run.json"]
    assert folder.has_length({"max_steps": 4, "max_epochs": None, "devices": 2})
    assert not folder.has_length({"max_steps": 5, "max_epochs": None})


def test_a_run_has_finished_when_its_record_says_so_and_its_model_stands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for status in ("running", "interrupted", "failed"):
        folder.write_record({"status": status})
        assert not folder.is_finished
    folder.write_record({"status": "finished"})
    assert folder.is_finished
    assert not folder.has_model
    folder.model.mkdir()
    assert folder.has_model


def test_a_checkpoint_leads_to_its_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    owner = RunFolder.of_checkpoint(folder.checkpoints / "step-00000003.ckpt")
    assert owner is not None
    assert owner.path == folder.path
    assert RunFolder.of_checkpoint(tmp_path / "elsewhere" / "step-00000003.ckpt") is None
