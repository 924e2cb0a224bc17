from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_consistency.optimizers import Constant, Cosine, Linear, Schedule, WarmupStableDecay

ALL = [Constant, Linear, Cosine, WarmupStableDecay]


def factors(schedule: Schedule, total_steps: int) -> list[float]:
    schedule.check(total_steps)
    return [schedule.factor(step, total_steps) for step in range(total_steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Constant(warmup=2), [0.5, 1, 1, 1]),
        (Linear(), [1, 0.75, 0.5, 0.25]),
        (Linear(warmup=2, final=0.5), [0.5, 1, 1, 0.75]),
        (Cosine(final=0), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (Cosine(warmup=2, final=0.2), [0.5, 1, 1, 0.6]),
        (WarmupStableDecay(warmup=1, decay=2, shape="linear"), [1, 1, 1, 0.5]),
        (
            WarmupStableDecay(decay=4, shape="sqrt", final=0.5),
            [1, 0.75, 1 - math.sqrt(0.5) / 2, 1 - math.sqrt(0.75) / 2],
        ),
        (WarmupStableDecay(decay=2, shape="cosine"), [1, 1, 1, 0.5]),
    ],
)
def test_factors_of_a_run_of_four_steps(schedule: Schedule, expected: list[float]) -> None:
    assert factors(schedule, 4) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", ALL)
def test_a_share_is_the_same_as_its_steps(kind: Any) -> None:
    assert factors(kind(warmup=0.1), 50) == factors(kind(warmup=5), 50)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("warmup", "total_steps"), [(0, 1), (1, 1), (4, 4), (0.0, 3), (0.99, 7)])
def test_edges_divide_nothing_by_zero(kind: Any, warmup: float, total_steps: int) -> None:
    schedule = kind(warmup=warmup, decay=0) if kind is WarmupStableDecay else kind(warmup=warmup)
    found = [schedule.factor(step, total_steps) for step in range(total_steps + 2)]
    assert all(0 <= factor <= 1 for factor in found)
    # every step of the run moves
    assert all(factor > 0 for factor in found[:total_steps])


@pytest.mark.parametrize(
    ("schedule", "final"),
    [(Linear(final=0.3), 0.3), (Cosine(final=0.3), 0.3), (WarmupStableDecay(final=0.3), 0.3), (Constant(), 1.0)],
)
def test_after_the_run_the_factor_is_the_final_one(schedule: Schedule, final: float) -> None:
    assert schedule.factor(10, 10) == pytest.approx(final)
    assert schedule.factor(25, 10) == pytest.approx(final)


@pytest.mark.parametrize("kind", ALL)
def test_it_never_rises_after_warmup(kind: Any) -> None:
    found = factors(kind(warmup=7), 40)
    assert found[:7] == pytest.approx([(i + 1) / 7 for i in range(7)])
    assert all(a >= b for a, b in zip(found[6:], found[7:], strict=False))


@pytest.mark.parametrize(
    ("schedule", "total_steps", "message"),
    [
        (Constant(warmup=5), 4, "warmup = 5: expected at most 4, the steps of the run"),
        (Linear(), 0, "total_steps = 0: expected total_steps >= 1"),
        (WarmupStableDecay(warmup=3, decay=0.5), 4, "decay = 0.5: expected at most 1 steps, what warm-up leaves of 4"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(schedule: Schedule, total_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.check(total_steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": -1}, "warmup = -1: expected a number of steps >= 0"),
        ({"warmup": 1.0}, "warmup = 1.0: expected a share with 0 <= warmup < 1, or an integer"),
        ({"warmup": float("nan")}, "warmup = nan"),
        ({"decay": -0.1}, "decay = -0.1: expected a share"),
        ({"final": 1.5}, "final = 1.5: expected 0 <= final <= 1"),
        ({"shape": "step"}, "shape = 'step': expected one of linear, sqrt, cosine"),
    ],
)
def test_errors_name_option_value_and_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupStableDecay(**options)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("warmup", [3, 0.25])
def test_jsonargparse_builds_it_and_keeps_steps_apart_from_shares(kind: Any, warmup: float) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule)
    path = f"lit_consistency.optimizers.{kind.__name__}"
    parsed = parser.parse_args([f"--schedule={path}", f"--schedule.warmup={warmup}"])
    schedule = parser.instantiate_classes(parsed).schedule
    assert type(schedule) is kind
    assert (schedule.warmup, type(schedule.warmup)) == (warmup, type(warmup))


def test_lambda_lr_follows_it() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = Linear(warmup=1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, 4))
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([2 * factor for factor in factors(schedule, 4)])
