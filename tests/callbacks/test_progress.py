from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.callbacks import RunProgress
from lit_consistency.cli.fit import build
from tests.runs import SCRATCH, arguments


def test_the_bar_says_the_step_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [a for a in arguments(tmp_path, *SCRATCH) if "enable_progress_bar" not in a]
    cli = build(args)
    assert sum(isinstance(c, RunProgress) for c in cli.trainer.callbacks) == 1
    cli.execute()
    text = " ".join(capsys.readouterr().out.split())
    assert "epoch 1" in text
    assert "step: 4/4" in text
    assert "-2" not in text


def test_another_bar_replaces_it(tmp_path: Path) -> None:
    args = [a for a in arguments(tmp_path, *SCRATCH) if "enable_progress_bar" not in a]
    bar = '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]'
    assert not any(isinstance(c, RunProgress) for c in build([*args, bar]).trainer.callbacks)
