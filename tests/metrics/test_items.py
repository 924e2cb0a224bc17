from __future__ import annotations

import math

import pytest
import torch

from lit_consistency.metrics import ItemScores, summarize


def scores() -> ItemScores:
    """Two questions with three and two candidates; the first is answered right, the second wrong."""
    return ItemScores(
        nll=torch.tensor([5.0, 2.0, 9.0, 3.0, 4.0], dtype=torch.float64),
        n_tokens=torch.tensor([2, 1, 3, 1, 2]),
        n_hits=torch.tensor([0, 1, 3, 1, 1]),
        n_bytes=torch.tensor([10, 2, 9, 1, 8]),
        n_candidates=torch.tensor([3, 2]),
        gold=torch.tensor([1, 1]),
    )


def test_least_summed_nll_wins() -> None:
    assert summarize(scores())["accuracy"] == 0.5


def test_length_normalization_changes_the_winner() -> None:
    # per byte: item 0 -> .5, 1., 1. (candidate 0 wins, wrong); item 1 -> 3., .5 (candidate 1 wins, right)
    assert summarize(scores())["accuracy_per_byte"] == 0.5


def test_loss_is_that_of_the_right_answers_per_token() -> None:
    numbers = summarize(scores())
    assert numbers["loss"] == pytest.approx((2 + 4) / (1 + 2))
    assert numbers["bits_per_byte"] == pytest.approx(6 / math.log(2) / (2 + 8))


def test_exact_needs_every_token() -> None:
    assert summarize(scores())["exact"] == 0.5


def test_texts_have_no_accuracy() -> None:
    one = torch.tensor([1])
    numbers = summarize(ItemScores(torch.tensor([2.0]), one, one, one, one, one - 1))
    assert set(numbers) == {"loss", "bits_per_byte", "exact"}


def pairs(nll: list[float], gold: list[int]) -> dict[str, float]:
    """Numbers of items with two candidates of one token and one byte, all of them greedy hits."""
    ones = torch.ones(len(nll), dtype=torch.int64)
    costs = torch.tensor(nll, dtype=torch.float64)
    return summarize(ItemScores(costs, ones, ones, ones, torch.full((len(gold),), 2), torch.tensor(gold)))


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_per_byte"])
def test_a_tie_is_not_right_wherever_the_right_answer_stands(metric: str) -> None:
    assert pairs([1.0, 1.0, 1.0, 1.0], gold=[0, 1])[metric] == 0.0
    assert pairs([math.inf, math.inf], gold=[0])[metric] == 0.0
    assert pairs([1.0, 2.0, 2.0, 1.0], gold=[0, 1])[metric] == 1.0


def test_a_cost_that_is_not_a_number_is_never_right() -> None:
    for nll in ([math.nan, math.nan], [math.nan, 1.0], [1.0, math.nan]):
        numbers = pairs(nll, gold=[0])
        assert numbers["accuracy"] == numbers["accuracy_per_byte"] == 0.0


def test_greedy_hits_of_logits_that_are_not_numbers_are_not_exact() -> None:
    assert pairs([math.nan, 1.0], gold=[0])["exact"] == 0.0
    assert pairs([1.0, math.nan], gold=[0])["exact"] == 1.0


def test_an_answer_of_which_nothing_was_scored_is_not_exact() -> None:
    one = torch.tensor([1])
    assert summarize(ItemScores(torch.zeros(1), one - 1, one - 1, one, one, one - 1))["exact"] == 0.0
