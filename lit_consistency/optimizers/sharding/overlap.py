"""Work in steps, between which its messages travel: while those of one job are under way, others compute.

A job is a generator that yields where it would wait for a message, and returns its result. Jobs must be the same in the
same order on every rank: so are their messages then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")
Job = Generator[None, None, Result]
# Waits for messages that are under way, and gives what they brought; called once.
Arrival = Callable[[], Result]
# From stacked inputs, (batch, rows, columns) each, to stacked outputs that may be under way.
StartedFunction = Callable[[list[Tensor]], Arrival[Sequence[Tensor]]]


def arrived(result: Result) -> Arrival[Result]:
    """What is there already."""
    return lambda: result


def in_turn(jobs: Iterable[Job[None]]) -> None:
    """Do all jobs, the messages of a later one sent before an earlier one computes.

    In one turn a job is begun, and those under way go one step further, the youngest first: what the first step of a
    job sends travels while the one before it computes. A job that waits for nothing is done at once. No more jobs are
    under way than one has steps.

    Args:
        jobs: made one by one, as they are begun.
    """
    under_way: list[Job[None]] = []
    for job in jobs:
        under_way = [one for one in (job, *under_way) if _goes_on(one)]
    while under_way:
        under_way = [one for one in under_way if _goes_on(one)]


def _goes_on(job: Job[None]) -> bool:
    try:
        next(job)
    except StopIteration:
        return False
    return True


def result_of(job: Job[Result]) -> Result:
    """The result of one job, done without a break."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: Result = end.value
            return result
