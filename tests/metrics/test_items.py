from __future__ import annotations

import torch

from lit_consistency.metrics import ItemScores


def scores(n: int) -> ItemScores:
    """So many questions with two candidates each, the second one right."""
    candidates = torch.arange(2 * n)
    return ItemScores(
        candidates.double(), candidates, candidates, candidates, torch.full((n,), 2), torch.ones(n).long()
    )


def test_the_right_candidates_are_found_among_all() -> None:
    assert scores(3).gold_rows.tolist() == [1, 3, 5]


def test_parts_follow_one_another() -> None:
    whole = ItemScores.concatenate([scores(2), scores(1)])
    assert whole.nll.tolist() == [0, 1, 2, 3, 0, 1]
    assert whole.gold_rows.tolist() == [1, 3, 5]
