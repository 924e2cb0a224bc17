from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.optimizers import Muon, parameter_groups
from lit_consistency.optimizers.lora_muon import DAMPING, inverse_roots, paired_update
from tests.optimizers.models import small_lora
from tests.reference import optimizers as reference

OPTIONS: dict[str, Any] = {"ns_steps": 14, "ns_coefficients": "polar_express", "lr_scale": "match_rms_adamw"}


def pair(rows: int = 12, r: int = 3, columns: int = 8, seed: int = 0) -> list[Tensor]:
    """Momentum of B, B, momentum of A, A; one pair in the batch."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, rows, r), (1, rows, r), (1, r, columns), (1, r, columns)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def set_grads(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def test_a_pair_moves_as_the_reference_by_singular_values() -> None:
    tensors = pair()
    expected = reference.paired_update(*(tensor[0] for tensor in tensors), damping=DAMPING)
    for found, update in zip(paired_update(*tensors, **OPTIONS), expected, strict=True):
        torch.testing.assert_close(found[0], update, rtol=0, atol=1e-9)


def test_both_terms_of_the_change_have_at_most_half_the_norm_of_a_muon_update() -> None:
    M_B, B, M_A, A = pair()
    update_B, update_A = paired_update(M_B, B, M_A, A, **(OPTIONS | {"lr_scale": "original"}))
    whole = (12 / 8) ** 0.5
    for term in (update_B @ A, B @ update_A):
        assert 0.4 * whole < float(torch.linalg.matrix_norm(term, 2)) <= 0.5 * whole * (1 + 1e-9)


def test_a_zero_factor_stays_finite_moves_itself_and_leaves_the_other() -> None:
    M_B, B, M_A, A = pair()
    # the gradient of A is B^T times something, zero with B
    update_B, update_A = paired_update(M_B, torch.zeros_like(B), torch.zeros_like(M_A), A, **OPTIONS)
    assert update_B.isfinite().all()
    assert float(torch.linalg.matrix_norm(update_B @ A, 2)) == pytest.approx(0.5 * 0.2 * 12**0.5, rel=1e-6)
    assert not update_A.any()
    both = paired_update(M_B, torch.zeros_like(B), M_A, torch.zeros_like(A), **OPTIONS)
    assert not any(update.any() for update in both)


def test_a_small_factor_does_not_make_the_other_leap() -> None:
    M_B, B, M_A, A = pair()
    _, update_A = paired_update(M_B, B * 1e-6, M_A, A, **OPTIONS)
    largest_A = float(torch.linalg.matrix_norm(A, 2))
    assert float(torch.linalg.matrix_norm(update_A, 2)) <= 0.5 * 0.2 * 12**0.5 / (DAMPING * largest_A) * 1.01


def test_a_pair_that_is_not_finite_poisons_no_other_of_its_batch() -> None:
    clean, other = pair(), pair(seed=1)
    batch = [torch.cat(tensors) for tensors in zip(clean, other, strict=True)]
    expected = paired_update(*batch, **OPTIONS)
    batch[1][0, 2, 1] = float("nan")
    for found, update in zip(paired_update(*batch, **OPTIONS), expected, strict=True):
        assert found[0].isnan().all()
        assert torch.equal(found[1], update[1])


def test_inverse_roots_are_inverse_and_damped() -> None:
    _, B, _, A = pair()
    root_A, _ = inverse_roots(A @ A.mT, B.mT @ B)
    damping = (DAMPING * torch.linalg.matrix_norm(B, 2)) ** 2
    gram = A @ A.mT + damping * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(root_A @ gram @ root_A, torch.eye(3, dtype=torch.float64)[None])


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_pairs_of_a_model_are_found_by_name_and_block(weight_decay: float) -> None:
    model = small_lora(lora_key=True).double()
    qkv = model.transformer.h[0].attn.qkv
    with torch.no_grad():
        qkv.lora_B.normal_(generator=torch.Generator().manual_seed(5))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Muon(
        parameter_groups(model), adapters="paired", lr=0.1, momentum=0.0, weight_decay=weight_decay, ns_steps=14
    )
    set_grads(model, 0)
    optimizer.step()
    shrink = (1 - 0.1 * weight_decay) ** 0.5
    before = (start["transformer.h.0.attn.qkv.lora_B"], start["transformer.h.0.attn.qkv.lora_A"])
    for i, rows in enumerate([slice(0, 16), slice(16, 24), slice(24, 32)]):
        own = slice(2 * i, 2 * i + 2)
        tensors = (qkv.lora_B.grad[rows], before[0][rows], qkv.lora_A.grad[own], before[1][own])
        update_B, update_A = reference.paired_update(*tensors, damping=DAMPING)
        expected_B, expected_A = before[0][rows] * shrink, before[1][own] * shrink
        torch.testing.assert_close(qkv.lora_B.detach()[rows], expected_B - 0.1 * update_B / shrink, rtol=0, atol=1e-9)
        torch.testing.assert_close(qkv.lora_A.detach()[own], expected_A - 0.1 * update_A / shrink, rtol=0, atol=1e-9)
    assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters() if n.endswith("lora_B"))


def test_a_partner_without_gradient_is_refused() -> None:
    model = small_lora().double()
    optimizer = Muon(parameter_groups(model), adapters="paired")
    set_grads(model, 0)
    model.transformer.h[0].mlp.proj.lora_A.grad = None
    with pytest.raises(ValueError, match=r"the partner of transformer.h.0.mlp.proj.lora_B has no gradient"):
        optimizer.step()


def test_what_does_not_go_with_pairs_is_refused() -> None:
    model = small_lora()
    for options, message in [
        ({"normuon": True}, "normuon = true: expected false with adapters = paired"),
        ({"cautious_decay": True}, "cautious_decay = true: expected false"),
        ({"weight_decay": 20.0, "lr": 0.1}, r"weight_decay = 20.0: expected lr \* weight_decay < 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Muon(parameter_groups(model), adapters="paired", **options)
    with pytest.raises(ValueError, match="use qkv = split"):
        Muon(parameter_groups(model, "head"), adapters="paired")
    groups = parameter_groups(model)
    with pytest.raises(ValueError, match="adapters = paired: expected all adapters at construction"):
        Muon(groups, adapters="paired").add_param_group(groups[0])
    model.transformer.h[0].mlp.proj.lora_A.requires_grad_(False)
    with pytest.raises(ValueError, match=r"mlp.proj has \['lora_B'\]: expected lora_A and lora_B"):
        Muon(parameter_groups(model), adapters="paired")
