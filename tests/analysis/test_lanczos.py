from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_consistency.analysis.linalg.lanczos import Spectrum, hutchinson, lanczos


def spectrum_of(matrix: Tensor, steps: int = 400, tolerance: float = 1e-9, largest: int = 5) -> Spectrum:
    return lanczos(
        lambda v: matrix @ v, len(matrix), n_largest=largest, smallest=True, tolerance=tolerance, max_steps=steps,
        generator=torch.Generator().manual_seed(0), dtype=matrix.dtype, device=torch.device("cpu"),
    )  # fmt: skip


def with_eigenvalues(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return (basis * values) @ basis.T


def test_the_ends_of_a_spectrum() -> None:
    """A bulk of both signs with a few outliers, as Hessians have it: far fewer steps than dimensions."""
    bulk = torch.linspace(-1, 1, 300, dtype=torch.float64)
    matrix = with_eigenvalues(torch.cat([bulk, torch.tensor([20.0, 12.0, 5.0, 4.0, 3.0, -6.0])]))
    found = spectrum_of(matrix)
    exact = torch.linalg.eigvalsh(matrix).flip(0)
    assert found.converged
    assert len(found.values) < 60
    torch.testing.assert_close(found.values[:5], exact[:5], rtol=1e-9, atol=0)
    assert float(found.values[-1]) == pytest.approx(-6.0, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_brings_no_copies(dtype: torch.dtype) -> None:
    """Long after convergence every eigenvalue still stands there once."""
    values = torch.cat([torch.linspace(0, 1, 150, dtype=torch.float64), torch.tensor([100.0, 50.0, 10.0])])
    found = spectrum_of(with_eigenvalues(values).to(dtype), steps=100, tolerance=1e-30)
    assert len(found.values) == 100
    assert not found.converged
    torch.testing.assert_close(found.values[:3], torch.tensor([100.0, 50.0, 10.0]).double(), rtol=1e-5, atol=1e-4)
    assert float(found.values[3]) < 1.001


def test_a_residual_bounds_the_distance_to_an_eigenvalue() -> None:
    matrix = with_eigenvalues(torch.linspace(-1, 3, 80, dtype=torch.float64))
    exact = torch.linalg.eigvalsh(matrix)
    found = spectrum_of(matrix, steps=12, tolerance=1e-30)
    distances = (found.values[:, None] - exact).abs().min(1).values
    assert bool((distances <= found.residuals + 1e-12).all())
    assert float(found.residuals[0]) > 1e-3


def test_a_residual_is_that_of_its_vector() -> None:
    """|A y - theta y| with y rebuilt from a basis of Krylov vectors by QR."""
    matrix = with_eigenvalues(torch.linspace(-1, 3, 40, dtype=torch.float64))
    found = spectrum_of(matrix, steps=6, tolerance=1e-30, largest=1)
    v = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    krylov = torch.stack([torch.linalg.matrix_power(matrix, i) @ v for i in range(6)], 1)
    basis = torch.linalg.qr(krylov).Q
    values, vectors = torch.linalg.eigh(basis.T @ matrix @ basis)
    top = basis @ vectors[:, -1]
    assert float(found.values[0]) == pytest.approx(float(values[-1]), rel=1e-8)
    assert float(found.residuals[0]) == pytest.approx(float((matrix @ top - values[-1] * top).norm()), rel=1e-6)


def test_equal_eigenvalues_are_found_by_starting_anew() -> None:
    """Of the identity one product spans all that Lanczos can reach."""
    found = spectrum_of(torch.eye(10, dtype=torch.float64) * 3, largest=4)
    assert found.converged
    assert found.values[:4].tolist() == pytest.approx([3.0] * 4)


def test_all_of_a_small_matrix() -> None:
    found = spectrum_of(torch.diag(torch.tensor([2.0, -1.0, 5.0]).double()), largest=2)
    assert found.values.tolist() == pytest.approx([5.0, 2.0, -1.0])


def trace_of(matrix: Tensor, n_probes: int, seed: int = 0) -> tuple[float, float]:
    return hutchinson(
        lambda probes, share: probes @ matrix, len(matrix), n_probes=n_probes,
        generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device=torch.device("cpu"),
    )  # fmt: skip


def test_the_trace_of_a_diagonal_matrix_is_exact() -> None:
    value, stderr = trace_of(torch.diag(torch.tensor([1.0, -4.0, 9.0]).double()), 3)
    assert (value, stderr) == (pytest.approx(6.0), pytest.approx(0.0, abs=1e-12))
    assert trace_of(torch.eye(3).double(), 1)[1] != trace_of(torch.eye(3).double(), 1)[1]  # NaN: one says nothing


def test_the_standard_error_is_the_spread_of_the_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_eigenvalues(torch.linspace(-1, 3, 30, dtype=torch.float64))
    runs = [trace_of(matrix, 50, seed) for seed in range(200)]
    values = torch.tensor([value for value, _ in runs])
    exact = (2 * ((matrix**2).sum() - (matrix.diag() ** 2).sum()) / 50) ** 0.5
    assert float(values.mean()) == pytest.approx(float(matrix.trace()), abs=4 * float(exact) / 200**0.5)
    assert float(values.std()) == pytest.approx(float(exact), rel=0.2)
    assert sum(stderr for _, stderr in runs) / 200 == pytest.approx(float(exact), rel=0.05)
    # few at a time where vectors are long: the same signs
    monkeypatch.setattr("lit_consistency.analysis.linalg.lanczos.AT_ONCE", 100)
    assert trace_of(matrix, 50) == pytest.approx(runs[0])
