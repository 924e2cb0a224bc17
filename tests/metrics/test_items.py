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


def test_the_first_of_equal_candidates_wins() -> None:
    two = torch.tensor([2, 2])
    tie = ItemScores(torch.ones(4), *(torch.ones(4, dtype=torch.int64),) * 3, two, torch.tensor([0, 1]))
    assert summarize(tie)["accuracy"] == 0.5
