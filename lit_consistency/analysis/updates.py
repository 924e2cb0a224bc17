r"""Updates: what a training did to every matrix, D = W - W_0; its size, spectrum, direction, and effect on inputs.

Per matrix (query, key and value of a fused weight apart, LoRA merged) with W_0 (m, n) of the base, r = min(m, n) and
singular values s_1 >= ... >= s_r of D:

- size: |D|_F, |D|_op = s_1, max |D_ij|, nuclear norm sum s_i; ``rms`` |D|_F / sqrt(m n), MoFO's distance of a block
  (Chen et al. 2024, arXiv 2407.20999; in total the mean over blocks); relative to the base's norm;
- shape: stable rank |D|_F^2 / s_1^2 (also over r; of a Gaussian square matrix it is r / 4), SVD entropy, sign-likeness
  (sum |D_ij|)^2 / (m n |D|_F^2), energy of the first ``rank`` directions, singular values along the spectrum;
- direction: cosine distance and angle of W and W_0; energy of D in the first ``rank`` left, right, and left and right
  singular vectors of W_0, also over what a random D has there; intruder dimensions among the first ``rank`` of W
  (Shuttleworth et al. 2024, arXiv 2410.21228); share of coordinates that moved.

Norms, biases and whatever else is no matrix have rows of their own, without a spectrum.

With ``--text``, of inputs x of the layer, as the base computes them on the first text, and C = E[x x^T]:

.. math::
    |D C^{1/2}|_F = \sqrt{E |D x|_2^2}

over |W_0 C^{1/2}|_F, and over |D|_F sqrt(tr C / n), which is what an update in random directions would have
(``input_alignment``). And how much of the two bounds that optimizers keep small the inputs use: Muon's
|D x|_2 <= |D|_op |x|_2, AdamW's |D x|_inf <= |D|_max |x|_1 (our reading of Liu et al. 2026, arXiv 2605.06654). An
embedding's input picks a row: C holds the tokens' frequencies.

Given up: from ``exact_up_to`` on only the top of a spectrum is known, which leaves out nuclear norm, entropy and
intruders (NaN; column ``spectrum_by``). A weight that embedding and head share is seen as embedding. Weights saved in
bfloat16 are rounded by 2^-9 of their size, and of a small or low-rank update this is most of the nuclear norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.figures import dots_by, lines_over_layers
from lit_consistency.analysis.core.inputs import linear_modules, moments, sample_inputs
from lit_consistency.analysis.core.model_files import Matrix, layer_and_kind
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.tables import grouped, mean_by
from lit_consistency.analysis.linalg.changes import (
    bounds_used,
    entrywise,
    intruder_dimensions,
    overlap,
    ratio,
    row_lengths,
    weighted_norm,
)
from lit_consistency.analysis.linalg.decompositions import GramSVD, KrylovSVD, gram_values
from lit_consistency.analysis.linalg.spectra import svd_entropy
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.inference.load import find_device
from lit_consistency.records.tables import Row

VECTORS = "vectors"
"""The part of all parameters that are no matrices."""
PERCENTS = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
"""Places of the spectrum that stand in the table: s_1 is at 0, s_r at 100."""
DRAWN_FROM = 1e-4
"""Singular values below this share of the first are drawn here: of low rank they are rounding errors."""
MEANS = (
    "relative_operator", "stable_rank", "stable_rank_share", "svd_entropy", "sign_likeness", "sign_likeness_moved",
    "top_energy", "cosine_distance", "overlap_both_ratio", "intruders", "input_alignment", "operator_bound_used",
    "max_bound_used",
)  # fmt: skip
"""Numbers whose mean over matrices stands for a model."""
SHAPES = {
    "stable_rank_share": (
        "Stable rank of updates, over the full rank",
        "|D|_F^2 / s_1^2 over the number of singular values: 1 is flat; a Gaussian square matrix has .25, one "
        "direction alone near 0.",
    ),
    "svd_entropy": (
        "SVD entropy of updates",
        "Entropy of the squared singular values, over its largest: 1 is flat, 0 one direction alone.",
    ),
    "sign_likeness_moved": (
        "Sign-likeness of updates",
        "(mean |D_ij|)^2 over the mean of D_ij^2, of the coordinates that moved: 1 where all changes have one size, as "
        "one step of a sign; .64 of a Gaussian matrix.",
    ),
}
"""Number -> title and caption of its picture."""
EFFECTS = {
    "relative_weighted": (
        "Change of a layer's outputs on the base's text",
        "|D C^(1/2)| over |W_0 C^(1/2)|: how far the outputs move, over their size.",
    ),
    "input_alignment": (
        "Updates lie where the inputs are",
        "|D C^(1/2)|_F over that of an update in random directions with the same |D|_F (1).",
    ),
    "operator_bound_used": (
        "Share of Muon's bound that the inputs use",
        "E|D x|_2 / (|D|_op E|x|_2): 1 where every input is the worst one.",
    ),
    "max_bound_used": (
        "Share of AdamW's bound that the inputs use",
        "E|D x|_inf / (|D|_max E|x|_1): 1 where every input is the worst one.",
    ),
}
"""Likewise."""


@dataclass(frozen=True)
class Updates(Analysis):
    """Updates.

    Args:
        rank: directions whose energy and overlap are reported, and among which intruders are counted (k there).
        intruder_below: cosine below which a direction is an intruder (eps there).
        moved_above: a coordinate counts in ``moved_relative`` where |D_ij| is above this share of |W_0,ij|.
        exact_up_to: longest shorter side of a matrix whose whole spectrum is computed; of larger ones its top only.
        positions: inputs of every layer on which the use of the two bounds is measured.
    """

    title: ClassVar[str] = "Updates of the weights"
    needs_base: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True

    rank: int = 10
    intruder_below: float = 0.5
    moved_above: float = 1e-3
    exact_up_to: int = 4096
    positions: int = 512

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("exact_up_to", 0), ("positions", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least {least}")
        if not 0 < self.intruder_below <= 1:
            raise ValueError(f"intruder_below = {self.intruder_below}: expected 0 < intruder_below <= 1")
        if not self.moved_above >= 0:
            raise ValueError(f"moved_above = {self.moved_above}: expected at least 0")

    def check(self, subject: Subject) -> None:
        """Inputs are those of linear layers, which all tokens pass."""
        if subject.texts:
            linear_modules(subject.origin)

    def parts(self, subject: Subject) -> list[str]:
        """One a matrix, and one of all vectors."""
        return [*(matrix.name for matrix in subject.model.matrices), VECTORS]

    # -------------------- rows

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for the matrix, or for every vector."""
        if part == VECTORS:
            return self._vectors(subject)
        (matrix,) = [m for m in subject.model.matrices if m.name == part]
        device = find_device(subject.shared.device)
        base = subject.origin.block(matrix).to(device)
        model = subject.model.block(matrix).to(device)
        change = model - base
        row: Row = {
            "block": part, "layer": matrix.layer, "matrix": matrix.kind, "role": matrix.role,
            "rows": matrix.shape[0], "columns": matrix.shape[1], "numel": change.numel(),
        }  # fmt: skip
        row |= entrywise(base, change, self.moved_above)
        row |= self._spectral(base, model, change, subject.seed)
        if subject.texts:
            del model  # the memory goes to what the inputs take
            row |= self._on_inputs(subject, matrix, base, change, row, advance)
        return [row]

    def _vectors(self, subject: Subject) -> list[Row]:
        rows: list[Row] = []
        for name, shape in subject.model.shapes.items():
            if len(shape) != 2:
                layer, kind = layer_and_kind(name)
                base = subject.origin.tensor(name)
                rows.append({
                    "block": kind if layer < 0 else f"{layer}.{kind}", "layer": layer, "matrix": kind,
                    "role": subject.model.roles[name], "numel": base.numel(),
                    **entrywise(base, subject.model.tensor(name) - base, self.moved_above),
                })  # fmt: skip
        return rows

    def _spectral(self, base: Tensor, model: Tensor, change: Tensor, seed: int) -> Row:
        """What singular values and vectors say; a matrix that did not change has no spectrum."""
        r = min(change.shape)
        k = min(self.rank, r)
        exact = r <= self.exact_up_to
        of_base = GramSVD(base) if exact else KrylovSVD(base, k, seed)
        values = gram_values(change) if exact else KrylovSVD(change, k, seed).values
        squared = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        operator = float(values[0])
        row: Row = {
            "operator": operator,
            "relative_operator": ratio(operator, float(of_base.values[0])),
            "stable_rank": ratio(squared, operator**2),
            "stable_rank_share": ratio(squared, operator**2) / r,
            # eigenvalues of the Gram matrix are its energies: a sum of all must not exceed 1 by rounding
            "top_energy": min(ratio(float(values[:k].square().sum()), squared), 1.0) if squared else math.nan,
            "nuclear": float(values.sum()) if exact else math.nan,
            "svd_entropy": svd_entropy(values) if exact and r > 1 and squared else math.nan,
            **overlap(change, of_base.left(k), of_base.right(k)),
            "spectrum_by": "gram" if exact else "krylov",
        }
        row["intruders"] = math.nan
        if isinstance(of_base, GramSVD):
            row["intruders"] = intruder_dimensions(of_base, GramSVD(model), k, self.intruder_below)
        for percent in PERCENTS:
            value = float(values[round(percent / 100 * (r - 1))]) if exact else math.nan
            row[f"spectrum_{percent:03d}"] = ratio(value, operator)
        return row

    def _on_inputs(
        self, subject: Subject, matrix: Matrix, base: Tensor, change: Tensor, sizes: Row, advance: Advance
    ) -> Row:
        """What the update does to what the layer reads on the first text."""
        text, operator, largest = subject.text(), float(sizes["operator"]), float(sizes["max"])
        if matrix.role == "embedding":
            shares = subject.shared.once(("token shares", text.name), lambda: token_shares(text.rows, len(base)))
            shares = shares.to(base.device)
            lengths, peaks = row_lengths(change)
            before, _ = row_lengths(base)
            weighted, base_weighted = (float((shares * x.square()).sum().sqrt()) for x in (lengths, before))
            isotropic = 1.0 / len(base)
            used = {
                "operator_bound_used": ratio(float((shares * lengths).sum()), operator),
                "max_bound_used": ratio(float((shares * peaks).sum()), largest),
            }
        else:
            inputs = subject.shared.once(
                ("updates", text.name, self.positions),
                lambda: sample_inputs(subject, subject.origin, text, self.positions),
            )
            second = moments(subject, subject.origin, text, None, advance)[matrix.module].second.to(base.device)
            weighted, base_weighted = weighted_norm(change, second), weighted_norm(base, second)
            isotropic = float(second.trace()) / len(second)
            used = bounds_used(change, inputs[matrix.module].to(base.device), operator, largest)
        return {
            "weighted": weighted,
            "base_weighted": base_weighted,
            "relative_weighted": ratio(weighted, base_weighted),
            "input_alignment": ratio(weighted, float(sizes["frobenius"]) * math.sqrt(isotropic)),
            **used,
        }

    # -------------------- what is shown

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """By role: norms of all its parameters together, means over matrices; by kind: size and shape."""
        numbers: dict[str, float] = {}
        by_role = {role: [r for r in rows if r["role"] == role] for role in dict.fromkeys(str(r["role"]) for r in rows)}
        for name, own in {**by_role, "all": list(rows)}.items():
            numbers |= {f"{key}/{name}": value for key, value in _together(own).items()}
        matrices = [row for row in rows if "operator" in row]
        for number in MEANS:
            means = mean_by(matrices, ("role",), number)
            numbers |= {f"{number}/{role}": value for (role,), value in means.items()}
        # an embedding and a head are the only ones of their role
        hidden = [row for row in matrices if row["role"] == "hidden"]
        for kind in dict.fromkeys(str(row["matrix"]) for row in hidden):
            together = _together([row for row in hidden if row["matrix"] == kind])
            numbers |= {f"{key}/{kind}": value for key, value in together.items() if key.startswith("relative")}
        for number in SHAPES:
            means = mean_by(hidden, ("matrix",), number)
            numbers |= {f"{number}/{kind}": value for (kind,), value in means.items()}
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Spectra, shapes by kind, size over the layers, effects on inputs."""
        matrices = [row for row in rows if "operator" in row]
        # what optimizers treat apart comes last: the layers are what one looks for
        matrices.sort(key=lambda row: row["role"] != "hidden")
        drawn = _spectra(matrices)
        # there is nothing to draw where no matrix moved, or all are too large for their whole spectrum
        drawn += [dots_by(matrices, "matrix", n, *said) for n, said in SHAPES.items() if _known(matrices, n)]
        drawn.append(
            lines_over_layers(
                [row for row in matrices if row["role"] == "hidden"],
                "relative_frobenius",
                "Size of the update over the layers",
                "|D|_F / |W_0|_F of the matrices of a layer: mean, shaded from the least to the most.",
                log_y=True,
            )
        )
        drawn += [
            dots_by(matrices, "matrix", number, *said, log=number == "relative_weighted")
            for number, said in EFFECTS.items()
            if _known(matrices, number)
        ]
        return drawn


def token_shares(rows: Sequence[tuple[Tensor, Tensor]], n_tokens: int) -> Tensor:
    """(n_tokens,) float64, how often the model reads every token."""
    counts = torch.bincount(torch.cat([tokens for tokens, _ in rows]), minlength=n_tokens).double()
    return counts / counts.sum()


def _together(rows: Sequence[Row]) -> dict[str, float]:
    """Numbers of several parameters as of one: norms in quadrature, shares by their coordinates."""
    numel = sum(float(row["numel"]) for row in rows)
    numbers = {
        "frobenius": _norm(rows, "frobenius"),
        "relative_frobenius": ratio(_norm(rows, "frobenius"), _norm(rows, "base_frobenius")),
        "rms": sum(float(row["rms"]) for row in rows) / len(rows),
        "moved": sum(float(row["moved"]) * float(row["numel"]) for row in rows) / numel,
        "moved_relative": sum(float(row["moved_relative"]) * float(row["numel"]) for row in rows) / numel,
    }
    if read := [row for row in rows if "weighted" in row]:
        numbers["weighted"] = _norm(read, "weighted")
        numbers["relative_weighted"] = ratio(_norm(read, "weighted"), _norm(read, "base_weighted"))
    return numbers


def _norm(rows: Sequence[Row], number: str) -> float:
    return math.sqrt(sum(float(row[number]) ** 2 for row in rows))


def _spectra(rows: Sequence[Row]) -> list[Figure]:
    """A picture for each kind of matrix, a line for each model; of one model a line for each kind."""
    models, kinds = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("model", "matrix"))
    if len(models) == 1:
        return [_spectrum(rows, "matrix", "Spectra of the update")] if _known(rows, "spectrum_000") else []
    of_kind = {kind: [row for row in rows if row["matrix"] == kind] for kind in kinds}
    return [
        _spectrum(own, "model", f"Spectra of updates, {kind}")
        for kind, own in of_kind.items()
        if _known(own, "spectrum_000")
    ]


def _known(rows: Sequence[Row], number: str) -> bool:
    return any(not math.isnan(float(row[number])) for row in rows if number in row)


def _spectrum(rows: Sequence[Row], group: str, title: str) -> Figure:
    at = {percent: grouped(rows, (group,), f"spectrum_{percent:03d}") for percent in PERCENTS}
    lines = {
        name: [(float(p), max(sum(v[(name,)]) / len(v[(name,)]), DRAWN_FROM)) for p, v in at.items() if v.get((name,))]
        for name in dict.fromkeys(str(row[group]) for row in rows)
    }
    series = [Series(name, points) for name, points in lines.items() if points]
    picture = draw_lines(series, "percent of the singular values", "s_i / s_1", WIDTH, log_y=True)
    caption = (
        "Singular values of D over its largest, mean over layers: a flat line is an orthogonal update, a fall to the "
        f"lower edge ({DRAWN_FROM:g}) one of low rank."
    )
    table = [(f"{p}", *(short_number(line.points[i][1]) for line in series)) for i, p in enumerate(PERCENTS)]
    return Figure("", "", title, caption, picture, None, ("percent", *(line.name for line in series)), tuple(table))
