"""Events of a run that went back to an earlier checkpoint, read as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_consistency.loggers.tensorboard import TensorBoardRunLogger


def log(root: Path, steps: range, value: float, resumed_at: int | None = None) -> None:
    """One process of a run."""
    logger = TensorBoardRunLogger(str(root), name="run", version="", default_hp_metric=False)
    if resumed_at is not None:
        logger.keep_until(resumed_at)
    logger.begin()
    for step in steps:
        logger.log_metrics({"train/loss": value}, step)
    logger.finalize("success")


def shown(root: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(root / "run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("resumed_at", [2, -1])
def test_later_steps_are_shown_once_after_a_step_back(resumed_at: int, tmp_path: Path) -> None:
    log(tmp_path, range(1, 7), value=5.0)
    log(tmp_path, range(resumed_at + 1, 5), value=4.0, resumed_at=resumed_at)
    before = [(step, 5.0) for step in range(1, resumed_at + 1)]
    assert shown(tmp_path) == before + [(step, 4.0) for step in range(resumed_at + 1, 5)]


def test_nothing_is_written_before_the_beginning(tmp_path: Path) -> None:
    logger = TensorBoardRunLogger(str(tmp_path), name="run", version="")
    assert logger.experiment is None
    logger.keep_until(-1)
    logger.save()
    assert not list(tmp_path.iterdir())
