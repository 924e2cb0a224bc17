r"""Perturbations: the rise of the loss under random signs, random orthogonal and normal matrices, and under updates.

To every matrix W of m rows and n columns (q, k and v apart) a matrix D is added, all at once, and the rise is

.. math::
    \text{loss}(W + D) - \text{loss}(W)

in nats per token of each text. Kinds: ``sign``, ``orthogonal``, ``gaussian`` (see linalg/directions.py), each in
several draws, which are the same for all models of one shape; ``own`` and ``other``: the update of a model that was
finetuned from the analysed one, by the optimizer that pretrained it or by another one. Sizes, for every radius gamma:

- ``frobenius``: |D|_F = gamma |W|_F;
- ``native``: gamma times the norm of W in which the kind is as large as can be, as the optimizer bounds its step: the
  largest entry of ``sign`` and of updates of AdamW and its like, the operator norm of ``orthogonal`` and of updates of
  Muon. Of ``gaussian`` and of updates of SGD it is the Frobenius norm again, and is not measured twice;
- ``absolute``: |D|_F = gamma sqrt(m), whatever W is: to white inputs of RMS 1 it adds outputs of RMS gamma.

The crossed 2 x 2 of paper 1 (Liu, Wang and Zhang 2026, Optimizer-Model Consistency, arXiv 2605.06654; how it is
measured is our reading): bases of AdamW and of Muon against ``sign`` and ``orthogonal``. ``log_ratio/sign_orthogonal``
is log(rise of sign / rise of orthogonal) of one base; its difference between bases is the interaction.

With ``mirrored`` every random draw is taken as D and as -D (``side``), which are equally likely, and its rise is the
mean of both: what is odd in D, the slope above all, cancels. Of models that were not trained to a minimum the slope is
most of the spread over draws. An update is taken forwards alone.

How far it carries: to second order, random kinds of one Frobenius norm make the same rise on average (their second
moments are equal), so with ``frobenius`` an interaction can come of higher orders alone; with ``native`` of the shape
of W too, its largest entry and singular value over its Frobenius norm: ``log_size_ratio``, 2 log of the ratio of the
sizes that were reached, is what a loss would make that is equally curved in all directions. What tells optimizers
apart to second order are directions that are not random: ``own`` and ``other``.

Given up: an update keeps its direction within each matrix, but not the share of each matrix in the whole; a matrix of
which it is 0 stays as it is. Memory: the perturbed matrices three times, once in float32. At bfloat16 a small radius
is rounded away, which ``relative_norm`` shows, the size that was reached; take --precision float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.figures import each_text
from lit_consistency.analysis.core.losses import text_loss
from lit_consistency.analysis.core.model_files import Matrix, ModelFiles, check_same_shapes
from lit_consistency.analysis.core.perturbed import crossed_figures, log_ratio, of_reference, rises
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.tables import mean_by
from lit_consistency.analysis.core.weights import move, weights_put_back
from lit_consistency.analysis.linalg.directions import (
    KINDS,
    NATIVE,
    frobenius_norm,
    max_norm,
    operator_norm,
    random_direction,
)
from lit_consistency.drawing.figure import Figure
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.records.tables import Row

NORMS = ("frobenius", "native", "absolute")
UPDATES = ("own", "other")
TOGETHER = "together"
"""All matrices of the roles at once."""
NATIVE_OF = {"Muon": operator_norm, "FilteredMuon": operator_norm, "SGD": frobenius_norm}
"""Optimizer -> the norm that its steps are bounded in; the largest entry of all others, which are like AdamW."""


class Draw(NamedTuple):
    """A perturbation without its size.

    Attributes:
        group: of matrices that are perturbed.
        kind: of the perturbation.
        number: of the draw, or of the update among those of its kind.
        update: the finetuned model of an update, else None.
    """

    group: str
    kind: str
    number: int
    update: ModelFiles | None

    @property
    def part(self) -> str:
        """Name of the part; an update is known by its weights, so that another one is measured again."""
        return f"{self.kind} {self.update.hash[:16] if self.update else self.number} of {self.group}"

    @property
    def native(self) -> Callable[[Tensor], float]:
        """The norm in which it is as large as can be."""
        return NATIVE[self.kind] if self.update is None else NATIVE_OF.get(self.update.optimizer, max_norm)

    def direction(self, subject: Subject, matrix: Matrix) -> Tensor:
        """(m, n) float32 of Frobenius norm 1, on the CPU; all 0 where an update is."""
        if self.update is None:
            # the same for all models, so that what differs between two is not the draw
            seed = seed_of(subject.seed, "perturbations", self.kind, self.number, matrix.name)
            return random_direction(self.kind, matrix.shape, torch.Generator().manual_seed(seed))
        change = self.update.block(matrix, torch.float64) - subject.model.block(matrix, torch.float64)
        norm = change.norm()
        return (change / norm if norm > 0 else change).float()


@dataclass(frozen=True)
class Perturbations(Analysis):
    """Perturbations.

    Args:
        kinds: random ones, of sign, orthogonal and gaussian.
        norms: in which sizes are matched, of frobenius, native and absolute.
        radii: sizes, relative to the matrix.
        reference: the radius, one of ``radii``, of the numbers in short.
        draws: of each random kind.
        mirrored: whether each of them is taken with both signs.
        roles: of the matrices that are perturbed, of hidden, embedding and head.
        apart: role or kind: each role, or each kind of matrix (attn.q, mlp.fc), is perturbed by itself too.
        own: model folders finetuned from the analysed one by the optimizer that pretrained it.
        other: model folders finetuned from it by another optimizer.
    """

    title: ClassVar[str] = "Perturbations of the weights"
    needs_text: ClassVar[bool] = True

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    norms: list[str] = field(default_factory=lambda: ["frobenius", "native"])
    radii: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3])
    reference: float = 0.1
    draws: int = 6
    mirrored: bool = True
    roles: list[str] = field(default_factory=lambda: ["hidden"])
    apart: Literal["together", "role", "kind"] = "together"
    own: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        allowed = {"kinds": KINDS, "norms": NORMS, "roles": ("hidden", "embedding", "head")}
        for name, known in allowed.items():
            values = getattr(self, name)
            if wrong := next((value for value in values if value not in known), None):
                raise ValueError(f"{name} = {wrong!r}: expected some of {', '.join(known)}")
            if len(set(values)) < len(values) or (not values and name != "kinds"):
                raise ValueError(f"{name} = {values}: expected different ones, at least one")
        if not self.kinds and not self.own and not self.other:
            raise ValueError("kinds, own, other: expected at least one perturbation")
        if not self.radii or not all(0 < radius < math.inf for radius in self.radii):
            raise ValueError(f"radii = {self.radii}: expected positive numbers, at least one")
        if self.reference not in self.radii:
            raise ValueError(f"reference = {self.reference}: expected one of radii = {self.radii}")
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws}: expected at least 1")

    def check(self, subject: Subject) -> None:
        """Updates must be those of the models, and made by the optimizer that their option says."""
        for kind in UPDATES:
            for update in self._folders(kind):
                _check_update(kind, update, subject)
        if not self._groups(subject)[TOGETHER]:
            raise ValueError(
                f"roles = {self.roles}: {subject.model.folder} has no matrix of them; expected other roles"
            )

    def parts(self, subject: Subject) -> list[str]:
        """One a draw."""
        return [draw.part for draw in self._draws(subject)]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every norm, radius and text."""
        draw = next(draw for draw in self._draws(subject) if draw.part == part)
        norms = [norm for norm in self.norms if norm != "native" or draw.native is not frobenius_norm]
        matrices = self._groups(subject)[draw.group]
        loaded = subject.load()
        parameters = dict(loaded.model.named_parameters())
        found: list[Row] = []
        with weights_put_back(loaded.model, {matrix.parameter for matrix in matrices}) as originals:
            start = {text: text_loss(subject, text) for text in subject.texts}
            before = [originals[m.parameter][m.start : m.stop] for m in matrices]
            moved = [parameters[m.parameter].data[m.start : m.stop] for m in matrices]
            directions = [draw.direction(subject, matrix).to(loaded.device) for matrix in matrices]
            sides = (1, -1) if self.mirrored and draw.update is None else (1,)
            for norm in norms:
                sizes = [unit_size(norm, w, d, draw.native) for w, d in zip(before, directions, strict=True)]
                for radius, side in product(self.radii, sides):
                    reached = move(moved, before, directions, [side * radius * size for size in sizes])
                    for text in subject.texts:
                        loss = text_loss(subject, text)
                        value, _, low, high = loss.rise_from(start[text])
                        found.append({
                            "optimizer": subject.model.optimizer, "matrices": draw.group, "kind": draw.kind,
                            "norm": norm, "radius": radius, "draw": draw.number, "side": side, "relative_norm": reached,
                            "text": text, "nats_per_token": loss.estimate().value,
                            "rise": value, "rise_low": low, "rise_high": high,
                        })  # fmt: skip
                    advance(1 / (len(norms) * len(self.radii) * len(sides)))
        return found

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Of all matrices together, on the first text, at the reference radius: means and intervals over draws."""
        numbers: dict[str, float] = {}
        for norm in dict.fromkeys(str(row["norm"]) for row in rows):
            # the Frobenius norm is what is meant where nothing is said
            suffix = "" if norm == "frobenius" else f"_{norm}"
            by_kind = rises(of_reference(rows, self.reference, norm))
            for kind, rise in by_kind.items():
                numbers |= {
                    f"rise{suffix}/{kind}": rise.mean,
                    f"rise{suffix}/{kind}/low": rise.low,
                    f"rise{suffix}/{kind}/high": rise.high,
                    f"log_rise{suffix}/{kind}": math.log(rise.mean) if rise.mean > 0 else math.nan,
                }
            for one, two in (("sign", "orthogonal"), UPDATES):
                if one in by_kind and two in by_kind:
                    numbers[f"log_ratio{suffix}/{one}_{two}"] = log_ratio(by_kind[one].mean, by_kind[two].mean)
                    size = mean_by(of_reference(rows, self.reference, norm), ("kind",), "relative_norm")
                    numbers[f"log_size_ratio{suffix}/{one}_{two}"] = 2 * log_ratio(size[one,], size[two,])
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Of every text: rises over radii, the crossed table of several models, and matrices by themselves."""
        return each_text(rows, partial(crossed_figures, reference=self.reference))

    # -------------------- what is perturbed, and by what

    def _groups(self, subject: Subject) -> dict[str, list[Matrix]]:
        matrices = [matrix for matrix in subject.model.matrices if matrix.role in self.roles]
        groups = {TOGETHER: matrices}
        if self.apart != TOGETHER:
            for matrix in matrices:
                groups.setdefault(str(getattr(matrix, self.apart)), []).append(matrix)
        return groups

    def _draws(self, subject: Subject) -> list[Draw]:
        draws: list[tuple[str, int, ModelFiles | None]]
        draws = [(kind, number, None) for kind in self.kinds for number in range(self.draws)]
        for kind in UPDATES:
            own = [update for update in self._folders(kind) if _belongs(update, subject.model, subject)]
            draws += [(kind, number, update) for number, update in enumerate(own)]
        return [Draw(group, *draw) for group in self._groups(subject) for draw in draws]

    def _folders(self, kind: str) -> list[ModelFiles]:
        return [_files(folder, kind) for folder in getattr(self, kind)]


def unit_size(norm: str, weight: Tensor, direction: Tensor, native: Callable[[Tensor], float]) -> float:
    """Frobenius norm of the perturbation of one matrix at radius 1.

    Args:
        norm: in which sizes are matched.
        weight: (m, n) the matrix.
        direction: (m, n) of Frobenius norm 1, or 0.
        native: the direction's own norm.
    """
    if norm == "absolute":
        return math.sqrt(len(weight))
    if norm == "frobenius":
        return frobenius_norm(weight)
    unit = native(direction)
    return native(weight) / unit if unit > 0 else 0.0


# -------------------- updates


@lru_cache(maxsize=64)
def _files(folder: str, kind: str) -> ModelFiles:
    # once for all parts: its configuration and its hash are asked for again and again
    return ModelFiles(Path(folder), kind)


def _belongs(update: ModelFiles, model: ModelFiles, subject: Subject) -> bool:
    """Whether a model was finetuned from this one; the only model of a run has them all."""
    return len(subject.models) == 1 or (update.provenance is not None and update.provenance.base_hash == model.hash)


def _check_update(kind: str, update: ModelFiles, subject: Subject) -> None:
    base_hash = update.provenance.base_hash if update.provenance else None
    bases = [model for model in subject.models if model.hash == base_hash]
    if not bases and (base_hash is not None or len(subject.models) > 1):
        models = ", ".join(str(model.folder) for model in subject.models)
        raise ValueError(
            f"{kind} = {update.folder}: was not trained from {models}, says its provenance; expected a model that was"
        )
    for model in bases or subject.models:
        check_same_shapes(model, update)
        known = "unknown" not in (model.optimizer, update.optimizer)
        if known and (kind == "own") != (model.optimizer == update.optimizer):
            option = next(other for other in UPDATES if other != kind)
            raise ValueError(
                f"{kind} = {update.folder}: trained by {update.optimizer}, and {model.folder} by {model.optimizer}; "
                f"expected it as {option}"
            )
