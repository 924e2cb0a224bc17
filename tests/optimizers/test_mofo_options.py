"""MoFO's extensions: shares by role, an annealed share, a choice that holds for several steps."""

from __future__ import annotations

import gc
import io
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lit_consistency.optimizers import MoFO, parameter_groups
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt


def test_a_role_has_its_own_share() -> None:
    model = small_gpt()
    optimizer = MoFO(parameter_groups(model), fraction=0.5, role_fractions={"embedding": 0.125})
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert optimizer.last_selected() == pytest.approx({"hidden": 0.5, "embedding": 0.125, "head": 0.5})


def test_the_share_changes_linearly_and_then_stays() -> None:
    parameter, groups = one_matrix(10, 10)
    optimizer = MoFO(groups, fraction=0.5, final_fraction=0.1, anneal_steps=4)
    found = []
    for grad in random_grads((10, 10), 6):
        follow(optimizer, parameter, [grad])
        found.append(optimizer.last_selected()["hidden"])
    assert found == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])


def test_a_share_of_one_is_told_as_well() -> None:
    """Of a role that is not exempt: all of it was selected, and moved where there was a gradient."""
    parameter, groups = one_matrix(10, 10)
    optimizer = MoFO(groups, fraction=0.2, final_fraction=1.0, anneal_steps=1)
    grad = torch.zeros(10, 10, dtype=torch.float64)
    grad[:3] = 1.0
    follow(optimizer, parameter, [grad])
    assert (optimizer.last_selected(), optimizer.last_density()) == ({"hidden": 0.2}, {"hidden": 0.2})
    follow(optimizer, parameter, [grad])
    assert (optimizer.last_selected(), optimizer.last_density()) == ({"hidden": 1.0}, {"hidden": 0.3})


def changed(optimizer: MoFO, parameter: torch.nn.Parameter, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    found = []
    for grad in grads:
        before = parameter.detach().clone()
        found.append(follow(optimizer, parameter, [grad]) != before)
    return found


def test_a_choice_holds_for_its_steps() -> None:
    parameter, groups = one_matrix(10, 10)
    optimizer = MoFO(groups, fraction=0.2, betas=(0.0, 0.9), refresh_every=3)
    found = changed(optimizer, parameter, random_grads((10, 10), 6))
    assert [torch.equal(a, b) for a, b in zip(found, found[1:], strict=False)] == [True, True, False, True, True]
    assert {int(mask.sum()) for mask in found} == {20}
    assert optimizer.last_selected() == {"hidden": 0.2}


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_choice_survives_a_checkpoint(saved_after: int) -> None:
    options: dict[str, Any] = {"fraction": 0.2, "refresh_every": 3}
    grads = random_grads((10, 10), 6)
    parameter, groups = one_matrix(10, 10)
    straight = follow(MoFO(groups, **options), parameter, grads)
    parameter, groups = one_matrix(10, 10)
    first = MoFO(groups, **options)
    follow(first, parameter, grads[:saved_after])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = MoFO(groups, **options)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(follow(second, parameter, grads[saved_after:]), straight)


def test_a_state_saved_with_fewer_options_is_taken_up() -> None:
    parameter, groups = one_matrix(4, 4)
    optimizer = MoFO(groups)
    follow(optimizer, parameter, random_grads((4, 4), 1))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["selection"], group["refresh_every"]
    optimizer.load_state_dict(saved)
    follow(optimizer, parameter, random_grads((4, 4), 1))
    assert optimizer.param_groups[0]["selection"] == "sampled"


def storages(dtype: torch.dtype) -> dict[int, int]:
    """Pointer and number of elements of every tensor that is alive."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.numel() for t in tensors if t.dtype == dtype}


@pytest.mark.parametrize("filter", ["momentum", "gradient"])
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_what_is_kept_for_the_shares_is_no_gradient(filter: Any, refresh_every: int) -> None:
    parameter, groups = one_matrix(10, 10)
    optimizer = MoFO(groups, fraction=0.2, filter=filter, refresh_every=refresh_every)
    parameter.grad = torch.ones(10, 10, dtype=torch.float64)
    gradient = StorageWeakRef(parameter.grad.untyped_storage())
    optimizer.step()
    assert not gradient.expired()
    parameter.grad = None
    assert gradient.expired(), "no other tensor holds it"
    assert optimizer.last_selected() == {"hidden": 0.2}


def test_rounding_by_chance_keeps_no_float32_copy_between_steps() -> None:
    parameter, groups = one_matrix(13, 17, dtype=torch.bfloat16)
    optimizer = MoFO(groups, low_precision="stochastic")
    follow(optimizer, parameter, random_grads((13, 17), 2, dtype=torch.float32))
    state = optimizer.state[parameter]
    kept = {pointer for pointer, numel in storages(torch.float32).items() if numel == 13 * 17}
    assert kept == {state[key].untyped_storage().data_ptr() for key in ("exp_avg", "exp_avg_sq")}
