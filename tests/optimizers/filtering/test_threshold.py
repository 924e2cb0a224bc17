from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.filtering.threshold import (
    chosen,
    kth_of_rows,
    row_thresholds,
    select_largest,
    threshold_in_place,
)
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


@pytest.mark.parametrize("smallest", [False, True])
def test_the_kth_of_each_row_is_that_of_a_sort(smallest: bool) -> None:
    scores = torch.rand(3, 37, generator=torch.Generator().manual_seed(0))
    ordered = scores.sort(dim=1, descending=not smallest).values
    found = [kth_of_rows(scores.clone(), k, smallest) for k in range(1, 38)]
    assert torch.equal(torch.stack(found, 1), ordered)


@pytest.mark.parametrize("k", [1, 5, 11, 29])
def test_rows_have_thresholds_of_their_own(k: int) -> None:
    scores = torch.randint(0, 5, (4, 30), generator=torch.Generator().manual_seed(0)).double()
    for row, threshold in zip(scores, row_thresholds(scores, k).rows(), strict=True):
        assert torch.equal(chosen(row, torch.arange(30), threshold), largest_by_sort(row, k))


@pytest.mark.parametrize("k", [1, 5, 11, 29])
def test_the_smallest_are_what_the_largest_leave(k: int) -> None:
    scores = torch.randint(0, 5, (1, 30), generator=torch.Generator().manual_seed(0)).float()
    (threshold,) = row_thresholds(scores, k, smallest=True).rows()
    found = chosen(scores[0], torch.arange(30), threshold, smallest=True)
    assert torch.equal(found, ~largest_by_sort(scores[0], 30 - k))


@pytest.mark.parametrize("values", [3, 10**6])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_a_threshold_in_place_is_that_of_a_row(
    k: int, smallest: bool, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.optimizers.filtering.threshold.PIECE", 7)
    scores = torch.randint(0, values, (1, 30), generator=torch.Generator().manual_seed(0)).double()
    (expected,) = row_thresholds(scores, k, smallest).rows()
    found = threshold_in_place(scores[0].clone(), k, smallest, lambda start, stop: scores[0, start:stop])
    index = torch.arange(30)
    assert torch.equal(chosen(scores[0], index, found, smallest), chosen(scores[0], index, expected, smallest))


@pytest.mark.parametrize("smallest", [False, True])
def test_where_nan_is_the_threshold_nothing_is_chosen(smallest: bool) -> None:
    scores = torch.tensor([[1.0, float("nan"), float("nan"), float("nan")]])
    (threshold,) = row_thresholds(scores, 2, smallest).rows()
    assert not chosen(scores[0], torch.arange(4), threshold, smallest)[1:].any()
