from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_consistency.optimizers import Muon, parameter_groups
from lit_consistency.optimizers.muon import warm_momentum
from lit_consistency.optimizers.normuon import normalize_rows
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt
from tests.reference.optimizers import normuon_trajectory


def test_cautious_decay_shrinks_only_where_update_and_weight_have_one_sign() -> None:
    grads = random_grads((6, 5), 1)
    moved, options = {}, {"lr": 0.1, "weight_decay": 0.5}
    for name, more in {"cautious": {"cautious_decay": True}, "all": {}, "none": {"weight_decay": 0.0}}.items():
        parameter, groups = one_matrix(6, 5)
        start = parameter.detach().clone()
        moved[name] = follow(Muon(groups, **(options | more)), parameter, grads)
    agree = (start - moved["none"]) * start >= 0
    assert 0 < int(agree.sum()) < agree.numel()
    torch.testing.assert_close(moved["cautious"][agree], moved["all"][agree])
    assert torch.equal(moved["cautious"][~agree], moved["none"][~agree])


def test_normuon_is_the_reference_row_by_row() -> None:
    grads = random_grads((12, 8), 3)
    parameter, groups = one_matrix(12, 8)
    start = parameter.detach().clone()
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.0, "ns_steps": 14, "normuon_beta2": 0.9}
    found = follow(Muon(groups, normuon=True, **options), parameter, grads)
    torch.testing.assert_close(found, normuon_trajectory(start, grads, lr=0.05, beta=0.9), rtol=0, atol=1e-10)


def test_normuon_keeps_the_norm_and_evens_out_the_rows() -> None:
    update = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update[2] = 0
    found, second = normalize_rows(update, torch.zeros(3, 6, 1, dtype=torch.float64), beta=0.9)
    torch.testing.assert_close(found.norm(dim=(1, 2)), update.norm(dim=(1, 2)))
    rows = found[:2].norm(dim=-1)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    assert not found[2].any()
    torch.testing.assert_close(second[..., 0], 0.1 * update.square().mean(-1))


def test_the_state_of_normuon_is_one_number_for_each_row() -> None:
    parameter, groups = one_matrix(6, 5, split=(4, 2))
    optimizer = Muon(groups, normuon=True)
    follow(optimizer, parameter, random_grads((6, 5), 1))
    assert {key: tuple(value.shape) for key, value in optimizer.state[parameter].items()} == {
        "momentum_buffer": (6, 5),
        "row_second_moment": (6, 1),
    }


def test_the_momentum_warms_up_from_085() -> None:
    assert [warm_momentum(0.95, step, 4) for step in (0, 2, 4, 9)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert warm_momentum(0.8, 0, 4) == 0.8
    assert warm_momentum(0.95, 0, 0) == 0.95


def test_a_warm_up_counts_steps_in_the_saved_state() -> None:
    grads = random_grads((6, 5), 4)
    straight, groups = one_matrix(6, 5)
    expected = follow(Muon(groups, momentum_warmup_steps=3), straight, grads)
    parameter, groups = one_matrix(6, 5)
    first = Muon(groups, momentum_warmup_steps=3)
    follow(first, parameter, grads[:2])
    second = Muon([{"params": [("w", parameter)], "role": "hidden", "split": None}], momentum_warmup_steps=3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(follow(second, parameter, grads[2:]), expected)
    plain, groups = one_matrix(6, 5)
    assert not torch.equal(follow(Muon(groups), plain, grads), expected)


def test_role_lr_scales_the_rates_of_its_roles() -> None:
    optimizer = Muon(parameter_groups(small_gpt()), lr=0.02, adamw_lr=0.01, role_lr={"hidden": 0.5, "head": 2.0})
    assert {g["role"]: g["lr"] for g in optimizer.param_groups} == {
        "hidden": 0.01,
        "embedding": 0.01,
        "head": 0.02,
        "norm": 0.01,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role_lr": {"hiden": 1.0}}, "role_lr = 'hiden': expected one of hidden"),
        ({"role_lr": {"hidden": -1.0}}, "role_lr.hidden = -1.0: expected a finite"),
        ({"role_lr": {"adapter": 2.0}}, "role_lr.adapter = 2.0: no parameter has this role: expected hidden"),
        ({"normuon_beta2": 1.0}, "normuon_beta2 = 1.0"),
        ({"momentum_warmup_steps": -1}, "momentum_warmup_steps = -1"),
        ({"ns_form": "gramm"}, "ns_form = 'gramm': expected one of auto, direct, gram"),
        ({"ns_dtype": "float16"}, "ns_dtype = 'float16'"),
        ({"adapters": "both"}, "adapters = 'both': expected one of factor, paired"),
    ],
)
def test_errors_name_the_option_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Muon(one_matrix(2, 3)[1], **options)


@pytest.mark.parametrize("qkv", ["split", "head"])
def test_stacked_blocks_move_as_blocks_one_by_one(qkv: Any) -> None:
    """Queries, keys and values of two layers, in stacks or each as a parameter of its own."""
    split = {"split": (8, 4, 4), "head": (4,) * 4}[qkv]
    grads = random_grads((2, 16, 6), 2)
    stacked = [torch.nn.Parameter(torch.zeros(16, 6, dtype=torch.float64)) for _ in range(2)]
    optimizer = Muon([{"params": list(zip("ab", stacked, strict=True)), "role": "hidden", "split": split}])
    rows = [block for p in stacked for block in p.detach().split(split)]
    single = [torch.nn.Parameter(block.clone()) for block in rows]
    names = [str(i) for i in range(len(single))]
    alone = Muon([{"params": list(zip(names, single, strict=True)), "role": "hidden", "split": None}])
    for grad in grads:
        for parameter, value in zip(stacked, grad, strict=True):
            parameter.grad = value
        for parameter, value in zip(single, [b for g in grad for b in g.split(split)], strict=True):
            parameter.grad = value
        optimizer.step()
        alone.step()
    for found, expected in zip([b for p in stacked for b in p.detach().split(split)], single, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_a_frozen_group_is_refused_with_the_table() -> None:
    parameter, groups = one_matrix(4, 3)
    parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"(?s)group of role hidden is frozen.*hidden .* 1 +12"):
        Muon(groups)


def test_an_empty_matrix_or_group_is_refused_with_the_table() -> None:
    _, groups = one_matrix(4, 3)
    sharded_away = torch.nn.Parameter(torch.zeros(0))
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    for parameter in (sharded_away, empty):
        with pytest.raises(ValueError, match=r"(?s)parameter away of role hidden has shape \[0.*hidden .* 1 +0"):
            Muon([*groups, {"params": [("away", parameter)], "role": "hidden", "split": None}])
    with pytest.raises(ValueError, match=r"(?s)a group of role adapter is empty.*adapter .* 0 +0"):
        Muon([*groups, {"params": [], "role": "adapter", "split": None}])
