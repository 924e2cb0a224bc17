from __future__ import annotations

import math

import pytest
import torch

from lit_consistency.metrics import TokenLoss, bits_per_byte, nats_per_token


def test_loss_is_weighted_by_token_not_by_batch() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor(3))
    metric.update(torch.tensor([[10.0]]), torch.tensor(1))
    assert metric.compute().item() == pytest.approx(16 / 4)


def test_loss_is_finite_where_perplexity_by_softmax_is_infinite() -> None:
    nll = torch.nn.functional.cross_entropy(torch.tensor([[0.0, -110.0]]), torch.tensor([1]))
    metric = TokenLoss()
    metric.update(nll, torch.tensor(1))
    assert metric.compute().item() == pytest.approx(110.0)


def test_many_small_losses_do_not_drift() -> None:
    metric = TokenLoss()
    for _ in range(1000):
        metric.update(torch.full((1000,), 0.1), torch.tensor(1000))
    # a float32 sum of a million terms would be off in the fifth digit
    assert metric.nll_sum.item() == pytest.approx(1e6 * float(torch.tensor(0.1)), rel=1e-12)


def test_a_text_of_eight_even_bits_per_byte_has_eight() -> None:
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8.0)


def test_nothing_seen_is_not_a_number() -> None:
    assert math.isnan(nats_per_token(0.0, 0))
    assert math.isnan(bits_per_byte(0.0, 0))
