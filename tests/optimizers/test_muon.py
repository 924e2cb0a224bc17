from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_consistency.optimizers import SGD, AdamW, Muon, parameter_groups
from lit_consistency.optimizers.orthogonal.choice import shape_scale
from lit_consistency.optimizers.orthogonal.orthogonalizer import newton_schulz
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt, small_lora
from tests.reference.optimizers import muon_trajectory


def train_once(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(0, 48, (2, 8), generator=generator)
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("split", [None, (6, 3, 3)])
def test_with_enough_steps_it_is_muon_by_svd(split: tuple[int, ...] | None) -> None:
    grads = random_grads((12, 8), 4)
    parameter, groups = one_matrix(12, 8, split=split)
    start = parameter.detach().clone()
    optimizer = Muon(groups, lr=0.05, momentum=0.9, weight_decay=0.2, ns_steps=14)
    expected = muon_trajectory(start, grads, list(split or (12,)), lr=0.05, momentum=0.9, decay=0.2)
    torch.testing.assert_close(follow(optimizer, parameter, grads), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_orthogonalization_it_is_sgd_with_momentum(nesterov: bool) -> None:
    grads = random_grads((12, 8), 5)
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov}
    ours, groups = one_matrix(12, 8, split=(6, 3, 3))
    theirs, their_groups = one_matrix(12, 8)
    found = follow(Muon(groups, orthogonalize=False, **options), ours, grads)
    assert torch.equal(found, follow(SGD(their_groups, **options), theirs, grads))


def test_what_is_no_matrix_takes_adamw() -> None:
    options: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    by_muon, by_adamw = small_gpt("pythia-14m").double(), small_gpt("pythia-14m").double()
    start = {name: p.detach().clone() for name, p in by_muon.named_parameters()}
    muon = Muon(parameter_groups(by_muon), **{f"adamw_{key}": value for key, value in options.items()})
    train_once(by_muon, muon, steps=1)
    train_once(by_adamw, AdamW(parameter_groups(by_adamw), **options), steps=1)
    reference = dict(by_adamw.named_parameters())
    for group in muon.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert torch.equal(parameter, reference[name]) == (group["role"] != "hidden"), name
            assert not torch.equal(parameter, start[name]) or parameter.grad.count_nonzero() == 0, name


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lr_scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_quintic_is_torch_muon(
    shape: tuple[int, int], lr_scale: Any, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch always iterates in bfloat16; kept from the cast, in float64, it gives the same numbers."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    grads = random_grads(shape, 4)
    ours, groups = one_matrix(*shape)
    theirs, _ = one_matrix(*shape)
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    found = follow(Muon(groups, ns_coefficients="quintic", lr_scale=lr_scale, **options), ours, grads)
    expected = follow(torch.optim.Muon([theirs], adjust_lr_fn=lr_scale, **options), theirs, grads)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_quintic_in_bfloat16_is_torch_muon_within_its_precision() -> None:
    """Two bfloat16 roundings (2 ** -8 each) apart, amplified by the slope 3.4 of the polynomial at zero."""
    grads = random_grads((48, 32), 3, dtype=torch.float32)
    ours, groups = one_matrix(48, 32, dtype=torch.float32)
    theirs, _ = one_matrix(48, 32, dtype=torch.float32)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0}
    start = ours.detach().clone()
    muon = Muon(groups, ns_coefficients="quintic", lr_scale="original", ns_dtype="bfloat16", **options)
    expected = follow(torch.optim.Muon([theirs], **options), theirs, grads)
    error = follow(muon, ours, grads) - expected
    assert float(error.norm() / (expected - start).norm()) < 2 * 2**-8 * 3.4445


def test_each_block_of_a_fused_matrix_moves_by_its_own_polar_factor_and_scale() -> None:
    grad = random_grads((12, 8), 1)
    parameter, groups = one_matrix(12, 8, split=(6, 4, 2))
    start = parameter.detach().clone()
    moved = start - follow(Muon(groups, lr=1.0, lr_scale="original"), parameter, grad)
    for found, block in zip(moved.split((6, 4, 2)), grad[0].split((6, 4, 2)), strict=True):
        torch.testing.assert_close(found, newton_schulz(block))


def test_a_stack_moves_as_its_matrices() -> None:
    grad = random_grads((3, 4, 6), 1)[0]
    stack = torch.nn.Parameter(torch.zeros(3, 4, 6, dtype=torch.float64))
    follow(Muon([{"params": [("experts", stack)], "role": "hidden", "split": None}], lr=1.0), stack, [grad])
    for found, matrix in zip(stack.detach(), grad, strict=True):
        torch.testing.assert_close(found, -newton_schulz(matrix) * 0.2 * math.sqrt(6))


def test_lora_factors_are_orthogonalized_one_by_one() -> None:
    model = small_lora().double()
    optimizer = Muon(parameter_groups(model), lr=1.0, lr_scale="spectral", momentum=0.0)
    factor = model.transformer.h[0].attn.qkv.lora_B
    train_once(model, optimizer, steps=1)
    # the adapters of query (16 rows) and value (8 rows), from zero
    for found, grad in zip(factor.detach().split((16, 8)), factor.grad.split((16, 8)), strict=True):
        torch.testing.assert_close(found, -newton_schulz(grad) * math.sqrt(grad.shape[0] / grad.shape[1]))


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    grads = random_grads((6, 5), 3)
    moved = []
    for scale in (1.0, 2.0**-90):
        parameter, groups = one_matrix(6, 5)
        moved.append(follow(Muon(groups, lr=0.1), parameter, [grad * scale for grad in grads]))
    torch.testing.assert_close(*moved)


def test_a_zero_gradient_moves_nothing() -> None:
    parameter, groups = one_matrix(6, 5)
    before = parameter.detach().clone()
    assert torch.equal(follow(Muon(groups, lr=0.1), parameter, [torch.zeros(6, 5)]), before)


def test_a_block_that_is_not_finite_poisons_no_other() -> None:
    grad = random_grads((12, 8), 1)[0]
    parameter, groups = one_matrix(12, 8, split=(6, 4, 2))
    clean, clean_groups = one_matrix(12, 8, split=(6, 4, 2))
    expected = follow(Muon(clean_groups), clean, [grad])
    grad[7, 3] = float("inf")
    found = follow(Muon(groups), parameter, [grad])
    assert found[6:10].isnan().all()
    assert torch.equal(found[:6], expected[:6])
    assert torch.equal(found[10:], expected[10:])


@pytest.mark.parametrize(
    ("lr_scale", "tall", "wide"),
    [("match_rms_adamw", 0.2 * 4, 0.2 * 4), ("original", 2.0, 1.0), ("spectral", 2.0, 0.5)],
)
def test_scale_from_the_shape_of_the_block(lr_scale: Any, tall: float, wide: float) -> None:
    assert shape_scale(lr_scale, 16, 4) == pytest.approx(tall)
    assert shape_scale(lr_scale, 4, 16) == pytest.approx(wide)


def test_match_rms_adamw_has_the_root_mean_square_of_an_adamw_update() -> None:
    parameter, groups = one_matrix(48, 20)
    before = parameter.detach().clone()
    update = before - follow(Muon(groups, lr=1.0, ns_steps=12), parameter, random_grads((48, 20), 1))
    # an orthogonal (48, 20) has root mean square 1 / sqrt(48)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-6)


def test_weight_decay_uses_the_learning_rate_without_scale() -> None:
    parameter, groups = one_matrix(6, 5)
    before = parameter.detach().clone()
    found = follow(Muon(groups, lr=0.1, weight_decay=0.5), parameter, [torch.zeros(6, 5)])
    torch.testing.assert_close(found, before * 0.95)


def test_decay_roles_hold_for_both_parts() -> None:
    groups = parameter_groups(small_gpt())
    optimizer = Muon(groups, weight_decay=0.5, adamw_weight_decay=0.25, decay_roles=["hidden", "head"])
    found = {group["role"]: group["weight_decay"] for group in optimizer.param_groups}
    assert found == {"hidden": 0.5, "embedding": 0.0, "head": 0.25, "norm": 0.0}


def test_groups_tell_gradient_clipping_which_are_orthogonalized() -> None:
    groups = parameter_groups(small_gpt())
    assert {g["role"]: g["orthogonalized"] for g in Muon(groups).param_groups} == {
        "hidden": True,
        "embedding": False,
        "head": False,
        "norm": False,
    }
    assert not any(group["orthogonalized"] for group in Muon(groups, orthogonalize=False).param_groups)


def test_a_schedule_keeps_the_ratio_of_the_two_learning_rates() -> None:
    optimizer = Muon(parameter_groups(small_gpt()), lr=0.02, adamw_lr=0.001)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    scheduler.step()
    assert {group["role"]: group["lr"] for group in optimizer.param_groups} == {
        "hidden": 0.01,
        "embedding": 0.0005,
        "head": 0.0005,
        "norm": 0.0005,
    }


@pytest.mark.parametrize(
    ("options", "rest"),
    [({}, 0.02), ({"adamw_lr_ratio": 0.5}, 0.01), ({"adamw_lr": 0.001}, 0.001), ({"role_lr": {"head": 2.0}}, 0.02)],
)
def test_the_rate_of_the_rest_follows_lr_by_a_ratio(options: dict[str, Any], rest: float) -> None:
    optimizer = Muon(parameter_groups(small_gpt()), lr=0.02, **options)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    head = rest * options.get("role_lr", {}).get("head", 1.0)
    assert rates == {"hidden": 0.02, "embedding": rest, "head": head, "norm": rest}


def test_a_rate_and_a_ratio_of_the_rest_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"^adamw_lr_ratio = 0.5: expected adamw_lr = null with it, got 0.01"):
        Muon(parameter_groups(small_gpt()), adamw_lr=0.01, adamw_lr_ratio=0.5)


def test_nothing_to_orthogonalize_is_refused_with_the_table() -> None:
    _, groups = one_matrix(6, 5, role="embedding")
    with pytest.raises(ValueError, match=r"(?s)expected a hidden matrix or an adapter.*embedding .* 1 +30"):
        Muon(groups)


def test_groups_without_roles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call parameter_groups\(model\)"):
        Muon(small_gpt().parameters())


def test_a_vector_among_the_matrices_is_refused() -> None:
    bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"parameter b of role hidden has shape \[3\]: expected a matrix"):
        Muon([{"params": [("b", bias)], "role": "hidden", "split": None}])


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}, {"ns_steps": 0}, {"adamw_lr": -1.0}])
def test_errors_name_the_option(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} = "):
        Muon(one_matrix(2, 3)[1], **options)
