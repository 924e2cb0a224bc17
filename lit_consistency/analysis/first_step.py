r"""First step: what it costs an old text to learn a new one, by the step of each optimizer's kind, at equal gain.

From a base, one step is taken along the steepest direction of the loss of the second text, in three norms: ``sign``
(AdamW's first step), ``orthogonal`` (Muon's), ``gaussian`` (the gradient itself, SGD's); see linalg/directions.py.
Every matrix W moves by D with |D|_F = gamma |W|_F, q, k and v apart, so that the kinds differ in the shape of their
steps and not in their shares of the matrices. Over a ladder of gamma the fall of the new text's loss is measured, and
the rise of the old one's; the rise is read where the fall has reached ``gains``, between two neighbours of the ladder.

This is the dual-norm reading of paper 1 (Liu, Wang and Zhang 2026, Optimizer-Model Consistency, arXiv 2605.06654; ours)
without training: if AdamW's training keeps |x|_1 small and Muon's |x|_2, a step of the own kind moves less of what the
base computes. The crossed 2 x 2 is ``log_rise/sign/GAIN`` and ``log_rise/orthogonal/GAIN`` over bases. Random
directions cannot show it (see perturbations.py); these can, as they are not random.

A rise below 0 is a result: what a text is told in (its beginning, its format) is learned first, and helps the old text
too; its logarithm is NaN.

Given up: momentum, and all steps after the first; embedding, head, norms and biases, which stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.curves import curves
from lit_consistency.analysis.core.hessian import TextLoss as Differentiable
from lit_consistency.analysis.core.losses import text_loss
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import move, weights_put_back
from lit_consistency.analysis.linalg.directions import KINDS, frobenius_norm, steepest_direction
from lit_consistency.drawing.figure import Figure
from lit_consistency.records.tables import Row
from lit_consistency.stats.matched import read_at


@dataclass(frozen=True)
class FirstStep(Analysis):
    """First step.

    Args:
        kinds: of steps, of sign, orthogonal and gaussian.
        smallest: of the ladder of sizes |D|_F / |W|_F.
        largest: of the ladder.
        sizes: how many there are, at equal ratios.
        gains: nats per token by which the new text must have become more likely where the rise is read.
    """

    title: ClassVar[str] = "The first step"
    needs_text: ClassVar[bool] = True

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    smallest: float = 0.002
    largest: float = 0.2
    sizes: int = 13
    gains: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])

    def __post_init__(self) -> None:
        if wrong := next((kind for kind in self.kinds if kind not in KINDS), None):
            raise ValueError(f"kinds = {wrong!r}: expected some of {', '.join(KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds = {self.kinds}: expected different ones, at least one")
        if not 0 < self.smallest < self.largest:
            raise ValueError(f"smallest = {self.smallest}, largest = {self.largest}: expected 0 < smallest < largest")
        if self.sizes < 2:
            raise ValueError(f"sizes = {self.sizes}: expected at least 2")
        if not self.gains or not all(gain > 0 for gain in self.gains):
            raise ValueError(f"gains = {self.gains}: expected positive numbers, at least one")

    def check(self, subject: Subject) -> None:
        """An old text and a new one."""
        if len(subject.texts) < 2:
            raise ValueError(
                f"text = {list(subject.texts)}: expected two, what is to be kept and what is to be learned"
            )

    def parts(self, subject: Subject) -> list[str]:
        """One a kind."""
        return list(self.kinds)

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every size: the fall of the new text's loss, the rise of the old one's."""
        old, new = subject.texts[:2]
        loaded = subject.load()
        matrices = [matrix for matrix in subject.model.matrices if matrix.role == "hidden"]
        names = list(dict.fromkeys(matrix.parameter for matrix in matrices))
        parameters = dict(loaded.model.named_parameters())
        loss = Differentiable(
            loaded.model, names, subject.text(new).rows, subject.batch_tokens, parameters[names[0]].dtype
        )
        pieces = loss.gradient().split([parameters[name].numel() for name in names])
        gradients = {name: g.view(parameters[name].shape) for name, g in zip(names, pieces, strict=True)}
        directions = [steepest_direction(part, gradients[m.parameter][m.start : m.stop]) for m in matrices]
        ladder = np.geomspace(self.smallest, self.largest, self.sizes)
        found: list[Row] = []
        with weights_put_back(loaded.model, set(names)) as originals:
            start = {text: text_loss(subject, text) for text in (old, new)}
            before = [originals[m.parameter][m.start : m.stop] for m in matrices]
            moved = [parameters[m.parameter].data[m.start : m.stop] for m in matrices]
            for size in ladder:
                reached = move(moved, before, directions, [float(size) * frobenius_norm(w) for w in before])
                rise, gain = (text_loss(subject, text).rise_from(start[text]) for text in (old, new))
                found.append({
                    "optimizer": subject.model.optimizer, "kind": part, "size": float(size), "relative_norm": reached,
                    "gain": -gain.value, "gain_low": -gain.high, "gain_high": -gain.low,
                    "rise": rise.value, "rise_low": rise.low, "rise_high": rise.high,
                })  # fmt: skip
                advance(1 / len(ladder))
        return found

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The rise of the old text at every gain of the new one; NaN where one step does not gain as much."""
        numbers: dict[str, float] = {}
        for gain in self.gains:
            for kind in dict.fromkeys(str(row["kind"]) for row in rows):
                own = [row for row in rows if row["kind"] == kind]
                size, learned, lost = ([float(row[key]) for row in own] for key in ("size", "gain", "rise"))
                rise = read_at(gain, [0.0, *size], [0.0, *learned], [0.0, *lost]).value
                numbers[f"rise/{kind}/{gain:g}"] = rise
                numbers[f"log_rise/{kind}/{gain:g}"] = math.log(rise) if rise > 0 else math.nan
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Rise of the old text over the gain of the new one, as far as the step still gains."""
        drawn = []
        for model in dict.fromkeys(str(row["model"]) for row in rows):
            own = [row for row in rows if row["model"] == model]
            kept = [row for kind in dict.fromkeys(str(r["kind"]) for r in own) for row in _gaining(own, kind)]
            if kept:
                said = f"{model} ({own[0]['optimizer']})"
                caption = "One step of growing size; lower is better. Shaded: 95% over documents of the old text."
                title = f"Cost of the first step, {said}"
                axes = ("gain on the new text, nats", "rise of the old text, nats")
                drawn.append(curves(kept, "gain", "rise", "kind", title, caption, *axes))
        return drawn


def _gaining(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows of a kind up to the size that gains most."""
    own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: float(row["size"]))
    gains = np.array([float(row["gain"]) for row in own])
    known = np.where(np.isfinite(gains), gains, -np.inf)
    return [row for row in own[: int(known.argmax()) + 1] if float(row["gain"]) > 0]
