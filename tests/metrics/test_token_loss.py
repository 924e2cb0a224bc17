from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

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


CASTS: dict[str, Callable[[nn.Module], object]] = {
    "none": lambda module: module,
    "to(bfloat16)": lambda module: module.to(torch.bfloat16),
    "to(float16)": lambda module: module.to(dtype=torch.float16),
    "to(float32)": lambda module: module.to("cpu", torch.float32),
    "half": lambda module: module.half(),
    "type": lambda module: module.type(torch.bfloat16),
    "set_dtype": lambda module: [metric.set_dtype(torch.bfloat16) for metric in module.children()],
}


@pytest.mark.parametrize("cast", CASTS)
def test_sums_stay_in_float64_when_their_module_is_cast(cast: str) -> None:
    """Lightning's ``bf16-true`` casts the module; 2,000 batches of 4.3 nats then gave 1.02."""
    module = nn.ModuleDict({"loss": TokenLoss()})
    CASTS[cast](module)
    metric = module["loss"]
    assert isinstance(metric, TokenLoss)
    for _ in range(2):  # the sums are put back between two epochs
        metric.reset()
        for _ in range(2000):
            metric.update(torch.full((100,), 4.3), torch.tensor(100))
        assert metric.compute().item() == pytest.approx(float(torch.tensor(4.3)), rel=1e-12)


def test_a_text_of_eight_even_bits_per_byte_has_eight() -> None:
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8.0)


def test_nothing_seen_is_not_a_number() -> None:
    assert math.isnan(nats_per_token(0.0, 0))
    assert math.isnan(bits_per_byte(0.0, 0))
