from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers import SGD
from tests.optimizers.models import follow, one_matrix, random_grads


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_is_torch_sgd_bit_for_bit(momentum: float, nesterov: bool, weight_decay: float) -> None:
    grads = random_grads((5, 7), 5)
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    ours, groups = one_matrix(5, 7)
    theirs, _ = one_matrix(5, 7)
    found = follow(SGD(groups, **options), ours, grads)
    assert torch.equal(found, follow(torch.optim.SGD([theirs], **options), theirs, grads))


def test_without_momentum_there_is_no_buffer() -> None:
    parameter, groups = one_matrix(2, 3)
    optimizer = SGD(groups, momentum=0.0)
    follow(optimizer, parameter, random_grads((2, 3), 1))
    assert optimizer.state_dict()["state"] == {0: {}}


def test_only_decay_roles_decay() -> None:
    parameter, groups = one_matrix(2, 3, role="norm")
    before = parameter.detach().clone()
    follow(SGD(groups, lr=0.1, weight_decay=0.5), parameter, [torch.zeros(2, 3)])
    assert torch.equal(parameter, before)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov = true: expected momentum > 0"):
        SGD(one_matrix(2, 3)[1], momentum=0.0, nesterov=True)
