from __future__ import annotations

import time

import pytest
import torch

from lit_consistency.callbacks.clock import Clock


def test_laps_of_a_part_add_up_and_evaluations_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 8.0, 9.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))
    clock.lap("data")
    clock.lap("forward")
    clock.lap("optimizer", evaluation=4.0)
    clock.lap("data")
    assert clock.seconds() == {"data": 2.0, "forward": 2.0, "optimizer": 1.0, "evaluation": 4.0}


def test_a_reset_forgets_the_laps_and_the_time_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 100.0, 101.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))
    clock.lap("data")
    clock.reset()
    clock.lap("data")
    assert clock.seconds() == {"data": 1.5, "evaluation": 0.0}
