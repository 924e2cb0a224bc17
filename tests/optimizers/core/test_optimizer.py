"""What the optimizers share: groups that come later, masters, what is logged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lit_consistency.optimizers import SGD, AdamW, MoFO, parameter_groups
from lit_consistency.optimizers.core.optimizer import master_or_parameter
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt
from tests.optimizers.test_contract import build, run


@pytest.mark.parametrize("name", ["adamw", "sgd", "mofo"])
def test_a_group_that_comes_later_moves_as_if_it_had_been_there(name: str) -> None:
    """With its role's weight decay and share, and the dict that was given left as it was."""
    at_once, later = small_gpt(), small_gpt()
    expected = run(build(name, at_once, weight_decay=0.1), at_once, range(3))
    *groups, last = parameter_groups(later)
    optimizer = build(name, later, weight_decay=0.1)
    other = type(optimizer)(groups, **{"weight_decay": 0.1})
    before = copy.copy(last)
    other.add_param_group(last)
    assert last == before
    assert last["role"] == "norm"
    for group, same in zip(
        other.param_groups, type(optimizer)(parameter_groups(later), weight_decay=0.1).param_groups, strict=True
    ):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in same.items() if k != "params"}
    for group, same in zip(other.param_groups, optimizer.param_groups, strict=True):
        group["lr"] = same["lr"]
    assert all(torch.equal(value, expected[key]) for key, value in run(other, later, range(3)).items())


def test_a_later_group_without_a_role_is_refused_before_anything_moves() -> None:
    parameter, groups = one_matrix(4, 5)
    optimizer = MoFO(groups)
    with pytest.raises(ValueError, match=r"call parameter_groups\(model\)"):
        optimizer.add_param_group({"params": [("v", nn.Parameter(torch.zeros(3, 3)))]})
    assert len(optimizer.param_groups) == 1
    follow(optimizer, parameter, random_grads((4, 5), 1))


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
