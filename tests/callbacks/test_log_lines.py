"""What a run says without a terminal."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_consistency.callbacks import log_lines
from lit_consistency.callbacks.front_picture import FrontPicture
from lit_consistency.callbacks.log_lines import LogLines, measurement_line, rates_text, step_line
from lit_consistency.callbacks.pace import Pace, time_of_day
from lit_consistency.callbacks.progress import RunProgress, bar_or_lines
from lit_consistency.callbacks.summary_table import Measurement
from lit_consistency.cli.fit import build
from lit_consistency.records.run_folder import RunFolder
from tests.callbacks.test_forgetting import SETS
from tests.runs import SCRATCH, arguments

NOON = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))  # a Monday
MEASURED = [
    Measurement("learn", "new", "exact", 0.01, 0.84, 0.0, 0.002, 0.01, 0.011),
    Measurement("retain", "old", "exact", 1.0, 0.91, 0.0, 0.0, 0.006, 0.007),
    Measurement("retain", "text", "nats_per_token", 0.5, 0.75, 0.0, 0.004, 0.005, 0.003),
]


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def test_the_end_is_foretold_from_the_steps_of_this_process_but_the_first() -> None:
    """Resumed at step 100 of 200: one slow step, then three of 2 seconds, of which one waited for a measurement."""
    clock = Clock()
    pace = Pace(200, clock)
    for step, seconds in ((101, 60.0), (102, 1.0), (103, 4.0), (104, 1.0)):
        clock.now += seconds
        pace.step(step)
        if step == 101:
            assert pace.end is None
    assert pace.end == clock.now + 96 * 2.0
    clock.now += 1.5  # in the midst of a step the end stays, and comes nearer
    assert pace.seconds_left == 96 * 2.0 - 1.5


@pytest.mark.parametrize(("days", "text"), [(0, "12:00"), (1, "Tue 12:00"), (5, "Sat 12:00"), (7, "2026-03-09 12:00")])
def test_an_end_of_another_day_says_which(days: int, text: str) -> None:
    assert time_of_day(NOON + days * 86400, NOON) == text


def test_a_step_says_loss_rates_speed_and_time_left() -> None:
    clock = Clock()
    pace = Pace(500, clock)
    assert step_line(pace, 10, 2.31415, {"lr/hidden": 3e-4, "lr/head": 3e-4}, None) == (
        "step 10/500: loss 2.314, rate 3.00e-04"
    )
    pace.step(10)
    clock.now += 40.0
    pace.step(20)
    assert step_line(pace, 20, 2.0, {"lr/hidden": 3e-4}, 12345.6) == (
        "step 20/500: loss 2, rate 3.00e-04, 12,346 tokens/s, 32 min left, ends 12:32"
    )
    assert rates_text({"lr/hidden": 0.02, "lr/head": 3e-4, "lr/norm": 3e-4}) == "3.00e-04, hidden 2.00e-02"


def test_a_measurement_has_the_signs_and_units_of_the_table() -> None:
    """Of what is learned positive is better, of what is retained it is worse, in units of the metric."""
    numbers = {"kl_to_base": 1.25, "kl_to_base_retained": 0.5}
    assert measurement_line(200, 500, MEASURED, numbers) == (
        "step 200/500: learned new exact 0.8400 (+0.8300±.011); forgotten old exact 0.9100 (+0.0900±.007), "
        "text nats_per_token 0.7500 (+0.2500±.003); KL to the base 1.25 nats on what is learned, "
        "0.5 nats on what is retained"
    )
    base = [m._replace(now=m.base) for m in MEASURED]
    assert measurement_line(0, 500, base, {}) == (
        "step 0/500, the base: new exact 0.0100±.002; old exact 1.0000±.000, text nats_per_token 0.5000±.004"
    )


def test_lines_of_steps_grow_rarer_and_measurements_are_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(), []
    lines = LogLines(said.append, clock)
    module = SimpleNamespace(step_loss=1.0, used_rates={}, total_steps=lambda: 40000)
    monkeypatch.setattr("lit_consistency.callbacks.log_lines.language_model", lambda module: module)
    trainer = SimpleNamespace(accumulate_grad_batches=2, log_every_n_steps=10, global_step=0, callbacks=[])
    lines.on_train_start(trainer, module)  # type: ignore[arg-type]
    for batch in range(2 * 36000):  # ten hours of a second a step
        if batch % 2:
            clock.now += 1.0
            trainer.global_step += 1
        lines.on_train_batch_end(trainer, module, None, None, batch)  # type: ignore[arg-type]
    steps = [int(line.split()[1].split("/")[0]) for line in said]
    assert steps[:4] == [10, 20, 30, 40]
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60
    said.clear()
    lines.on_measurement(trainer, module, MEASURED, {})  # type: ignore[arg-type]
    lines.on_measurement(trainer, module, MEASURED, {})  # type: ignore[arg-type]
    assert len(said) == 2
    lines.disable()  # as Lightning does on the other ranks
    lines.on_measurement(trainer, module, MEASURED, {})  # type: ignore[arg-type]
    assert len(said) == 2


@pytest.mark.parametrize(
    ("tty", "term", "kind"), [(True, "xterm", RunProgress), (True, "dumb", LogLines), (False, "xterm", LogLines)]
)
def test_a_bar_only_where_it_can_be_redrawn(tty: bool, term: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where FORCE_COLOR makes rich take a file for a terminal."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich._console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    assert type(bar_or_lines()) is kind


def test_a_run_into_a_file_says_its_steps_and_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches a step, and a second part that goes on from step 4 to 6."""
    monkeypatch.setattr(log_lines, "AT_MOST_EVERY", 3600.0)  # on a machine of any speed
    options = [o for o in arguments(tmp_path, *SCRATCH, *SETS) if "progress_bar" not in o]
    options += ["--forgetting.every_n_steps=2", "--checkpoint.every_n_steps=4"]
    build(options).execute()
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    with pytest.warns(UserWarning, match="made with another configuration"):
        build([*options, "--trainer.max_steps=6", "--allow_changes=true", f"--ckpt_path={checkpoint}"]).execute()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    parts = ["step 0/4, the base", "step 1/4", "step 2/4", "step 4/4", "step 4/4", "step 5/6", "step 6/6", "step 6/6"]
    assert [line.partition(": ")[0] for line in said] == parts
    logged = RunFolder(tmp_path / "run").read_metrics()
    losses = {line["step"]: f"{line['train/loss']:.4g}" for line in logged if "train/loss" in line}
    steps = [re.match(r"step (\d+)/\d: loss ([^,]*), rate \d", line) for line in said]
    assert [(int(m[1]), m[2]) for m in steps if m] == [(step, losses[step]) for step in (1, 4, 5, 6)]
    change = next(line["forget/old"] for line in logged if line["step"] == 6 and "forget/old" in line)
    assert f"({change:+.4f}±" in said[-1].partition("forgotten old")[2]


def test_nothing_is_said_with_the_bar_switched_off(tmp_path: Path) -> None:
    kinds: list[Any] = [type(c) for c in build(arguments(tmp_path, *SCRATCH)).trainer.callbacks]
    assert not {LogLines, RunProgress, FrontPicture} & set(kinds)
