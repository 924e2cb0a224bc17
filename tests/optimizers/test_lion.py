"""Lion and Signum against their definitions, written another way."""

from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers import Lion, Signum
from tests.optimizers.models import follow, one_matrix, random_grads
from tests.reference.optimizers import lion_trajectory

OPTIONS = {"lr": 0.01, "weight_decay": 0.3}


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.5), (0.0, 0.9)])
def test_lion_is_the_papers_program(betas: tuple[float, float]) -> None:
    grads = random_grads((5, 7), 6)
    parameter, groups = one_matrix(5, 7)
    expected = lion_trajectory(parameter.detach().clone(), grads, betas=betas, **OPTIONS)
    found = follow(Lion(groups, betas=betas, **OPTIONS), parameter, grads)
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_signum_takes_the_sign_of_the_momentum(momentum: float) -> None:
    grads = random_grads((5, 7), 6)
    parameter, groups = one_matrix(5, 7)
    # the running mean after the gradient has joined it is the direction: one decay rate for both
    expected = lion_trajectory(parameter.detach().clone(), grads, betas=(momentum, momentum), **OPTIONS)
    found = follow(Signum(groups, momentum=momentum, **OPTIONS), parameter, grads)
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", [Lion, Signum])
def test_every_coordinate_with_a_gradient_moves_by_the_rate(cls: type[Lion] | type[Signum]) -> None:
    parameter, groups = one_matrix(4, 6)
    start = parameter.detach().clone()
    (grad,) = random_grads((4, 6), 1)
    grad[0] = 0
    grad[1] *= 1e-20  # however small
    moved = follow(cls(groups, lr=0.25), parameter, [grad]) - start
    assert torch.equal(moved[0], torch.zeros(6))
    assert torch.allclose(moved[1:], -0.25 * grad[1:].sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", [Lion, Signum])
def test_only_decay_roles_decay(cls: type[Lion] | type[Signum]) -> None:
    parameter, groups = one_matrix(2, 3, role="norm")
    before = parameter.detach().clone()
    follow(cls(groups, lr=0.1, weight_decay=0.5), parameter, [torch.zeros(2, 3)])
    assert torch.equal(parameter, before)


def test_rates_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"betas\[1\] = 1.0"):
        Lion(one_matrix(2, 3)[1], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="momentum = -0.1"):
        Signum(one_matrix(2, 3)[1], momentum=-0.1)
