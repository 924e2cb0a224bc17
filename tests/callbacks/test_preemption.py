from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_consistency.__main__ import main
from lit_consistency.callbacks import Preemption
from lit_consistency.checkpointing.io import checkpoints, verify
from lit_consistency.cli.fit import ConsistencyCLI
from tests.runs import SCRATCH, arguments


class Kill(Callback):
    """Send signals to this process in a hook of step 2."""

    def __init__(self, hook: str, *numbers: int) -> None:
        self.numbers = list(numbers)
        setattr(self, hook, self.send)

    def send(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            while self.numbers:
                os.kill(os.getpid(), self.numbers.pop(0))


@pytest.mark.parametrize(
    ("hook", "number", "status"),
    [
        ("on_train_batch_start", signal.SIGTERM, 143),
        ("on_before_backward", signal.SIGINT, 130),
        ("on_before_optimizer_step", signal.SIGTERM, 143),
    ],
)
def test_a_signal_at_any_moment_of_a_step_saves_and_exits_with_its_status(
    hook: str, number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ConsistencyCLI.execute

    def execute(cli: ConsistencyCLI) -> None:
        cli.trainer.callbacks.insert(0, Kill(hook, number))
        plain(cli)

    monkeypatch.setattr(ConsistencyCLI, "execute", execute)
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, *SCRATCH))
    assert stop.value.code == status
    (path,) = checkpoints(tmp_path / "run" / "checkpoints")
    verify(path)
    assert path.name == "step-00000003.ckpt", "the step in progress is finished"
    assert '"status": "interrupted"' in (tmp_path / "run" / "run.json").read_text()


def test_a_second_interrupt_stops_at_once() -> None:
    preemption = Preemption()
    preemption._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        preemption._note(signal.SIGINT, None)


def test_the_handlers_are_given_back(tmp_path: Path) -> None:
    from tests.runs import fit

    before = signal.getsignal(signal.SIGTERM)
    fit(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
