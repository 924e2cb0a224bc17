from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.orthogonal.newton_schulz import ITERATIONS, RESTART_EVERY, add_newton_schulz_
from lit_consistency.optimizers.orthogonal.newton_schulz_cpu import CHUNK, add_, chunks_of_rows, panel_rows, symmetric_
from tests.reference.optimizers import newton_schulz_by_svd

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(30, 30), (20, 50), (300, 270)])
def test_the_result_is_added_to_the_target(shape: tuple[int, int], form: str) -> None:
    matrix, target = noise(*shape) * 1e3, noise(*shape, seed=1)
    polynomials, margin = ITERATIONS["polar_express"]
    expected = 0.9 * target - 0.3 * newton_schulz_by_svd(matrix, polynomials, margin, steps=4)
    before, workspace = matrix.clone(), Workspace()
    options = {"ns_steps": 4, "ns_coefficients": "polar_express", "form": form, "workspace": workspace}
    assert add_newton_schulz_(target, matrix, beta=0.9, alpha=-0.3, **options)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-10)
    assert torch.equal(matrix, before)
    # what the memory holds from before does not matter, nor does a target whose content is not asked for
    again = torch.full_like(target, float("nan"))
    assert add_newton_schulz_(again, matrix, beta=0.0, alpha=1.0, **options)
    assert not again.isnan().any()


@pytest.mark.parametrize("scale", [0.0, 1e-14, 1e14, float("nan"), float("inf")])
def test_a_norm_of_unusual_size_changes_nothing(scale: float) -> None:
    target = noise(4, 6)
    before = target.clone()
    options = {"ns_steps": 5, "ns_coefficients": "quintic", "form": "gram", "workspace": Workspace()}
    assert not add_newton_schulz_(target, noise(4, 6, seed=1) * scale, beta=0.5, alpha=1.0, **options)
    assert torch.equal(target, before)


@pytest.mark.parametrize("steps", [RESTART_EVERY, 2 * RESTART_EVERY, 2 * RESTART_EVERY + 1])
def test_half_precision_is_close_after_each_number_of_restarts(steps: int) -> None:
    matrix = noise(24, 40)
    polynomials, margin = ITERATIONS["polar_express"]
    exact = newton_schulz_by_svd(matrix, polynomials, margin, steps=steps)
    target = torch.zeros(24, 40)
    options = {"ns_steps": steps, "ns_coefficients": "polar_express", "form": "gram", "workspace": Workspace()}
    half = (matrix / matrix.norm() / margin).bfloat16()
    assert add_newton_schulz_(target, half, beta=1.0, alpha=1.0, **options)
    assert float((target - exact).norm() / exact.norm()) < 16 * 2**-8


@pytest.mark.parametrize("rows", [256, 257, 500])
def test_symmetric_products_are_whole_products(rows: int) -> None:
    A, C = noise(rows, 40), noise(rows, rows, seed=1)
    C = C + C.mT
    assert (panel_rows(rows, 40, F64) < rows) == (rows > 256)
    expected = 2 * C + 3 * A @ A.mT
    found = symmetric_(torch.full_like(C, float("nan")), A, A.mT, C, beta=2, alpha=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(symmetric_(C, A, A.mT, alpha=3), 3 * A @ A.mT, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tall", [False, True])
def test_half_precision_is_added_part_by_part(tall: bool) -> None:
    X = noise(90, 800).bfloat16()
    target = noise(90, 800, seed=1)
    if tall:
        X, target = noise(800, 90).bfloat16().mT, target.mT.contiguous().mT
    expected = 0.5 * target + 2 * X.double()
    assert len(list(chunks_of_rows(X))) > 1
    add_(target, X, 0.5, 2.0, Workspace())
    torch.testing.assert_close(target, expected)
    assert [len(part) for (part,) in chunks_of_rows(torch.empty(3, 2 * CHUNK))] == [1, 1, 1]
