"""Messages of one job travel while another computes; that results stay the same is seen in test_many_devices.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.orthogonal import orthogonalizer
from lit_consistency.optimizers.orthogonal.orthogonalizer import alike, map_blocks
from lit_consistency.optimizers.sharding.exchange import Local, Piece, RowSharded
from lit_consistency.optimizers.sharding.overlap import Arrival, Job, in_turn, result_of


class Told(Local):
    """Sends nothing, and writes down when it would."""

    gathers = True

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def gather(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Arrival[Sequence[Piece]]:
        return self._sent("there", pieces)

    def scatter(
        self, results: Sequence[Piece], pieces: Sequence[Piece], rows: Sequence[int], like: Sequence[int]
    ) -> Arrival[Sequence[Piece]]:
        return self._sent("back", results)

    def _sent(self, way: str, pieces: Sequence[Piece]) -> Arrival[Sequence[Piece]]:
        self.events.append(f"send {way} {self.name}")

        def wait() -> Sequence[Piece]:
            self.events.append(f"wait {way} {self.name}")
            return pieces

        return wait


def test_messages_of_the_next_job_leave_before_the_last_one_computes() -> None:
    events: list[str] = []

    def job(name: str) -> Job[None]:
        def doubled(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
            events.append(f"compute {name}")
            return [stacks[0] * 2]

        exchange = Told(name, events)
        ((result,),) = yield from map_blocks(
            exchange, [[torch.ones(2, 3)]], rows=[2], splits=[None], function=doubled, like=[0]
        )
        assert torch.equal(result, torch.full((2, 3), 2.0))
        events.append(f"done {name}")

    in_turn(job(name) for name in "ABC")
    assert events == [
        "send there A",
        *("send there B", "wait there A", "compute A", "send back A"),
        *("send there C", "wait there B", "compute B", "send back B", "wait back A", "done A"),
        *("wait there C", "compute C", "send back C", "wait back B", "done B"),
        *("wait back C", "done C"),
    ]


def test_a_job_that_waits_for_nothing_is_done_before_the_next_one_begins() -> None:
    events: list[str] = []

    def job(name: str) -> Job[str]:
        events.append(f"begin {name}")
        yield from ()
        events.append(f"end {name}")
        return name

    def alone(name: str) -> Job[None]:
        assert (yield from job(name)) == name

    in_turn(alone(name) for name in "AB")
    assert events == ["begin A", "end A", "begin B", "end B"]
    assert result_of(job("C")) == "C"


def test_where_ranks_share_a_job_has_as_many_matrices_for_each_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = torch.zeros(4, 5)
    entries = [Entry(f"w{i}", torch.nn.Parameter(zeros), zeros, zeros, {}) for i in range(9)]
    shared = object.__new__(RowSharded)
    shared.ranks = 4
    monkeypatch.setattr(orthogonalizer, "exchange_of", lambda *_: shared)
    for limit, sizes in ((1, [4, 4, 1]), (40, [8, 1]), (2**26, [9])):
        monkeypatch.setattr(orthogonalizer, "LIMIT", limit)
        assert [len(some) for _, some in alike(entries, True)] == sizes
