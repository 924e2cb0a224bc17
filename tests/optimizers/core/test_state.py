from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from lit_consistency.optimizers import SGD, AdamW, FilteredMuon, MoFO, Muon, parameter_groups
from lit_consistency.optimizers.core.state import check_state
from tests.optimizers.models import one_matrix, random_grads, small_gpt


def stepped(model: torch.nn.Module) -> AdamW:
    optimizer = AdamW(parameter_groups(model))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_is_not_finite_is_refused_before_anything_is_changed(value: float) -> None:
    optimizer = stepped(small_gpt())
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved["state"])
    saved["param_groups"][0]["lr"] = 0.5
    saved["state"][2]["exp_avg_sq"].view(-1)[3] = value
    name = [n for group in optimizer.param_groups for n in group["param_names"]][2]
    with pytest.raises(ValueError, match=rf"exp_avg_sq of {name} has 1 of \d+ values that are NaN or infinite.*resume"):
        optimizer.load_state_dict(saved)
    assert all(group["lr"] != 0.5 for group in optimizer.param_groups)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][key], state[key]) for i, state in before.items() for key in state)


def test_a_state_of_another_shape_is_refused_by_name() -> None:
    saved = stepped(small_gpt()).state_dict()
    saved["state"][0]["exp_avg"] = torch.zeros(3, 5)
    name = saved["param_groups"][0]["param_names"][0]
    with pytest.raises(ValueError, match=rf"exp_avg of {name} has shape \[3, 5\], expected \[16, 16\]; .*weights only"):
        AdamW(parameter_groups(small_gpt())).load_state_dict(saved)


def test_a_state_of_other_parameters_is_refused_by_name() -> None:
    saved = stepped(small_gpt()).state_dict()
    saved["param_groups"][0]["param_names"][0] = "elsewhere.weight"
    with pytest.raises(ValueError, match=r"not in the state: \['transformer[^]]*\], not in the model: \['elsewhere"):
        AdamW(parameter_groups(small_gpt())).load_state_dict(saved)


def test_a_state_of_other_groups_is_refused() -> None:
    saved = stepped(small_gpt()).state_dict()
    _, groups = one_matrix(2, 3)
    with pytest.raises(ValueError, match=f"it has {len(saved['param_groups'])} parameter groups, expected 1"):
        AdamW(groups).load_state_dict(saved)


@pytest.mark.parametrize(("key", "value"), [("lr", math.nan), ("betas", (0.9, math.inf)), ("weight_decay", -math.inf)])
def test_hyperparameters_that_are_not_finite_are_refused(key: str, value: Any) -> None:
    saved = copy.deepcopy(stepped(small_gpt()).state_dict())
    saved["param_groups"][1][key] = value
    optimizer = AdamW(parameter_groups(small_gpt()))
    message = rf"{key} = .*(nan|inf).* in a group of role 'hidden': expected finite numbers; resume"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert not optimizer.state


@pytest.mark.parametrize("to", [AdamW, SGD, Muon, FilteredMuon, MoFO])
def test_the_state_of_another_optimizer_is_refused(to: Any) -> None:
    """Before, and not by a missing key in the middle of the first step."""
    other = Muon if to in (AdamW, SGD, FilteredMuon) else AdamW
    saved = copy.deepcopy(other(parameter_groups(small_gpt())).state_dict())
    with pytest.raises(ValueError, match="of role '.*' has no .*; it was saved by another optimizer: load weights"):
        to(parameter_groups(small_gpt())).load_state_dict(saved)


def test_a_scheduler_may_come_after_a_state_was_saved() -> None:
    saved = copy.deepcopy(stepped(small_gpt()).state_dict())
    optimizer = AdamW(parameter_groups(small_gpt()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.load_state_dict(saved)
    found = optimizer.state_dict()["state"]
    assert found.keys() == saved["state"].keys()
    assert all(torch.equal(found[i]["exp_avg"], state["exp_avg"]) for i, state in saved["state"].items())


def test_values_that_are_no_float_tensors_pass_as_they_are() -> None:
    parameter, groups = one_matrix(2, 3)
    parameter.grad = random_grads((2, 3), 1)[0]
    optimizer = AdamW(groups)
    optimizer.step()
    saved: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
    random_state = torch.Generator().get_state()
    saved["state"][0] |= {"generator": random_state, "refreshed": 3}
    check_state(optimizer.param_groups, saved)
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state[parameter]["generator"], random_state)
    assert optimizer.state[parameter]["generator"].dtype == torch.uint8
    assert optimizer.state[parameter]["refreshed"] == 3
