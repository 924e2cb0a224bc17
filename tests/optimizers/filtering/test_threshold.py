from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.filtering import threshold
from lit_consistency.optimizers.filtering.threshold import (
    chosen,
    count_ones,
    kth_of_rows,
    row_thresholds,
    sampled_columns,
    select_largest,
    threshold_of_row,
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
    for row, limits in zip(scores, row_thresholds(scores, k).rows(), strict=True):
        assert torch.equal(chosen(row, torch.arange(30), limits), largest_by_sort(row, k))


@pytest.mark.parametrize("k", [1, 5, 11, 29])
def test_the_smallest_are_what_the_largest_leave(k: int) -> None:
    scores = torch.randint(0, 5, (1, 30), generator=torch.Generator().manual_seed(0)).float()
    (limits,) = row_thresholds(scores, k, smallest=True).rows()
    found = chosen(scores[0], torch.arange(30), limits, smallest=True)
    assert torch.equal(found, ~largest_by_sort(scores[0], 30 - k))


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("values", [1, 3, 300, 10**9])
def test_a_long_rows_threshold_is_that_of_a_sort(values: int, smallest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "PIECE", 700)
    scores = torch.randint(0, values, (5000,), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 2, 750, 2500, 4250, 4999):
        limits = threshold_of_row(scores, k, smallest)
        found = chosen(scores, torch.arange(5000), limits, smallest)
        expected = ~largest_by_sort(scores, 5000 - k) if smallest else largest_by_sort(scores, k)
        assert torch.equal(found, expected), k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_that_misleads_costs_only_time(dtype: torch.dtype) -> None:
    scores = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    # what is sampled is larger than all else, which stays so for every sample of the next steps
    scores[sampled_columns(5000)] += 1
    for k in (1, 750, 4500):
        found = chosen(scores, torch.arange(5000), threshold_of_row(scores, k))
        assert torch.equal(found, largest_by_sort(scores, k))


def test_most_of_a_long_row_is_not_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    integers = threshold._integers
    monkeypatch.setattr(threshold, "_integers", lambda scores: sizes.append(len(scores)) or integers(scores))
    scores = torch.rand(2**17, generator=torch.Generator().manual_seed(0))
    row_thresholds(scores[None], 2**14)
    # the sample, and what is in the bracket
    assert len(sizes) == 2
    assert max(sizes) < 2**17 / 10


@pytest.mark.parametrize("n", [0, 3, 512, 1700])
def test_ones_are_counted(n: int) -> None:
    flags = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.7
    assert count_ones(flags.view(torch.uint8)) == sum(flags.tolist())


@pytest.mark.parametrize("long", [False, True])
def test_nan_takes_a_place_of_the_largest_where_others_tie(long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "LONG", 1 if long else 100)
    scores = torch.tensor([2.0, float("nan"), 3.0, 2.0, 2.0, 1.0])
    assert select_largest(scores, 3).tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_where_nan_is_the_threshold_nothing_is_chosen(
    long: bool, smallest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threshold, "LONG", 1 if long else 100)
    scores = torch.tensor([[1.0, float("nan"), float("nan"), float("nan")]])
    (limits,) = row_thresholds(scores, 2, smallest).rows()
    assert not chosen(scores[0], torch.arange(4), limits, smallest)[1:].any()
