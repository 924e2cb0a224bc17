from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.orthogonal.orthogonalizer import newton_schulz
from lit_consistency.optimizers.orthogonal.products import Products, panel_rows, symmetric_

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("rows", [256, 257, 500])
def test_symmetric_products_are_whole_products(rows: int) -> None:
    A, C = noise(rows, 40), noise(rows, rows, seed=1)
    C = C + C.mT
    assert (panel_rows(rows, 40, F64) < rows) == (rows > 256)
    expected = 2 * C + 3 * A @ A.mT
    result = symmetric_(torch.full_like(C, float("nan")), A, A.mT, C, beta=2, alpha=3)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(symmetric_(C, A, A.mT, alpha=3), 3 * A @ A.mT, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tall", [False, True])
def test_products_in_memory_used_again_are_right(tall: bool) -> None:
    X, P = noise(300, 420).mT[:300, :300] if tall else noise(300, 420), noise(300, 300, seed=1)
    workspace = Workspace()
    again = Products(X, workspace)
    for beta in (0.0, 0.5):
        result = X
        for _ in range(4):  # more often than there are pieces of memory
            previous, result = result, again.multiply(P, result, beta=beta, alpha=0.5)
            torch.testing.assert_close(result, 0.5 * P @ previous + beta * previous)
    out = torch.empty_like(X)
    assert again.multiply(P, X, out=out) is out
    torch.testing.assert_close(out, P @ X)
    square = again.symmetric("a", X, X.mT)
    torch.testing.assert_close(square, X @ X.mT)
    torch.testing.assert_close(again.symmetric("b", square, square, alpha=2), 2 * square @ square)


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(30, 30), (20, 50), (300, 270)])
def test_what_memory_holds_from_before_does_not_matter(shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    matrix, workspace = noise(*shape), Workspace()
    out = torch.full_like(matrix, float("nan"))
    options = {"ns_steps": 4, "form": form, "dtype": dtype, "workspace": workspace, "out": out}
    newton_schulz(torch.full_like(matrix, float("nan")), **options)
    assert out.isnan().all()
    assert newton_schulz(matrix, **options) is out
    assert torch.equal(out, newton_schulz(matrix, ns_steps=4, form=form, dtype=dtype))
    held = workspace.nbytes
    newton_schulz(matrix, **options)
    assert workspace.nbytes == held > 0
