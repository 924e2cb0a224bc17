"""Schedules: the factor on every group's learning rate, a pure function of the step and of the length of the run.

Warm-up rises linearly to 1 and its first step already moves: (step + 1) / warmup. After it, progress goes from 0 at
the first step to 1 at the end of the run, which is after the last step: that one still has a learning rate above the
final one.

Source: Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983 (cosine); Hu et al. 2024, MiniCPM, arXiv 2404.06395
(warm-up, stable, decay); Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations, arXiv 2405.18392 (sqrt decay).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

from lit_consistency.optimizers.core.checks import check_choice

DECAY_SHAPES = ("linear", "sqrt", "cosine")


class Schedule(ABC):
    """Factor on the peak learning rate at each step of a run.

    Args:
        warmup: number of warm-up steps (an integer), or their share of the run (a number with a point, below 1).
    """

    def __init__(self, warmup: int | float = 0) -> None:
        _check_length("warmup", warmup)
        self.warmup = warmup

    def factor(self, step: int, total_steps: int) -> float:
        """Factor in [0, 1] on the learning rate.

        Args:
            step: number of steps already taken, so 0 for the first; ``total_steps`` and above give the final factor.
            total_steps: length of the run in optimizer steps.
        """
        warmup = _steps(self.warmup, total_steps)
        return (step + 1) / warmup if step < warmup else self.after_warmup(step, warmup, total_steps)

    @abstractmethod
    def after_warmup(self, step: int, warmup: int, total_steps: int) -> float:
        """Factor at a step that is not before ``warmup``."""

    def check(self, total_steps: int) -> None:
        """See that the schedule fits into the run.

        Raises:
            ValueError: the run has no step, or the warm-up has more steps than the run.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps = {total_steps}: expected total_steps >= 1")
        if _steps(self.warmup, total_steps) > total_steps:
            raise ValueError(f"warmup = {self.warmup}: expected at most {total_steps}, the steps of the run")


class Constant(Schedule):
    """Warm-up, then the peak.

    Args:
        warmup: number of warm-up steps (an integer), or their share of the run (a number with a point, below 1).
    """

    def after_warmup(self, step: int, warmup: int, total_steps: int) -> float:
        """Factor 1."""
        return 1.0


class Linear(Schedule):
    """Warm-up, then a straight line to the final factor.

    Args:
        warmup: number of warm-up steps (an integer), or their share of the run (a number with a point, below 1).
        final: factor at the end of the run, in [0, 1].
    """

    def __init__(self, warmup: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup)
        _check_final(final)
        self.final = final

    def after_warmup(self, step: int, warmup: int, total_steps: int) -> float:
        """1 - (1 - final) * progress."""
        return _fall("linear", _progress(step, warmup, total_steps), self.final)


class Cosine(Schedule):
    """Warm-up, then half a cosine to the final factor.

    Args:
        warmup: number of warm-up steps (an integer), or their share of the run (a number with a point, below 1).
        final: factor at the end of the run, in [0, 1].
    """

    def __init__(self, warmup: int | float = 0, final: float = 0.1) -> None:
        super().__init__(warmup)
        _check_final(final)
        self.final = final

    def after_warmup(self, step: int, warmup: int, total_steps: int) -> float:
        """Final + (1 - final) * (1 + cos(pi * progress)) / 2."""
        return _fall("cosine", _progress(step, warmup, total_steps), self.final)


class WarmupStableDecay(Schedule):
    """Warm-up, then the peak, then a decay over the last part of the run.

    Args:
        warmup: number of warm-up steps (an integer), or their share of the run (a number with a point, below 1).
        decay: number of decay steps, or their share of the run, as for ``warmup``.
        final: factor at the end of the run, in [0, 1].
        shape: fall from 1 to the final factor: ``linear`` 1 - x, ``sqrt`` 1 - sqrt(x), ``cosine`` (1 + cos(pi x)) / 2.
    """

    def __init__(
        self,
        warmup: int | float = 0,
        decay: int | float = 0.2,
        final: float = 0.0,
        shape: Literal["linear", "sqrt", "cosine"] = "sqrt",
    ) -> None:
        super().__init__(warmup)
        _check_length("decay", decay)
        _check_final(final)
        check_choice("shape", shape, DECAY_SHAPES)
        self.decay, self.final, self.shape = decay, final, shape

    def after_warmup(self, step: int, warmup: int, total_steps: int) -> float:
        """1 until the decay begins."""
        start = total_steps - _steps(self.decay, total_steps)
        return 1.0 if step < start else _fall(self.shape, _progress(step, start, total_steps), self.final)

    def check(self, total_steps: int) -> None:
        """As for every schedule, and the decay must fit in as well."""
        super().check(total_steps)
        room = total_steps - _steps(self.warmup, total_steps)
        if _steps(self.decay, total_steps) > room:
            raise ValueError(
                f"decay = {self.decay}: expected at most {room} steps, what warm-up leaves of {total_steps}"
            )


class Branched:
    """The schedule of a branch: it runs over the steps of the branch alone, from the factor at the branch point.

    No ``Schedule``, so that no configuration names it.

    Args:
        schedule: of the branch.
        begin: step at which it begins, of the whole run.
        factor: on its factors, that of the learning rate at the branch point.
    """

    def __init__(self, schedule: Schedule, begin: int, factor: float) -> None:
        self.schedule = schedule
        self.begin = begin
        self.scale = factor

    def factor(self, step: int, total_steps: int) -> float:
        """As of a schedule; a step before the branch has the factor of its first."""
        return self.scale * self.schedule.factor(max(0, step - self.begin), total_steps - self.begin)

    def check(self, total_steps: int) -> None:
        """See that the schedule fits into the branch."""
        self.schedule.check(total_steps - self.begin)


def _steps(length: int | float, total_steps: int) -> int:
    """Length in steps; a share is rounded to the nearest."""
    return length if isinstance(length, int) else round(length * total_steps)


def _progress(step: int, start: int, total_steps: int) -> float:
    """0 at ``start``, 1 at the end and after it, also where nothing lies between."""
    return min(1.0, (step - start) / (total_steps - start)) if step < total_steps else 1.0


def _fall(shape: str, progress: float, final: float) -> float:
    """From 1 at progress 0 to ``final`` at progress 1."""
    if shape == "cosine":
        fallen = (1 - math.cos(math.pi * progress)) / 2
    else:
        fallen = math.sqrt(progress) if shape == "sqrt" else progress
    return 1 - (1 - final) * fallen


def _check_length(name: str, value: int | float) -> None:
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{name} = {value}: expected a number of steps >= 0, or a share below 1")
    elif not 0 <= value < 1:
        raise ValueError(f"{name} = {value}: expected a share with 0 <= {name} < 1, or an integer number of steps")


def _check_final(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"final = {value}: expected 0 <= final <= 1")
