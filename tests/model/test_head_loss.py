"""The loss without logits is the loss with them: value, numbers, every gradient, of any head, precision and split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.methods import Full, LoRA
from lit_consistency.model import TokenNLL, head_loss, linear_loss
from lit_consistency.model.head_loss import ELEMENTS, Reduction, logits_by_parts
from tests.methods.small import small_model

D, V = 6, 40


class Squares(Reduction):
    """A reduction without a gradient of its own."""

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        return (logits**2).mean(-1)


def head(dtype: torch.dtype, bias: bool = False, cap: float | None = None) -> Any:
    torch.manual_seed(0)
    config = SimpleNamespace(final_logit_softcapping=cap, padded_vocab_size=V)
    return SimpleNamespace(lm_head=nn.Linear(D, V, bias=bias, dtype=dtype), config=config)


def rows(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = 3 * torch.randn(n, D, generator=generator, dtype=dtype)
    return states.requires_grad_(), torch.randint(V, (n,), generator=generator)


def plain(states: Tensor, gpt: Any, targets: Tensor) -> Tensor:
    """As the definition has it, in float64: minus the logarithm of a softmax, written out."""
    logits = states.double() @ gpt.lm_head.weight.double().T
    if gpt.lm_head.bias is not None:
        logits = logits + gpt.lm_head.bias.double()
    if (cap := gpt.config.final_logit_softcapping) is not None:
        logits = cap * torch.tanh(logits / cap)
    return -torch.stack([logits[i, t] - logits[i].exp().sum().log() for i, t in enumerate(targets)])


@pytest.fixture(params=[1, 3, 1000])
def rows_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(ELEMENTS, "cpu", request.param * V)
    return request.param


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_value_and_gradients_are_those_of_the_definition(
    rows_at_a_time: int, dtype: torch.dtype, tolerance: float, bias: bool, cap: float | None
) -> None:
    gpt, (states, targets) = head(dtype, bias, cap), rows(8, dtype)
    wanted = [states, *gpt.lm_head.parameters()]
    loss, numbers = linear_loss(states, gpt, TokenNLL(targets), 0.3)
    expected = plain(states, gpt, targets)
    torch.testing.assert_close(numbers.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss.double(), 0.3 * expected.sum(), rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(7 * loss, wanted)
    for a, b in zip(found, torch.autograd.grad(7 * 0.3 * expected.sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def test_a_reduction_without_its_own_gradient_has_autograds(rows_at_a_time: int) -> None:
    gpt, (states, _) = head(torch.float64), rows(5, torch.float64)
    loss, numbers = linear_loss(states, gpt, Squares(), 2.0)
    expected = (gpt.lm_head(states) ** 2).mean(-1)
    torch.testing.assert_close(numbers, expected)
    for found, reference in zip(
        *(torch.autograd.grad(value, [states, gpt.lm_head.weight]) for value in (loss, 2 * expected.sum())), strict=True
    ):
        torch.testing.assert_close(found, reference)


def test_a_sum_over_parts_in_half_precision_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 parts of one row, whose gradients added in bfloat16 would stop to grow."""
    gpt, (states, targets) = head(torch.bfloat16), rows(400, torch.bfloat16)
    for elements in (V, 400 * V):
        monkeypatch.setitem(ELEMENTS, "cpu", elements)
        linear_loss(states, gpt, TokenNLL(torch.zeros_like(targets)), 1.0)[0].backward()
        if elements == V:
            one_by_one, gpt.lm_head.weight.grad = gpt.lm_head.weight.grad.double(), None
    assert gpt.lm_head.weight.grad.dtype == torch.bfloat16
    assert (one_by_one - gpt.lm_head.weight.grad.double()).norm() < 0.005 * one_by_one.norm()


def test_under_autocast_weights_keep_their_gradients_in_float32() -> None:
    gpt, (states, targets) = head(torch.float32), rows(64, torch.float32)
    expected = torch.autograd.grad(plain(states, gpt, targets).sum(), gpt.lm_head.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, numbers = linear_loss(states, gpt, TokenNLL(targets), 1.0)
    assert loss.dtype == numbers.dtype == torch.float32
    (found,) = torch.autograd.grad(loss, gpt.lm_head.weight)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()


def test_without_a_row_the_loss_is_zero_and_its_gradients_are_too() -> None:
    gpt, (states, targets) = head(torch.float32, bias=True), rows(4, torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    loss, numbers = linear_loss(states[none], gpt, TokenNLL(targets[none]), 1.0)
    assert (loss.item(), len(numbers)) == (0, 0)
    loss.backward()
    assert all(not p.grad.any() for p in (states, *gpt.lm_head.parameters()))


def test_a_frozen_head_has_no_gradient_and_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, (states, targets) = head(torch.float32), rows(4, torch.float32)
    gpt.lm_head.requires_grad_(False)
    monkeypatch.setattr(head_loss._Sum, "add_product", None)
    linear_loss(states, gpt, TokenNLL(targets), 1.0)[0].backward()
    assert gpt.lm_head.weight.grad is None
    assert states.grad.any()


def test_a_head_with_adapters_is_called(rows_at_a_time: int) -> None:
    """Its gradients are those of the whole logits, its memory that of a part."""
    method = LoRA(head=True)
    model = small_model(method, dtype=torch.float64)
    for parameter in model.lm_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(0, 64, (2, 5), generator=torch.Generator().manual_seed(3))
    targets = tokens.flatten().roll(-1)
    loss = model(tokens, body=lambda gpt: linear_loss(gpt.states(tokens).flatten(0, 1), gpt, TokenNLL(targets), 0.5)[0])
    expected = 0.5 * nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets, reduction="sum")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, reference = (torch.autograd.grad(value, trained, allow_unused=True) for value in (loss, expected))
    for a, b in zip(found, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_logits_by_parts_are_the_logits(rows_at_a_time: int) -> None:
    model = small_model(Full(), dtype=torch.float64)
    tokens = torch.randint(0, 64, (2, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states, expected = model.states(tokens).flatten(0, 1), model(tokens).flatten(0, 1)
    for where, logits in logits_by_parts(states, model):
        torch.testing.assert_close(logits, expected[where])


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_a_plain_head_are_those_of_its_module(bias: bool, cap: float | None) -> None:
    """Bit by bit where there is no bias: they are made in one buffer, which the next part overwrites."""
    gpt, (states, _) = head(torch.float32, bias, cap), rows(7, torch.float32)
    expected = gpt.lm_head(states).detach()
    expected = expected if cap is None else torch.tanh(expected / cap) * cap
    parts = [(where, logits.clone()) for where, logits in logits_by_parts(states.detach(), gpt, elements=3 * V)]
    assert [len(logits) for _, logits in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([logits for _, logits in parts]), expected, rtol=1e-6, atol=1e-6)
    if not bias and cap is None:
        assert all(torch.equal(logits, gpt.lm_head(states[where])) for where, logits in parts)
