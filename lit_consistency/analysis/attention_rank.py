r"""Attention rank: how many directions the products W_Q W_K^T and W_V W_O of every head use.

Per layer and head, with the weights as they multiply a column x of n_embd numbers:

.. math::
    W_{QK} = W_Q^T W_K \in R^{n_embd \times n_embd}, \qquad W_{VO} = W_O W_V \in R^{n_embd \times n_embd},

W_Q, W_K, W_V of head_size rows, W_O of head_size columns; heads of one query group share W_K and W_V. Both products
have rank head_size at most, and their singular values are those of a head_size x head_size core: with the QR
decompositions W_Q^T = Q_1 R_1 and W_K^T = Q_2 R_2, those of R_1 R_2^T. So the large matrices are never formed.

Convention: rotary embeddings turn q and k by angles that depend on the distance of two tokens. W_QK is taken without
the turn, which is exact at distance 0; ``qk_unrotated`` takes the dimensions of a head that are never turned
(rotary_percentage below 1), whose product is the same at every distance. Norms before or within attention (QK norm)
and biases are left out, as in the source.

Pseudo-rank: the least k whose k largest singular values sum to 95% of all, over head_size; the source's definition
(Han et al. 2026, Weight Decay Improves Language Model Plasticity, arXiv 2602.11137). Also stable rank
|W|_F^2 / |W|_2^2 and nuclear norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.figures import lines_over_layers
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.tables import mean_by
from lit_consistency.analysis.linalg.spectra import pseudo_rank, stable_rank
from lit_consistency.drawing.figure import Figure
from lit_consistency.records.tables import Row

PRODUCTS = {"qk": "W_QK", "qk_unrotated": "W_QK, dimensions without rotation", "vo": "W_VO"}


@dataclass(frozen=True)
class AttentionRank(Analysis):
    """Attention rank.

    Args:
        share: of the sum of the singular values that the pseudo-rank covers.
    """

    title: ClassVar[str] = "Rank of attention"

    share: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share}: expected 0 < share <= 1")

    def check(self, subject: Subject) -> None:
        """Heads must have rows of their own."""
        if subject.model.config.latent_attention:
            raise ValueError(
                f"{subject.model.folder}: latent attention shares its factors among heads; expected a model with W_Q, "
                "W_K and W_V"
            )

    def parts(self, subject: Subject) -> list[str]:
        """One a layer."""
        return [f"layer {layer}" for layer in range(subject.model.config.n_layer)]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every head and product."""
        layer = int(part.split()[1])
        spectra = head_spectra(subject, layer)
        return [
            {
                "layer": layer,
                "head": head,
                "product": name,
                "pseudo_rank": pseudo_rank(values, self.share) / subject.model.config.head_size,
                "stable_rank": stable_rank(values),
                "nuclear_norm": float(values.sum()),
                "operator_norm": float(values.max()),
            }
            for name, of_heads in spectra.items()
            for head, values in enumerate(of_heads)
        ]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Means over layers and heads."""
        return {
            f"{number}/{product}": value
            for number in ("pseudo_rank", "stable_rank", "nuclear_norm")
            for (product,), value in mean_by(rows, ("product",), number).items()
        }

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Pseudo-rank over the layers, one picture for each product."""
        return [
            lines_over_layers(
                [row for row in rows if row["product"] == product],
                "pseudo_rank",
                f"Pseudo-rank of {said}",
                f"Directions that hold {self.share:.0%} of the singular values, over head_size; mean over heads, "
                "shaded from the lowest to the highest head.",
            )
            for product, said in PRODUCTS.items()
            if any(row["product"] == product for row in rows)
        ]


def head_spectra(subject: Subject, layer: int) -> dict[str, list[Tensor]]:
    """Product -> singular values (head_size,) float64 of every head, descending."""
    config = subject.model.config
    matrices = {m.kind: subject.model.block(m, torch.float64) for m in subject.model.matrices if m.layer == layer}
    size, n_heads, n_groups = config.head_size, config.n_head, config.n_query_groups
    assert size is not None
    assert n_groups is not None
    q = matrices["attn.q"].view(n_heads, size, -1)
    k, v = (matrices[kind].view(n_groups, size, -1) for kind in ("attn.k", "attn.v"))
    o = matrices["attn.proj"].view(-1, n_heads, size).permute(1, 2, 0)  # (heads, head_size, n_embd)
    group = [head * n_groups // n_heads for head in range(n_heads)]
    rotated = config.rope_n_elem
    spectra = {"qk": core_spectrum(q, k[group]), "vo": core_spectrum(o, v[group])}
    if 0 < rotated < size:
        spectra["qk_unrotated"] = core_spectrum(q[:, rotated:], k[group][:, rotated:])
    return {name: list(spectra[name]) for name in PRODUCTS if name in spectra}


def core_spectrum(first: Tensor, second: Tensor) -> Tensor:
    """Singular values of first^T second, through the small core of two QR decompositions.

    Args:
        first: (heads, d, n).
        second: (heads, d, m).

    Returns:
        (heads, min(d, n, m)), descending.
    """
    cores = [torch.linalg.qr(matrix.mT, mode="r").R for matrix in (first, second)]
    return torch.linalg.svdvals(cores[0] @ cores[1].mT)
