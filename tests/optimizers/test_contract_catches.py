"""Every check finds the fault that it is there for, and finds none where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_consistency.distributed.optimizer_contract import on_two_processes
from lit_consistency.optimizers import AdamW, contract
from lit_consistency.optimizers.contract import Broken
from tests.optimizers import broken
from tests.optimizers.models import small_gpt

CHECKS: dict[str, Callable[..., Any]] = {
    "groups": contract.takes_groups,
    "closure": contract.calls_closure_once,
    "gradients": contract.leaves_gradients,
    "moves": contract.unmoved,
    "no gradient": contract.keeps_without_gradient,
    "rate": contract.follows_the_rate,
    "clipping": contract.may_be_clipped,
    "resume": contract.continues_bit_for_bit,
}
FAULTS = {
    broken.NoRoles: {"groups": "param_names, role and split"},
    broken.ClosureTwice: {"closure": "called 2 times"},
    broken.ClosureUnreturned: {"closure": "returns None"},
    broken.GradientsChanged: {"gradients": "changes the gradient of"},
    broken.NothingMoves: {"moves": "move nothing", "closure": "moves nothing"},
    broken.EveryParameterDecays: {"no gradient": "its gradient is None"},
    broken.RateRemembered: {"rate": "set every lr to 0"},
    broken.CountUnsaved: {"resume": "ends elsewhere"},
    broken.ObjectInState: {"resume": "goes through no file"},
    broken.ClippedByItself: {"clipping": "_step_supports_amp_scaling"},
    broken.SignDescent: {},
}


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_breaks_the_promise_that_it_breaks_and_no_other(cls: Any) -> None:
    for name, check in CHECKS.items():
        if words := FAULTS[cls].get(name):
            with pytest.raises(Broken, match=words):
                check(cls, small_gpt)
        else:
            check(cls, small_gpt)


@pytest.mark.parametrize(
    ("build", "low", "high"),
    [
        (torch.optim.AdamW, 0.0, 0.0),
        (functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), 0.0, 0.0),
        (broken.MastersLost, 0.9, 1.1),
        (functools.partial(AdamW, low_precision="stochastic"), 0.9, 1.1),
        (functools.partial(AdamW, low_precision="nearest"), 0.0, 0.0),
    ],
    ids=["torch AdamW", "torch SGD", "masters", "chance", "nearest"],
)
def test_steps_below_the_gap_of_bfloat16_are_kept_by_masters_and_by_chance(build: Any, low: float, high: float) -> None:
    kept = contract.kept_of_small_steps(build, small_gpt)
    assert kept is not None
    assert low <= kept <= high


def test_masters_that_loading_rounds_are_found() -> None:
    with pytest.raises(Broken, match="torch casts loaded state"):
        contract.continues_bit_for_bit(broken.MastersLost, lambda: small_gpt().bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (functools.partial(torch.optim.AdamW, lr=1e-3), {}),
        (broken.SignDescent, {}),
        (broken.ShardNormalized, {"FSDP2": "ends elsewhere than on one process"}),
        (broken.RankDependent, {"DDP": "ends elsewhere", "FSDP2": "ends elsewhere"}),
    ],
    ids=["torch AdamW", "signs", "a norm of a shard", "a rate of a rank"],
)
def test_two_processes_find_what_one_cannot(build: Any, wrong: dict[str, str]) -> None:
    for layout, complaint in on_two_processes(build).items():
        assert (complaint is None) == (layout not in wrong), complaint
        assert wrong.get(layout, "") in (complaint or "")
