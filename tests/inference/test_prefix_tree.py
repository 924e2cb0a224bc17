from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_consistency.inference.prefix_tree import PrefixTree, Query, prefix_trees
from lit_consistency.inference.score import tree_mask

FREE = 1e12  # attention costs nothing, so that all that begins alike shares a row


def query(tokens: list[int], scored: int) -> Query:
    ids = np.array(tokens)
    return Query(ids[:-1], np.where(np.arange(len(ids)) >= len(ids) - scored, ids, -100)[1:])


def unfolded(row: PrefixTree) -> list[tuple[tuple[int, ...], int]]:
    """Every question as the tokens that its node sees, by the mask, and the token it asks for."""
    mask = tree_mask(torch.from_numpy(row.ends)[None])[0, 0].numpy()
    return [(tuple(row.tokens[mask[node]]), int(target)) for node, target in zip(row.nodes, row.targets, strict=True)]


def asked(queries: list[Query]) -> set[tuple[tuple[int, ...], int]]:
    return {(tuple(q.fed[: i + 1]), int(t)) for q in queries for i, t in enumerate(q.targets) if t >= 0}


QUERIES = [
    query([1, 2, 3, 4, 5], 2),
    query([1, 2, 3, 4, 6], 2),
    query([1, 2, 3, 9, 5, 7], 3),
    query([1, 2, 3, 4, 5], 2),
    query([1, 2], 1),
    query([8, 2, 3], 2),
]


def test_every_node_sees_its_own_beginning_only() -> None:
    found = prefix_trees(QUERIES, 100, FREE)
    assert [sorted(row.tokens.tolist()) for row in found] == [[1, 2, 3, 4, 5, 9], [2, 8]]
    assert {question for row in found for question in unfolded(row)} == asked(QUERIES)
    assert [row.is_chain for row in found] == [False, True]
    assert all((row.positions == [len(seen) - 1 for seen in _depths(row)]).all() for row in found)


def _depths(row: PrefixTree) -> list[np.ndarray]:
    mask = tree_mask(torch.from_numpy(row.ends)[None])[0, 0].numpy()
    return [row.tokens[seen] for seen in mask]


def test_equal_questions_are_one() -> None:
    first = prefix_trees(QUERIES, 100, FREE)[0]
    assert len(first.nodes) == len(asked(QUERIES[:5]))
    members = {i: sorted(first.questions[first.members == i]) for i in range(5)}
    assert members[0] == members[3]
    assert len(members[2]) == 3


def test_without_a_mask_only_continuations_share_a_row() -> None:
    found = prefix_trees(QUERIES, 100, 0)
    assert all(row.is_chain for row in found)
    assert {question for row in found for question in unfolded(row)} == asked(QUERIES)
    # [1], [1, 2, 3, 4] with both its answers, [1, 2, 3, 9, 5] and [8, 2]: the first is where the second begins
    assert sorted(len(row.tokens) for row in found) == [2, 4, 5]


def test_what_nobody_asks_about_is_not_fed() -> None:
    tail = Query(np.array([1, 2, 3, 4]), np.array([-100, 7, -100, -100]))
    nothing = Query(np.array([5, 6]), np.array([-100, -100]))
    found = prefix_trees([tail, nothing, Query(np.array([], dtype=int), np.array([], dtype=int))], 100, FREE)
    assert [row.tokens.tolist() for row in found] == [[1, 2]]


@pytest.mark.parametrize("budget", [4, 12])
def test_a_row_of_several_paths_keeps_the_budget(budget: int) -> None:
    rng = np.random.default_rng(0)
    queries = [query([1, 2, *rng.integers(3, 6, 5)], 1) for _ in range(40)]
    found = prefix_trees(queries, budget, FREE)
    assert all(len(row.tokens) <= max(budget, 6) for row in found)
    assert sum(len(set(row.members)) for row in found) == 40


def test_attention_that_is_dear_keeps_rows_short() -> None:
    rng = np.random.default_rng(0)
    queries = [query([*range(100, 130), *rng.integers(0, 90, 10)], 1) for _ in range(30)]
    cheap, dear = (prefix_trees(queries, 10_000, cost) for cost in (FREE, 50.0))
    assert len(cheap) == 1
    assert 1 < len(dear) < 30
    costs = [sum(n * (1 + n / 50) for n in lengths) for lengths in ([len(r.tokens) for r in dear], [39] * 30)]
    assert costs[0] < costs[1]


def test_texts_that_share_nothing_stay_apart() -> None:
    queries = [query([i, *range(20)], 5) for i in range(100, 110)]
    assert len(prefix_trees(queries, 10_000, FREE)) == 10
