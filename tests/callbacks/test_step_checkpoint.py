from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.callbacks import StepCheckpoint
from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints, verify
from tests.runs import finished, fit


def test_the_newest_are_kept_and_all_of_them_verify(tmp_path: Path) -> None:
    fit(tmp_path, "--checkpoint.every_n_steps=1", "--checkpoint.keep=3", "--trainer.max_steps=6")
    found = checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == [f"step-{step:08d}.ckpt" for step in (4, 5, 6)]
    for path in found:
        verify(path)
    assert len(list(found[0].parent.iterdir())) == 2 * 3, "a file and its manifest, nothing else"


def test_a_failing_removal_never_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(AtomicCheckpointIO, "remove_checkpoint", refuse)
    with pytest.warns(UserWarning, match="could not remove the old checkpoint .*not yours"):
        cli = fit(tmp_path, "--checkpoint.every_n_steps=1")
    assert cli.trainer.global_step == 4
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 4


def test_one_checkpoint_alone_is_too_few() -> None:
    with pytest.raises(ValueError, match="^keep = 1: expected at least 2"):
        StepCheckpoint(keep=1)


def test_at_end_and_never(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    assert [path.name for path in checkpoints(tmp_path / "a" / "run" / "checkpoints")] == ["step-00000004.ckpt"]
    fit(tmp_path / "b", "--checkpoint.at_end=false")
    assert not (tmp_path / "b" / "run" / "checkpoints").exists()


def test_steps_are_counted_not_micro_batches(tmp_path: Path) -> None:
    """Two micro-batches a step: one checkpoint at step 2, none between."""
    fit(tmp_path, "--checkpoint.every_n_steps=2", "--checkpoint.at_end=false", "--trainer.max_steps=3")
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002.ckpt"]


@pytest.mark.parametrize(("option", "value"), [("every_n_steps", -1), ("keep", 1)])
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option} = {value}"):
        StepCheckpoint(**{option: value})
