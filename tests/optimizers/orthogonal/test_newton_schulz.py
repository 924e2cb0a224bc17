from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.orthogonal.orthogonalizer import newton_schulz
from lit_consistency.optimizers.orthogonal.polynomials import ITERATIONS
from tests.reference.optimizers import newton_schulz_by_svd, polar_factor


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


@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("ns_coefficients", ["polar_express", "quintic"])
@pytest.mark.parametrize("shape", [(24, 24), (20, 60), (60, 20), (400, 500), (450, 390)])
def test_both_forms_are_the_polynomials_of_the_singular_values(
    shape: tuple[int, int], ns_coefficients: str, form: str
) -> None:
    """Short sides above 384 take symmetric products block by block, with a last block that is smaller."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    polynomials, margin = ITERATIONS[ns_coefficients]
    expected = newton_schulz_by_svd(matrix, polynomials, margin, steps=5)
    found = newton_schulz(matrix, ns_coefficients=ns_coefficients, form=form)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_any_number_of_steps_is_the_same_in_both_forms(steps: int) -> None:
    batch = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct, gram = (newton_schulz(batch, ns_steps=steps, form=form) for form in ("direct", "gram"))
    torch.testing.assert_close(gram, direct, rtol=0, atol=1e-11)


@pytest.mark.parametrize("decades", [1, 2, 4])
def test_the_gram_form_in_bfloat16_stays_within_its_precision_by_its_restart(
    decades: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = with_singular_values(torch.logspace(0, -decades, 200, dtype=torch.float64), 200, 600)
    exact = newton_schulz(matrix)

    def error_and_largest(form: str) -> tuple[float, float]:
        found = newton_schulz(matrix.float(), form=form, dtype=torch.bfloat16)
        return float((found - exact).norm() / exact.norm()), float(torch.linalg.svdvals(found).max())

    direct, _ = error_and_largest("direct")
    error, largest = error_and_largest("gram")
    # 16 roundings of 2 ** -8, or what the direct form loses to them where the spectrum falls far below
    assert error < max(16 * 2**-8, 1.5 * direct)
    assert largest < 1.15  # 1.13 in exact arithmetic
    monkeypatch.setattr("lit_consistency.optimizers.orthogonal.orthogonalizer.RESTART_EVERY", 99)
    if decades > 1:
        error_without, largest_without = error_and_largest("gram")
        assert error_without > 1.5 * error
        assert largest_without > 1.15


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_float32_is_close_to_float64_over_five_decades(form: str) -> None:
    matrix = with_singular_values(torch.logspace(0, -5, 400, dtype=torch.float64), 400, 800)
    exact = newton_schulz(matrix)
    error = newton_schulz(matrix.float(), form=form) - exact
    assert float(error.norm() / exact.norm()) < {"direct": 1e-4, "gram": 1e-3}[form]


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_a_batch_has_matrices_of_any_scale(scale: float) -> None:
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    if scale < 1e-38:  # a multiple that float32's smallest numbers keep
        scale = 2.0**-140
    found = newton_schulz(torch.stack([matrix, matrix * scale, torch.zeros(2, 3)]), form="gram")
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)
    assert not found[2].any()
