from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.newton_schulz import newton_schulz
from tests.reference.optimizers import polar_factor


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))[0]
    return u * values @ v.T


# the least singular value that still comes out around 1, relative to the Frobenius norm, and the bounds there
@pytest.mark.parametrize(
    ("ns_coefficients", "smallest", "low", "high"), [("polar_express", 1e-3, 0.84, 1.13), ("quintic", 3e-3, 0.68, 1.21)]
)
@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_singular_values_come_out_around_one(
    ns_coefficients: str, smallest: float, low: float, high: float, shape: tuple[int, int]
) -> None:
    values = torch.logspace(0, -6, 24, dtype=torch.float64)
    matrix = with_singular_values(values, *shape)
    found = torch.linalg.svdvals(newton_schulz(matrix, ns_coefficients=ns_coefficients))
    large = found[: int((values / values.norm() >= smallest).sum())]
    assert low < float(large.min())
    assert float(found.max()) < high


def test_many_steps_of_polar_express_are_the_polar_factor() -> None:
    matrix = with_singular_values(torch.logspace(0, -3, 10, dtype=torch.float64), 10, 17)
    torch.testing.assert_close(newton_schulz(matrix, ns_steps=12), polar_factor(matrix), rtol=0, atol=1e-12)


def test_singular_vectors_are_kept() -> None:
    matrix = with_singular_values(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), 6, 9)
    found = newton_schulz(matrix)
    # U^T X V is diagonal for the singular vectors of the input
    u, _, vh = torch.linalg.svd(matrix)
    inner = u.T @ found @ vh.T
    torch.testing.assert_close(inner, torch.diagonal_scatter(torch.zeros_like(inner), inner.diagonal()))


def test_a_tall_matrix_is_the_transpose_of_a_wide_one() -> None:
    matrix = torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(newton_schulz(matrix.T), newton_schulz(matrix).T)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-8, 1e8, 1e30])
def test_the_scale_of_the_matrix_does_not_matter(scale: float) -> None:
    # entries that a multiplication by a power of ten keeps, also among float32's smallest
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    tiny = torch.tensor([[round(3e-42 / 1.4e-45), 0, 0], [0, -round(2e-42 / 1.4e-45), 0]]) * 1.4e-45
    scaled = tiny if scale < 1e-38 else matrix * scale
    torch.testing.assert_close(newton_schulz(scaled), newton_schulz(matrix), rtol=1e-2, atol=0)


def test_a_zero_matrix_gives_zero() -> None:
    assert torch.equal(newton_schulz(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_poisons_no_other_of_its_batch(bad: float) -> None:
    batch = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    clean = newton_schulz(batch)
    batch[1, 0, 0] = bad
    found = newton_schulz(batch)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_a_batch_is_its_matrices() -> None:
    batch = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(batch), torch.stack([newton_schulz(m) for m in batch]))


def test_float32_is_close_to_float64() -> None:
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = newton_schulz(matrix.float()).double() - newton_schulz(matrix)
    assert float(error.norm() / 32**0.5) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_iterations_return_the_dtype_of_the_state(dtype: torch.dtype) -> None:
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = newton_schulz(matrix, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    # bfloat16 has 8 bits, and five steps amplify its rounding
    torch.testing.assert_close(found, newton_schulz(matrix), rtol=0, atol=0.1)


def test_the_matrix_is_only_read() -> None:
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = matrix.clone()
    newton_schulz(matrix)
    assert torch.equal(matrix, before)
