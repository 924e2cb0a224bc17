from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.selection import kth_largest, select_largest
from tests.reference.optimizers import largest_by_sort


@pytest.mark.parametrize("k", [0, 1, 7, 29, 30])
def test_it_is_the_head_of_a_stable_sort(k: int) -> None:
    scores = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select_largest(scores, k), largest_by_sort(scores, k))


@pytest.mark.parametrize("k", [1, 4, 9, 17, 30])
def test_of_equal_scores_the_first_are_taken(k: int) -> None:
    scores = torch.randint(0, 3, (5, 6), generator=torch.Generator().manual_seed(0)).float()
    found = select_largest(scores, k)
    assert int(found.sum()) == k
    assert torch.equal(found, largest_by_sort(scores, k))


def test_all_zeros_are_one_tie() -> None:
    assert select_largest(torch.zeros(2, 3), 4).tolist() == [[True, True, True], [True, False, False]]


def test_scores_of_any_memory_layout_are_counted_by_rows() -> None:
    scores = torch.randint(0, 4, (6, 5), generator=torch.Generator().manual_seed(0)).double().T
    assert torch.equal(select_largest(scores, 11), largest_by_sort(scores, 11))


def test_the_scores_are_only_read() -> None:
    scores = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    select_largest(scores[1:4], 7)
    select_largest(scores.T, 7)
    assert torch.equal(scores, before)


def test_nan_is_not_selected() -> None:
    found = select_largest(torch.tensor([1.0, float("nan"), 3.0, 2.0]), 2)
    assert found.tolist() == [False, False, True, False]


def test_the_threshold_is_the_kth_of_a_sort() -> None:
    scores = torch.rand(37, generator=torch.Generator().manual_seed(0))
    ordered = scores.sort(descending=True).values
    assert [kth_largest(scores, k) for k in range(1, 38)] == ordered.tolist()
