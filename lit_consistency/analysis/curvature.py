r"""Curvature: top eigenvalues and trace of the Hessian and the Gauss-Newton matrix, and what they say of an update.

L is the mean loss of a text in nats per scored token, H its Hessian and G its generalised Gauss-Newton matrix, over
the parameters of the chosen roles (core/hessian.py has the equations), at the model and at its base.

- Eigenvalues: the largest, and the most negative one of H, by Lanczos with full reorthogonalisation, each with its
  residual, within which an eigenvalue lies. ``converged`` says whether all are within the tolerance.
- Trace: Hutchinson's estimate from random signs, with its standard error; trace / n is the mean eigenvalue.
- Update u = W - W_base, from the base's point of view on the same text: what a quadratic model of L says that the
  update costs, beside what it does cost,

.. math::
    L(W_{base} + t u) - L(W_{base}) \approx t\, g^T u + \tfrac{t^2}{2} u^T H u, \qquad 0 < t \le 1,

  once with all parameters, once with those of the chosen roles alone (the others stay the base's). With G for H the
  network is taken as linear in its weights. Curvature along the update, u^T H u / u^T u, stands beside the base's top
  eigenvalue (1 if the update is the sharpest direction) and its mean eigenvalue (1 on average of a random direction).

Sources: Ghorbani et al. 2019, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, arXiv
1901.10159 (Lanczos on networks); Yao et al. 2020, PyHessian, arXiv 1912.07145 (Hutchinson). The second-order reading
of forgetting is that of Mirzadeh et al. 2020, arXiv 2006.06958, there with the top eigenvalue in place of H.

Given up: rows of the text beyond ``max_tokens`` (prediction and true rise use the same rows); models whose Lanczos
basis, ``steps`` vectors of n numbers, does not fit into memory: ``eigenvalues: 0`` leaves it out, the rest needs a
handful of vectors. Only the first text is asked unless ``all_texts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, NamedTuple, get_args

import psutil
import torch
from torch import Tensor

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.figures import table_of
from lit_consistency.analysis.core.hessian import TextLoss, quadratic_along, sample_rows
from lit_consistency.analysis.core.model_files import ModelFiles, check_same_shapes
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.linalg.lanczos import hutchinson, lanczos
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.inference.load import find_device
from lit_consistency.optimizers.groups import ROLES
from lit_consistency.records.tables import Row

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of the update, at which the rise is measured: where the quadratic model stops to hold is seen by halving it."""
NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton matrix"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
Point = Literal["base", "model"]
Kind = Literal["hessian", "gauss_newton"]
Quantity = Literal["eigenvalues", "trace", "update"]


class _Part(NamedTuple):
    text: str
    point: Point
    kind: Kind
    quantity: Quantity


@dataclass(frozen=True)
class Curvature(Analysis):
    """Curvature.

    Args:
        roles: of the parameters, as ``[hidden,norm]``; others are embedding, head and bias, ``[all]`` is every one.
        points: where the curvature is taken, ``base`` (where one is known), ``model`` or both.
        kinds: of curvature, ``hessian``, ``gauss_newton`` or both.
        eigenvalues: how many of the largest; 0: none.
        steps: of Lanczos at most, each one product.
        tolerance: of the eigenvalues' residuals, relative to the largest in magnitude.
        probes: of the trace, each one product; 0: no trace.
        max_tokens: scored tokens of a text at most, in whole rows drawn by the seed; 0: all.
        all_texts: whether every text is asked, not the first alone.
        dtype: of all products, float32 or float64.
    """

    title: ClassVar[str] = "Curvature of the loss"
    needs_text: ClassVar[bool] = True

    roles: tuple[str, ...] = ("hidden",)
    points: tuple[Point, ...] = ("base", "model")
    kinds: tuple[Kind, ...] = ("hessian", "gauss_newton")
    eigenvalues: int = 5
    steps: int = 40
    tolerance: float = 1e-3
    probes: int = 10
    max_tokens: int = 8192
    all_texts: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for key, allowed in (("roles", ("all", *ROLES)), ("points", get_args(Point)), ("kinds", get_args(Kind))):
            object.__setattr__(self, key, tuple(getattr(self, key)))  # from YAML they come as lists
            wrong = [value for value in getattr(self, key) if value not in allowed]
            if wrong or not getattr(self, key):
                raise ValueError(f"{key} = {list(getattr(self, key))}: expected at least one of {', '.join(allowed)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        for key, least in (("eigenvalues", 0), ("steps", 1), ("probes", 0), ("max_tokens", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} = {getattr(self, key)}: expected at least {least}")
        if self.eigenvalues >= self.steps:
            raise ValueError(f"eigenvalues = {self.eigenvalues}: expected fewer than steps = {self.steps}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance = {self.tolerance}: expected above 0")

    # -------------------- before anything is computed

    def check(self, subject: Subject) -> None:
        """Roles must be there, vocabularies the same, and the basis of Lanczos must fit into memory."""
        there = sorted(set(subject.model.roles.values()))
        if missing := [role for role in self.roles if role not in (*there, "all")]:
            raise ValueError(f"roles = {missing[0]}: {subject.model.folder} has all, {', '.join(there)}")
        if (base := _base(subject)) is not None:
            check_same_shapes(base, subject.model)
            subject.check_same_tokens(base)
        n = sum(torch.Size(subject.model.shapes[name]).numel() for name in self._names(subject.model))
        needed, memory = self.steps * n * DTYPES[self.dtype].itemsize, _memory(find_device(subject.shared.device))
        if self.eigenvalues and needed > memory:
            raise ValueError(
                f"steps = {self.steps}: vectors of {n:,} parameters take {needed / 2**30:.0f} GiB, and there are "
                f"{memory / 2**30:.0f}; expected fewer steps or roles, or eigenvalues: 0"
            )

    def _names(self, files: ModelFiles) -> list[str]:
        """Of the chosen parameters, in the order of the model."""
        return [name for name in files.shapes if "all" in self.roles or files.roles[name] in self.roles]

    # -------------------- parts

    def parts(self, subject: Subject) -> list[str]:
        """One for each text, point, kind and quantity: every one takes many products."""
        return list(self._plan(subject))

    def _plan(self, subject: Subject) -> dict[str, _Part]:
        known = _base(subject) is not None
        points = [point for point in self.points if point == "model" or known] or ["model"]
        asked: dict[Quantity, int] = {"eigenvalues": self.eigenvalues, "trace": self.probes}
        parts = {}
        for text in dict.fromkeys(subject.texts if self.all_texts else subject.texts[:1]):
            for part in [_Part(text, *of) for of in product(points, self.kinds, [q for q, n in asked.items() if n])]:
                parts[f"{text}: {part.quantity} of the {part.kind} at the {part.point}"] = part
            if known:
                parts[f"{text}: update"] = _Part(text, "base", "hessian", "update")
        return parts

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """Rows of one part; what is the base's alone is computed once for all models of a run."""
        asked = self._plan(subject)[part]
        if asked.quantity == "update":
            return self._update(subject, asked.text, advance)
        measured = {"eigenvalues": self._eigenvalues, "trace": self._trace}[asked.quantity]
        files = subject.model if asked.point == "model" else subject.origin

        def compute() -> list[Row]:
            loss = self._loss(subject, files, asked.text, self._names(files))
            head: Row = {"text": asked.text, "point": asked.point, "kind": asked.kind, "n_parameters": len(loss.point)}
            products = loss.hessian if asked.kind == "hessian" else loss.gauss_newton
            return [{**head, **row} for row in measured(subject, asked.kind, loss, products, advance)]

        if asked.point == "model":
            return compute()
        return subject.shared.once(
            ("curvature", self, files.hash, subject.text(asked.text).fingerprint, asked), compute
        )

    def _loss(self, subject: Subject, files: ModelFiles, text: str, names: Sequence[str]) -> TextLoss:
        rows = sample_rows(subject.text(text).rows, self.max_tokens, subject.seed)
        return TextLoss(subject.load(files).model, names, rows, subject.batch_tokens, DTYPES[self.dtype])

    def _eigenvalues(
        self, subject: Subject, kind: Kind, loss: TextLoss, products: Products, advance: Advance
    ) -> list[Row]:
        smallest = kind == "hessian"  # all eigenvalues of G are above 0: its smallest one says nothing
        spectrum = lanczos(
            lambda vector: products(vector[None], lambda share: advance(share / self.steps))[0],
            len(loss.point), n_largest=self.eigenvalues, smallest=smallest, tolerance=self.tolerance,
            max_steps=self.steps, generator=_generator(subject), dtype=loss.dtype, device=loss.device,
        )  # fmt: skip
        ranks = list(range(1, min(self.eigenvalues, len(spectrum.values)) + 1))
        chosen = [("largest", rank, rank - 1) for rank in ranks] + ([("most negative", 1, -1)] if smallest else [])
        head: Row = {"steps": len(spectrum.values), "converged": int(spectrum.converged)}
        return [
            {
                "quantity": "eigenvalue", "end": end, "rank": rank, "value": float(spectrum.values[i]),
                "residual": float(spectrum.residuals[i]), **head,
            }
            for end, rank, i in chosen
        ]  # fmt: skip

    def _trace(self, subject: Subject, kind: Kind, loss: TextLoss, products: Products, advance: Advance) -> list[Row]:
        trace = hutchinson(
            lambda probes, share: products(probes, lambda of_these: advance(of_these * share)),
            len(loss.point), n_probes=self.probes, generator=_generator(subject), dtype=loss.dtype,
            device=loss.device,
        )  # fmt: skip
        return [{"quantity": "trace", "value": trace.value, "stderr": trace.stderr, "probes": self.probes}]

    def _update(self, subject: Subject, text: str, advance: Advance) -> list[Row]:
        """Predicted and true rise for all parameters, and for the chosen ones."""
        base = subject.origin
        chosen = self._names(base)
        moved = {"all": list(base.shapes)}
        if len(chosen) < len(base.shapes):
            moved["+".join(self.roles)] = chosen
        rows = []
        for label, names in moved.items():
            at_base, at_model = (self._loss(subject, files, text, names) for files in (base, subject.model))
            update = at_model.point.double() - at_base.point.double()
            # a product costs as much as a handful of values
            along = quadratic_along(at_base, update, lambda share: advance(0.8 * share / len(moved)))
            squares = along.squared_norm or math.nan
            head: Row = {"text": text, "point": "base", "moved": label, "n_parameters": len(update)}
            rows.append({
                **head, "quantity": "form", **along._asdict(),
                "along_hessian": along.hessian / squares, "along_gauss_newton": along.gauss_newton / squares,
            })  # fmt: skip
            for t in FRACTIONS:
                rows.append({
                    **head, "quantity": "rise", "fraction": t,
                    "true_rise": at_base.value(at_base.point.double() + t * update) - along.start,
                    "first_order": along.rise(t, 0.0),
                    "second_order": along.rise(t, along.hessian),
                    "gauss_newton_order": along.rise(t, along.gauss_newton),
                })  # fmt: skip
                advance(0.2 / len(moved) / len(FRACTIONS))
        return rows

    # -------------------- what is shown

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Of the first text; of further ones behind the number, as ``top_eigenvalue/hessian/base/markov/new``."""
        texts = list(dict.fromkeys(str(row["text"]) for row in rows))
        numbers: dict[str, float] = {}
        for text in texts:
            own = _numbers([row for row in rows if row["text"] == text])
            numbers |= own if text == texts[0] else {f"{key}/{text}": value for key, value in own.items()}
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Eigenvalues, traces, and the rise along the update."""
        texts = list(dict.fromkeys(str(row["text"]) for row in rows))
        return [
            figure
            for text in texts
            for figure in _figures([row for row in rows if row["text"] == text], f", {text}" if len(texts) > 1 else "")
        ]


Products = Callable[[Tensor, Advance], Tensor]


def _numbers(rows: Sequence[Row]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for row in rows:
        if row["quantity"] == "eigenvalue" and row["rank"] == 1:
            end = "top_eigenvalue" if row["end"] == "largest" else "most_negative"
            numbers[f"{end}/{row['kind']}/{row['point']}"] = float(row["value"])
        elif row["quantity"] == "trace":
            numbers[f"trace/{row['kind']}/{row['point']}"] = float(row["value"])
            numbers[f"mean_eigenvalue/{row['kind']}/{row['point']}"] = float(row["value"]) / int(row["n_parameters"])
        elif row["quantity"] == "form":
            for kind in ("hessian", "gauss_newton"):
                numbers[f"along_update/{kind}/{row['moved']}"] = float(row[f"along_{kind}"])
        elif row["quantity"] == "rise" and row["fraction"] == 1:
            for key in ("true_rise", "first_order", "second_order", "gauss_newton_order"):
                numbers[f"{key}/{row['moved']}"] = float(row[key])
    return numbers | _relative(rows, numbers)


def _relative(rows: Sequence[Row], numbers: dict[str, float]) -> dict[str, float]:
    """Curvature along the update of the chosen parameters, over that of the base."""
    moved = [str(row["moved"]) for row in rows if row["quantity"] == "form"]
    relative = {}
    for kind in ("hessian", "gauss_newton"):
        for name, of in (("top", "top_eigenvalue"), ("mean", "mean_eigenvalue")):
            whole = numbers.get(f"{of}/{kind}/base")
            if moved and whole:
                # the chosen ones stand last; where they are all, there is one
                relative[f"along_over_{name}/{kind}"] = numbers[f"along_update/{kind}/{moved[-1]}"] / whole
    return relative


def _figures(rows: Sequence[Row], behind: str) -> list[Figure]:
    drawn = [_eigenvalue_figure(rows, kind, behind) for kind in get_args(Kind)]
    drawn += [_trace_figure(rows, behind), _rise_figure(rows, behind), _path_figure(rows, behind)]
    return [figure for figure in drawn if figure is not None]


def _of(row: Row) -> str:
    """Whose curvature it is: the base is the same for all models."""
    return "base" if row["point"] == "base" else str(row["model"])


def _eigenvalue_figure(rows: Sequence[Row], kind: Kind, behind: str) -> Figure | None:
    own = [row for row in rows if row["quantity"] == "eigenvalue" and row["kind"] == kind]
    if not own:
        return None
    # one mark for the base, which stands in the rows of every model
    dots = {}
    for row in own:
        label = "most negative" if row["end"] != "largest" else f"largest, {row['rank']}"
        value, residual = float(row["value"]), float(row["residual"])
        dots[label, _of(row)] = Dot(label, _of(row), value, value - residual, value + residual)
    short = ", ".join(dict.fromkeys(_of(row) for row in own if not row["converged"]))
    note = f" Not all within the tolerance: {short}." if short else ""
    columns = ("model", "point", "end", "rank", "value", "residual", "steps")
    return Figure(
        "", "", f"Top eigenvalues of the {NAMES[kind]}{behind}",
        f"By Lanczos; the bars are residuals, within which an eigenvalue lies.{note}",
        draw_dots(list(dots.values()), "eigenvalue", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


def _trace_figure(rows: Sequence[Row], behind: str) -> Figure | None:
    own = [row for row in rows if row["quantity"] == "trace"]
    if not own:
        return None
    dots = {}
    for row in own:
        kind, name, value, half = NAMES[str(row["kind"])], _of(row), float(row["value"]), 1.96 * float(row["stderr"])
        dots[kind, name] = Dot(kind, name, value, value - half, value + half)
    columns = ("model", "point", "kind", "value", "stderr", "probes", "n_parameters")
    return Figure(
        "", "", f"Trace{behind}", "Hutchinson's estimate; the bars are 1.96 standard errors of the random signs.",
        draw_dots(list(dots.values()), "trace", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


ORDERS = {
    "true_rise": "true",
    "second_order": "second order",
    "gauss_newton_order": "with Gauss-Newton",
    "first_order": "first order",
}


def _rise_figure(rows: Sequence[Row], behind: str) -> Figure | None:
    """One row a model: the whole update."""
    own = [row for row in rows if row["quantity"] == "rise" and row["fraction"] == 1]
    if not own:
        return None
    columns = ("model", "moved", *ORDERS)
    dots = [Dot(f"{r['model']}, {r['moved']}", said, float(r[key])) for r in own for key, said in ORDERS.items()]
    return Figure(
        "", "", f"Forgetting, predicted at the base and true{behind}",
        "Rise of the loss from the base to the model, all parameters moved, and those of the chosen roles alone.",
        draw_dots(dots, "nats per token", WIDTH, log=True), None, columns, table_of(own, columns),
    )  # fmt: skip


def _path_figure(rows: Sequence[Row], behind: str) -> Figure | None:
    """Along the update of the last model."""
    rises = [row for row in rows if row["quantity"] == "rise" and row["moved"] == "all"]
    own = [row for row in rises if row["model"] == rises[-1]["model"]]
    if not own:
        return None
    series = [
        Series(said, [(0.0, 0.0), *((float(row["fraction"]), float(row[key])) for row in own)])
        for key, said in ORDERS.items()
    ]
    columns = ("fraction", *ORDERS)
    return Figure(
        "", "", f"Rise along the update of {own[0]['model']}{behind}",
        "From the base (0) to the model (1) on a straight line, all parameters; where true and second order part, "
        "the update has left what the base's curvature describes.",
        draw_lines(series, "share of the update", "nats per token", WIDTH), None, columns, table_of(own, columns),
    )  # fmt: skip


# -------------------- the subject


def _base(subject: Subject) -> ModelFiles | None:
    """The base, None where the model is the base itself."""
    base = subject.base
    return None if base is None or base.hash == subject.model.hash else base


def _generator(subject: Subject) -> torch.Generator:
    return torch.Generator().manual_seed(subject.seed)


def _memory(device: torch.device) -> int:
    """Bytes of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
