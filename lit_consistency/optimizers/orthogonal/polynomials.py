"""The polynomials of the Newton-Schulz iterations: a x + b x^3 + c x^5 in each step, on singular values in [0, 1]."""

from __future__ import annotations

from typing import Literal, NamedTuple

Coefficients = Literal["polar_express", "quintic"]
Polynomial = tuple[float, float, float]


class Iteration(NamedTuple):
    """Polynomials (a, b, c), one for each step, of which the last is repeated, and the margin on the norm."""

    polynomials: tuple[Polynomial, ...]
    margin: float

    def of(self, ns_steps: int) -> list[Polynomial]:
        """The polynomials of so many steps."""
        return [self.polynomials[min(step, len(self.polynomials) - 1)] for step in range(ns_steps)]


# Algorithm 1 of Amsel et al. 2025, The Polar Express, arXiv 2505.16932: best polynomials for singular values in
# [1e-3, 1] and what becomes of them.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_POLAR_EXPRESS_LIMIT = (1.875, -1.25, 0.375)
# Same place: room for rounding in half precision, in every polynomial but the limit, and on the norm.
_SAFETY = 1.01

ITERATIONS: dict[str, Iteration] = {
    "polar_express": Iteration(
        (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS), _POLAR_EXPRESS_LIMIT), _SAFETY
    ),
    # Jordan 2024, Muon, function zeropower_via_newtonschulz5,
    # https://github.com/KellerJordan/Muon/blob/f90a42b28e00b8d9d2d05865fe90d9f39abcbcbd/muon.py
    "quintic": Iteration(((3.4445, -4.7750, 2.0315),), 1.0),
}
