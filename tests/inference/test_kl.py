from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_consistency.inference.kl import forward_kl, reverse_kl
from tests.reference.divergence import mean_kl


def pair(seed: int = 0, n: int = 7, vocabulary: int = 11, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a base and of a model that is so far from it."""
    torch.manual_seed(seed)
    logits = torch.randn(n, vocabulary) * 3
    return logits.log_softmax(-1), (logits + apart * torch.randn(n, vocabulary)).log_softmax(-1)


@pytest.mark.parametrize("apart", [0.1, 1.0, 5.0])
def test_both_directions_equal_a_loop_in_float64(apart: float) -> None:
    base, model = pair(apart=apart)
    assert forward_kl(base, model) == pytest.approx(mean_kl(base, model), rel=1e-4)
    assert reverse_kl(base, model) == pytest.approx(mean_kl(model, base), rel=1e-4)


def test_the_two_directions_differ_and_turn_into_each_other() -> None:
    base, model = pair()
    assert reverse_kl(base, model) == forward_kl(model, base)
    assert abs(reverse_kl(base, model) - forward_kl(base, model)) > 0.01


def test_a_model_that_has_not_moved_is_at_zero() -> None:
    base, _ = pair()
    assert (forward_kl(base, base), reverse_kl(base, base)) == (0.0, 0.0)


def test_what_the_base_rules_out_is_free_forward_and_infinite_in_reverse() -> None:
    base = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    model = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert forward_kl(base, model) == pytest.approx(math.log(2))
    assert reverse_kl(base, model) == math.inf


def test_what_the_model_rules_out_is_free_in_reverse_and_infinite_forward() -> None:
    base = torch.tensor([[0.25, 0.25, 0.5]]).log()
    model = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    assert forward_kl(base, model) == math.inf
    assert reverse_kl(base, model) == pytest.approx(math.log(2))


def test_a_base_with_another_vocabulary_is_refused_in_reverse() -> None:
    base, model = pair()
    with pytest.raises(ValueError, match=r"\[7, 11\]: expected that of the base, \[7, 9\]"):
        reverse_kl(base[:, :9], model)
