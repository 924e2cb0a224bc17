"""What the optimizers share: masters, what is logged."""

from __future__ import annotations

import torch

from lit_consistency.optimizers import SGD, AdamW, MoFO
from lit_consistency.optimizers.core.optimizer import master_or_parameter
from tests.optimizers.models import follow, one_matrix, random_grads


def test_a_master_is_there_for_low_precision_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        parameter, groups = one_matrix(3, 4, dtype=dtype)
        optimizer = SGD(groups, lr=0.1)
        assert master_or_parameter(optimizer, parameter) is parameter
        follow(optimizer, parameter, random_grads((3, 4), 1))
        moving = master_or_parameter(optimizer, parameter)
        assert (moving is parameter) == (dtype == torch.float32)
        assert moving.dtype == torch.float32
        assert torch.equal(moving.to(dtype), parameter)
    assert master_or_parameter(torch.optim.SGD([parameter], lr=0.1), parameter) is parameter


def test_only_a_filter_has_values_to_log() -> None:
    parameter, groups = one_matrix(10, 10)
    optimizer = MoFO(groups, fraction=0.2)
    assert optimizer.log_values() == {}
    follow(optimizer, parameter, random_grads((10, 10), 1))
    assert optimizer.log_values() == {"density/hidden": 0.2, "selected/hidden": 0.2}
    assert AdamW(groups).log_values() == {}
