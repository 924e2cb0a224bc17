from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers import AdamW, parameter_groups
from lit_consistency.optimizers.adamw import are_alike, bias_correction, can_fuse
from tests.optimizers.models import follow, one_matrix, random_grads, small_gpt

OPTIONS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def test_it_is_torch_adamw_in_float64() -> None:
    grads = random_grads((5, 7), 6)
    ours, groups = one_matrix(5, 7)
    theirs, _ = one_matrix(5, 7)
    found = follow(AdamW(groups, **OPTIONS), ours, grads)
    expected = follow(torch.optim.AdamW([theirs], **OPTIONS), theirs, grads)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torch_fused_adamw_bit_for_bit(dtype: torch.dtype) -> None:
    grads = random_grads((33, 17), 6)
    ours, groups = one_matrix(33, 17, dtype=dtype)
    theirs, _ = one_matrix(33, 17, dtype=dtype)
    found = follow(AdamW(groups, **OPTIONS), ours, grads)
    assert torch.equal(found, follow(torch.optim.AdamW([theirs], fused=True, **OPTIONS), theirs, grads))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.9, 0.0), (0.0, 0.0)])
def test_without_the_fused_kernel_it_is_the_same(betas: tuple[float, float]) -> None:
    grads = random_grads((5, 7), 4)
    fused, groups = one_matrix(5, 7)
    eager, eager_groups = one_matrix(5, 7)
    # a gradient of another memory layout is not for the fused kernel
    strided = [grad.T.contiguous().T for grad in grads]
    assert not can_fuse(eager, strided[0])
    assert can_fuse(fused, grads[0])
    options = OPTIONS | {"betas": betas}
    found = follow(AdamW(eager_groups, **options), eager, strided)
    torch.testing.assert_close(found, follow(AdamW(groups, **options), fused, grads), rtol=1e-13, atol=1e-14)


def test_bfloat16_parameters_take_the_float32_step_rounded_once() -> None:
    half, groups = one_matrix(4, 6, dtype=torch.bfloat16)
    full, full_groups = one_matrix(4, 6, dtype=torch.float32)
    with torch.no_grad():
        full.copy_(half)
    grad = [random_grads((4, 6), 1)[0].bfloat16()]
    found = follow(AdamW(groups, **OPTIONS), half, grad)
    assert torch.equal(found, follow(AdamW(full_groups, **OPTIONS), full, grad).bfloat16())


def test_bias_correction_does_not_cancel_in_float32() -> None:
    step = torch.tensor(1.0)
    assert float(bias_correction(0.999, step, torch.float32)) == pytest.approx(0.001, rel=1e-6)
    # at the far end nothing is left to correct
    assert float(bias_correction(0.999, torch.tensor(1e6), torch.float32)) == 1.0


@pytest.mark.parametrize(
    ("decay_roles", "still"), [(["hidden"], {"embedding", "head", "norm"}), (["norm", "head"], {"embedding", "hidden"})]
)
def test_only_decay_roles_decay(decay_roles: list[str], still: set[str]) -> None:
    model = small_gpt()
    groups = parameter_groups(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(groups, lr=0.1, weight_decay=0.5, decay_roles=decay_roles).step()
    for group in groups:
        for name, parameter in group["params"]:
            expected = before[name] if group["role"] in still else before[name] * (1 - 0.1 * 0.5)
            assert torch.equal(parameter, expected), name


def test_parameters_without_roles_decay() -> None:
    parameter, _ = one_matrix(2, 3)
    before = parameter.detach().clone()
    follow(AdamW([parameter], lr=0.1, weight_decay=0.5), parameter, [torch.zeros(2, 3)])
    torch.testing.assert_close(parameter.detach(), before * 0.95)


def test_a_group_keeps_its_own_weight_decay() -> None:
    _, groups = one_matrix(2, 3)
    groups[0]["weight_decay"] = 0.25
    assert AdamW(groups, weight_decay=0.5).param_groups[0]["weight_decay"] == 0.25


def test_bfloat16_gradients_are_cast_in_portions_and_move_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(33, 17), (5,), (4, 4), (600,), ()]
    starts = [random_grads(shape, 1, torch.float32)[0] for shape in shapes]
    results = []
    for at_once in (2**18, 128):  # whole vectors: the kernel rounds a tail otherwise
        monkeypatch.setattr("lit_consistency.optimizers.adamw.CAST_AT_ONCE", at_once)
        params = [torch.nn.Parameter(start.bfloat16()) for start in starts]
        optimizer = AdamW(params, **OPTIONS)
        for seed in range(3):
            for parameter in params:
                parameter.grad = parameter.detach().sin() + seed
            optimizer.step()
        results.append([optimizer.state[p][key] for p in params for key in ("master", "exp_avg", "exp_avg_sq", "step")])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_parameters_of_several_dtypes_share_a_group() -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    shared = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    alone = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    for parameter in [*shared, *alone]:
        parameter.grad = torch.full_like(parameter, 0.5)
    AdamW(shared, **OPTIONS).step()
    for parameter in alone:
        AdamW([parameter], **OPTIONS).step()
    assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_sets_of_tensors_that_one_call_takes() -> None:
    a, b = torch.ones(2, 3), torch.ones(3)
    assert are_alike([a, b], [a, b])
    assert not are_alike([a, b], [a, b.double()])
    assert not are_alike([a, b], [torch.ones(3, 2).T, b])
    assert not are_alike([a.bfloat16()], [a.bfloat16()])
