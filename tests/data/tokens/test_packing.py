from __future__ import annotations

import numpy as np
import pytest

from lit_consistency.data.tokens.packing import alone, pack, shuffled


def slow_pack(lengths: list[int], block_size: int, order: list[int]) -> list[list[int]]:
    """Best fit by looking at every row; of equally full rows the one that became so last."""
    rows: list[tuple[int, int, list[int]]] = []  # (room, when it got this room, documents)
    for place, document in enumerate(order):
        fitting = [row for row in rows if row[0] >= lengths[document]]
        chosen = min(fitting, key=lambda row: (row[0], -row[1])) if fitting else (block_size, place, [])
        rows = [row for row in rows if row is not chosen]
        rows.append((chosen[0] - lengths[document], place, [*chosen[2], document]))
    return sorted(row[2] for row in rows)


@pytest.mark.parametrize("seed", range(5))
def test_pack_is_best_fit(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 33, size=200)
    plan = pack(lengths, 32, seed)
    longest_first = sorted(shuffled(200, seed, 0).tolist(), key=lambda document: -lengths[document])
    expected = slow_pack(lengths.tolist(), 32, longest_first)
    assert sorted(plan.row(i).tolist() for i in range(plan.n_rows)) == expected


def test_every_document_once_and_no_row_too_long() -> None:
    lengths = np.random.default_rng(0).integers(1, 257, size=5000)
    plan = pack(lengths, 256, seed=1)
    assert sorted(plan.members.tolist()) == list(range(5000))
    assert max(lengths[plan.row(i)].sum() for i in range(plan.n_rows)) <= 256
    assert min(len(plan.row(i)) for i in range(plan.n_rows)) >= 1


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 129, size=20_000)
    plan = pack(lengths, 512, seed=0)
    assert lengths.sum() / (plan.n_rows * 512) > 0.99


def test_pack_is_a_function_of_the_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, size=300)
    first, again, other = (pack(lengths, 64, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.members, again.members)
    assert not np.array_equal(first.members, other.members)


def test_whole_rows_and_nothing_at_all() -> None:
    assert pack(np.array([8, 8, 8]), 8, seed=0).n_rows == 3
    assert pack(np.array([], dtype=np.int64), 8, seed=0).n_rows == 0


def test_alone_is_one_document_a_row() -> None:
    plan = alone(3)
    assert [plan.row(i).tolist() for i in range(plan.n_rows)] == [[0], [1], [2]]


def test_shuffled_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(shuffled(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(50)) for order in orders.values())


def test_shuffled_is_the_same_on_every_machine() -> None:
    assert shuffled(8, 3, 5).tolist() == GOLDEN


GOLDEN = [0, 6, 2, 1, 3, 4, 7, 5]
