"""The compiled selection on a CPU against a sort; one program for each pair of dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_consistency.optimizers.filtering.native import exact_selection
from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, chosen
from tests.reference.optimizers import largest_by_sort

N = 5000
RATE = 0.25
OFFSET = 40


def rows(values: int, dtype: torch.dtype, grad: torch.dtype) -> tuple[Tensor, Tensor]:
    """A gradient and a momentum of so many different whole numbers, some of them negative."""
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randint(-values, values, (N,), generator=generator) for _ in range(2)]
    return numbers[0].to(grad), numbers[1].to(dtype)


def select(grad: Tensor | None, mean: Tensor, k: int, smallest: bool = False) -> Tensor:
    """The mask of what is chosen of the momentum, which has moved."""
    coefficients = torch.full((7,), RATE, dtype=mean.dtype)
    program = exact_selection(mean.dtype, None if grad is None else grad.dtype)
    threshold = program(grad, mean, coefficients, k, smallest, OFFSET)
    return chosen(mean.abs(), torch.arange(OFFSET, OFFSET + len(mean)), threshold, smallest)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("float64", "float32")])
@pytest.mark.parametrize("values", [1, 3, 10**9])
def test_every_pair_of_dtypes_is_selected_as_by_a_sort(values: int, dtypes: tuple[str, str]) -> None:
    check_against_sort(values, *(getattr(torch, name) for name in dtypes))


@pytest.mark.parametrize("values", [1, 3, 300, 10**9])
def test_the_momentum_moves_and_its_largest_are_those_of_a_sort(values: int) -> None:
    check_against_sort(values, torch.float64, torch.float64)


def check_against_sort(values: int, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    for k in (1, 2, 750, 2500, 4250, 4999, 5000):
        for smallest in (False, True):
            grad, mean = rows(values, dtype, grad_dtype)
            moved = mean + (grad.to(dtype) - mean) * RATE
            found = select(grad, mean, k, smallest)
            assert torch.equal(mean, moved)
            expected = ~largest_by_sort(moved.abs(), N - k) if smallest else largest_by_sort(moved.abs(), k)
            assert torch.equal(found, expected), (k, smallest)


def test_without_a_gradient_the_scores_are_only_read() -> None:
    _, scores = rows(10**9, torch.float64, torch.float64)
    before = scores.clone()
    assert torch.equal(select(None, scores, 750), largest_by_sort(before.abs(), 750))
    assert torch.equal(scores, before)


def test_a_sample_that_misleads_costs_only_time() -> None:
    generator = torch.Generator().manual_seed(0)
    # of 5000 scores every 37th is sampled, from the 18th on: all of them are larger, or smaller, than the rest
    for scale in (1e-3, 1e3):
        scores = torch.rand(N, generator=generator, dtype=torch.float64) + 1
        scores[18::37] *= scale
        for k in (1, 750, 2500, 4500):
            assert torch.equal(select(None, scores.clone(), k), largest_by_sort(scores, k)), (scale, k)


@pytest.mark.parametrize("smallest", [False, True])
def test_threads_find_the_same(smallest: bool) -> None:
    threads, n = torch.get_num_threads(), 3 * 2**16 + 77
    scores = torch.randint(0, 400, (n,), generator=torch.Generator().manual_seed(0)).double()
    found = []
    try:
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            found.append(select(None, scores, n // 7, smallest))
    finally:
        torch.set_num_threads(threads)
    assert int(found[0].sum()) == n // 7
    assert all(torch.equal(mask, found[0]) for mask in found)


@pytest.mark.parametrize("smallest", [False, True])
def test_nan_is_never_chosen_and_takes_a_place_of_the_largest(smallest: bool) -> None:
    scores = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[100:200] = float("nan")
    found = select(None, scores, 300, smallest)
    numbers = scores.nan_to_num(-1.0) if not smallest else scores.nan_to_num(2.0)
    expected = ~largest_by_sort(numbers, N - 300) if smallest else largest_by_sort(numbers, 200)
    assert torch.equal(found, expected)
    # of the 50 largest all are NaN
    assert smallest or not select(None, scores, 50).any()


def test_without_ties_to_break_every_index_is_before_the_cut() -> None:
    scores = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold = exact_selection(torch.float64, None)(None, scores, torch.ones(7).double(), 750, False, OFFSET)
    assert int(threshold.cut) == EVERYWHERE
    assert float(threshold.low) == float(threshold.high) == float(scores.topk(750).values.min())
