"""What every optimizer promises about parameters in bfloat16; the optimizers are those of test_contract."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from lit_consistency.optimizers import SGD, AdamW, parameter_groups
from lit_consistency.optimizers.contract import continues_bit_for_bit, run, set_grads
from lit_consistency.optimizers.core.optimizer import LOW_PRECISIONS
from tests.optimizers.models import follow, one_matrix, small_gpt
from tests.optimizers.test_contract import assert_equal, build, builder, every_variant

every_way = pytest.mark.parametrize("low_precision", LOW_PRECISIONS)
# AdamW's step with these is lr * sign(gradient)
STEP, N_STEPS = 2e-5, 60
GAP = 2.0**-8  # of bfloat16 below 1


def rates(name: str, value: float) -> dict[str, float]:
    return {"lr": value, "adamw_lr": value} if name.startswith("muon") else {"lr": value}


@every_variant
def test_with_masters_it_is_the_float32_run_rounded(name: str) -> None:
    half, full = small_gpt().bfloat16(), small_gpt().bfloat16().float()
    of_half, of_full = build(name, half), build(name, full)
    for seed in range(4):
        set_grads(half, seed)
        for p, q in zip(half.parameters(), full.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.float()
        of_half.step()
        of_full.step()
    assert_equal({n: p.detach() for n, p in half.named_parameters()}, dict(full.bfloat16().named_parameters()))


# the order of loading concerns what is kept of the weights
@pytest.mark.parametrize(
    ("low_precision", "weights_first"), [*((way, True) for way in LOW_PRECISIONS), ("master", False)]
)
@every_variant
def test_a_saved_state_continues_bit_for_bit_in_bfloat16(name: str, low_precision: str, weights_first: bool) -> None:
    factory = builder(name, low_precision=low_precision)
    continues_bit_for_bit(factory, lambda: small_gpt().bfloat16(), weights_first)
    model = small_gpt().bfloat16()
    optimizer = factory(parameter_groups(model))
    run(optimizer, model, range(1))
    kept = {key for state in optimizer.state.values() for key in state}
    assert ("master" in kept) == (low_precision == "master")
    dtypes = {v.dtype for state in optimizer.state.values() for v in state.values() if v.is_floating_point()}
    assert dtypes <= {torch.float32}


@every_variant
def test_small_steps_are_lost_by_nearest_and_kept_by_masters_and_by_chance(name: str) -> None:
    found = {}
    for way, dtype in [("nearest", torch.bfloat16), ("stochastic", torch.bfloat16), ("master", torch.float32)]:
        model = small_gpt().to(dtype)
        for parameter in model.parameters():
            parameter.data.fill_(1.0)
        run(build(name, model, low_precision=way, **rates(name, STEP)), model, range(8))
        found[way] = torch.cat([p.detach().flatten().double() for p in model.parameters()]) - 1
    assert not found["nearest"].any()
    # the float32 run is what masters give, rounded: see above; chance gives its moves in expectation
    exact = found["master"]
    assert exact.any()
    moved = (found["stochastic"] * exact.sign()).sum()
    expected = exact.abs().sum()
    # of each element: at most 8 roundings, of which one of a step s is off by the gap with probability s / gap
    assert abs(moved - expected) < 5 * math.sqrt(float(8 * expected * 2 * GAP))


def moves(low_precision: str, *, n: int = 40_000, seed: int = 0, name: str = "w") -> torch.Tensor:
    """What ``N_STEPS`` steps of ``STEP`` do to weights of 1, in units of one step."""
    weight = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    groups = [{"params": [(name, weight)], "role": "hidden", "split": None}]
    optimizer = AdamW(groups, lr=STEP, eps=1e-30, low_precision=low_precision, seed=seed)
    follow(optimizer, weight, [torch.ones(n)] * N_STEPS)
    values = optimizer.state[weight].get("master", weight.detach())
    return (1 - values.double()) / STEP


def test_updates_of_2e_5_are_kept_exactly_in_expectation_or_not_at_all() -> None:
    assert not moves("nearest").any()
    # 60 float32 additions to a number near 1
    torch.testing.assert_close(moves("master"), torch.full((40_000,), float(N_STEPS)).double(), rtol=0, atol=0.2)
    by_chance = moves("stochastic")
    spread = GAP / STEP * math.sqrt(N_STEPS * STEP / GAP / len(by_chance))
    assert abs(float(by_chance.mean()) - N_STEPS) < 5 * spread


def test_chance_is_a_function_of_seed_and_name() -> None:
    assert torch.equal(moves("stochastic"), moves("stochastic"))
    assert not torch.equal(moves("stochastic"), moves("stochastic", seed=1))
    assert not torch.equal(moves("stochastic"), moves("stochastic", name="v"))


def test_steps_are_rounded_with_bits_of_their_own() -> None:
    weight = nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    optimizer = SGD([weight], lr=GAP / 2, momentum=0.0, low_precision="stochastic")
    first = follow(optimizer, weight, [torch.ones(5000)])
    weight.data.fill_(1.0)
    second = follow(optimizer, weight, [torch.ones(5000)])
    # alike in about half of the elements, as two throws of a coin
    assert 2200 < int((first == second).sum()) < 2800


@every_way
def test_portions_of_a_group_move_as_the_whole(low_precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small_gpt().bfloat16()
    whole = run(build("adamw", expected, low_precision=low_precision), expected, range(3))
    monkeypatch.setattr(AdamW, "elements_at_once", 300)
    model = small_gpt().bfloat16()
    optimizer: Any = build("adamw", model, low_precision=low_precision)
    portions = [len(list(optimizer._portions(group))) for group in optimizer.param_groups]
    assert (max(portions) > 2) == (low_precision != "master")
    assert_equal(run(optimizer, model, range(3)), whole)


def test_float16_rounds_to_nearest_or_has_masters_but_no_chance() -> None:
    weight, groups = one_matrix(3, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="low_precision = 'stochastic': expected bfloat16 parameters, got float16"):
        AdamW(groups, low_precision="stochastic")
    follow(AdamW(groups), weight, [torch.ones(3, 4)])
    assert weight.dtype == torch.float16


def test_masters_take_up_what_others_write_and_keep_what_they_leave() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SGD([weight], lr=STEP, momentum=0.0)
    follow(optimizer, weight, [torch.ones(4)])
    with torch.no_grad():
        weight[0] = 3.0
    follow(optimizer, weight, [torch.ones(4)])
    expected = torch.tensor([3 - STEP, *[1 - 2 * STEP] * 3])
    torch.testing.assert_close(optimizer.state[weight]["master"], expected, rtol=0, atol=1e-6)


def test_another_base_is_not_overwritten_by_the_masters_of_an_old_state() -> None:
    old = small_gpt().bfloat16()
    optimizer = build("adamw", old)
    run(optimizer, old, range(2))
    base = small_gpt().bfloat16()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3.0)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    moved = build("adamw", base, lr=0.0)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = 0.0
    moved.load_state_dict(state)
    assert_equal(run(moved, base, range(1)), before)
