r"""Activations: how the inputs of every linear layer are spread, on a text, and how far they drifted from the base.

Paper 1 says that optimizers regularize activations. In its dual reading Muon's step bounds :math:`|dW|_{op}`, so
:math:`|dW x|_2 \le |dW|_{op} |x|_2`; the sign-like step of AdamW bounds :math:`|dW|_{max}`, so
:math:`|dW x|_\infty \le |dW|_{max} |x|_1`. What matters of an input is then :math:`|x|_1` against :math:`|x|_2`.

Rows, told apart by the column ``what``, all on one text (``text``), of the input x (d numbers) that a linear layer
reads (``layer``, ``kind``; query, key and value read the same, so do both first matrices of a gated MLP: ``mlp.fc``):

- ``input``: means over all tokens of the text, each with a 95% interval over documents (``_low``, ``_high``): ``rms``;
  ``l1_ratio`` :math:`|x|_1 / (\sqrt d |x|_2)`, 1 of equal magnitudes, 0.798 of Gaussian ones, :math:`1 / \sqrt d` of
  one coordinate; ``linf_rms`` :math:`|x|_\infty / RMS`; ``kurtosis`` :math:`\frac1d \sum x_i^4 / RMS^4` of the
  coordinates of a token, not centred, 3 of Gaussian ones; ``near_zero``, the share with :math:`|x_i| < c \cdot RMS`;
  ``massive``, the largest coordinate over the median one, and ``massive_max``, its largest value on the text.
- ``residual``: the same of the residual stream before the first block (``layer`` 0) and after every block (``kind``
  ``residual``). Massive activations live there (Sun et al. 2024, Massive Activations in Large Language Models, arXiv
  2402.17762: above 100 in size and about 1,000 times the median); of ``mlp.proj``, which reads what an activation
  function sets to near zero, the median says little.
- ``covariance``: of :math:`E[x x^T] - E[x] E[x]^T`: ``top_share``, the largest eigenvalue over the sum;
  ``effective_rank``, exp of the entropy of the eigenvalues over their sum (Roy and Vetterli 2007);
  ``participation_ratio`` :math:`(\sum \lambda)^2 / \sum \lambda^2`; the same of :math:`E[x x^T]` with ``second_``
  before; ``mean_share`` :math:`|E[x]|^2 / E|x|^2`; ``neuron_kurtosis``, the kurtosis over neurons j of their RMS,
  mean of :math:`E[x_j^2]^2` over the squared mean of :math:`E[x_j^2]` (He et al. 2024, arXiv 2405.19279, our reading).
- ``spectrum``: ``share`` of the eigenvalue of rank ``rank`` in the sum, of some ranks at equal ratios.
- ``drift``, where a base is known, of the residual stream on the same tokens: ``cka``, linear CKA with the base's
  (Kornblith et al. 2019, arXiv 1905.00414), ``cosine`` of model and base, mean over tokens, and ``relative_change``
  :math:`|h - h_0| / |h_0|`, likewise; the latter two with intervals over documents.

The base's own rows stand under the model name ``base`` (``with_base``), once, whatever the number of models; several
bases are compared with one another as ``--models``. The summary is of the first text.

Precision: activations as the model computes them; statistics of a token in float32, all sums and decompositions in
float64. Second moments are kept in ``second_moments/`` of the output folder (see core/inputs.py), 8 d^2 bytes a layer.
Given up: intervals of what comes of the covariance; with fewer tokens than d its ranks and CKA are those of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.drift import drift_rows
from lit_consistency.analysis.core.figures import each_text
from lit_consistency.analysis.core.input_rows import covariance_rows, input_rows
from lit_consistency.analysis.core.inputs import linear_modules
from lit_consistency.analysis.core.model_files import check_same_shapes
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.tables import grouped, mean_by
from lit_consistency.drawing.charts.lines import Series
from lit_consistency.drawing.charts.panels import both_arrangements
from lit_consistency.drawing.figure import Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row

INPUT = {
    "l1_ratio": ("|x|₁ / (√d |x|₂)", "1: all coordinates are as large; 0.798: Gaussian; near 0: few are large"),
    "linf_rms": ("|x|∞ / RMS", "the largest coordinate; 1: all are as large"),
    "kurtosis": ("kurtosis of the coordinates", "3: Gaussian; more: few are large"),
    "near_zero": ("share near zero", "coordinates below a small share of the RMS"),
    "massive": ("largest coordinate over the median", "above 1,000 it is called massive"),
    "rms": ("RMS", "the size of what a layer reads"),
}
"""Number -> what it is on pictures, and how it is read."""
COVARIANCE = {
    "top_share": ("share of the largest eigenvalue", "1: all tokens differ along one direction"),
    "effective_rank": ("effective rank of the covariance", "directions in use, by the entropy of the eigenvalues"),
}
DRIFT = {
    "cka": ("linear CKA with the base", "1: the same up to rotation and scale"),
    "cosine": ("cosine with the base", "mean over tokens"),
    "relative_change": ("change over size", "|h − h₀| / |h₀|, mean over tokens"),
}
COVARIANCE_NUMBERS = ("top_share", "effective_rank", "participation_ratio", "mean_share", "neuron_kurtosis")
"""Of the summary; the table has those of the second moment too."""
DRAWN = 1e-6
"""Least share of an eigenvalue in the picture: below it stands what float32 rounds."""


class _Part(NamedTuple):
    """A part by its pieces; ``what`` is input, covariance or drift, ``layer`` a covariance's, -1 of lm_head."""

    of_base: bool
    text: str
    what: str
    layer: int = 0

    @property
    def name(self) -> str:
        layer = "" if self.what != "covariance" else " of lm_head" if self.layer < 0 else f" of layer {self.layer}"
        return f"{self.what}{layer}, {self.text}{', base' if self.of_base else ''}"


@dataclass(frozen=True)
class Activations(Analysis):
    """Activations.

    Args:
        near_zero: coordinates below this times the RMS count as near zero.
        with_base: whether the base's own activations are measured too, where a base is known.
    """

    title: ClassVar[str] = "Activations"
    needs_text: ClassVar[bool] = True

    near_zero: float = 0.1
    with_base: bool = True

    def __post_init__(self) -> None:
        if not self.near_zero > 0:
            raise ValueError(f"near_zero = {self.near_zero}: expected above 0")

    def check(self, subject: Subject) -> None:
        """Layers that can be told apart, and a base of the same shape."""
        linear_modules(subject.model)
        if subject.base is not None:
            check_same_shapes(subject.base, subject.model)
            if any(m.name == subject.base.name and m.hash != subject.base.hash for m in subject.models):
                raise ValueError(f"models: one is named {subject.base.name!r}, as the base is; expected another folder")

    def parts(self, subject: Subject) -> list[str]:
        """The inputs of all layers in one pass over a text, each layer's covariance, the residual stream."""
        return [part.name for part in self._parts(subject)]

    def _parts(self, subject: Subject) -> list[_Part]:
        is_first = subject.model.folder == subject.models[0].folder
        is_known = any(files.hash == subject.base.hash for files in subject.models) if subject.base else True
        # the base first: the last rows of a run are those of its last model
        own = [True, False] if self.with_base and is_first and not is_known else [False]
        layers = [*range(subject.model.config.n_layer), -1]
        parts = []
        for of_base in own:
            for text in dict.fromkeys(subject.texts):
                parts += [_Part(of_base, text, "input")]
                parts += [_Part(of_base, text, "covariance", layer) for layer in layers]
                if subject.base is not None and not of_base:
                    parts += [_Part(of_base, text, "drift")]
        return parts

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """Rows as the module's docstring says."""
        (asked,) = [p for p in self._parts(subject) if p.name == part]
        files, text = subject.origin if asked.of_base else subject.model, subject.text(asked.text)
        if asked.what == "input":
            rows = input_rows(subject, files, text, self.near_zero, advance)
        elif asked.what == "drift":
            rows = drift_rows(subject, text, advance)
        else:
            rows = covariance_rows(subject, files, text, asked.layer, advance)
        shared: Row = {"model": files.name, "step": files.step, "text": text.name}
        return [{**shared, **row} for row in rows]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Means over layers of one kind, and over all inputs; ``massive_max`` is the largest; of the first text."""
        own = [row for row in rows if row["text"] == rows[0]["text"]]
        found: dict[str, float] = {}
        for number in (*INPUT, *COVARIANCE_NUMBERS):
            of_number = [row for row in own if row["what"] in ("input", "covariance", "residual")]
            found |= {f"{number}/{kind}": value for (kind,), value in mean_by(of_number, ("kind",), number).items()}
            inputs = [{**row, "all": "all"} for row in of_number if row["what"] != "residual"]
            found |= {f"{number}/all": value for value in mean_by(inputs, ("all",), number).values()}
        streams = [float(row["massive_max"]) for row in own if row["what"] == "residual"]
        found["massive_max/residual"] = max(streams)
        drift = {int(row["layer"]): row for row in own if row["what"] == "drift"}
        for number in DRIFT if drift else ():
            # before the first block there is only the embedding
            found[f"{number}/mean"] = mean_by([drift[i] for i in drift if i], ("what",), number)[("drift",)]
            found[f"{number}/last"] = float(drift[max(drift)][number])
        return found

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Every statistic of the inputs over the layers and their spectra, text by text; drift on all texts."""
        drift = [row for row in rows if row["what"] == "drift"]
        return [*each_text([row for row in rows if row["what"] != "drift"], _input_figures), *_drift_figures(drift)]


def _input_figures(rows: Sequence[Row]) -> list[Figure]:
    """On one text, one picture a kind of layer."""
    drawn = []
    for what, numbers in (("input", INPUT), ("covariance", COVARIANCE)):
        own = [
            row for row in rows if row["what"] in (what, "residual" if what == "input" else what) and row["layer"] != -1
        ]
        for number, (said, how) in numbers.items():
            panels = _by_kind(own, partial(_over_layers, number=number))
            ends = "; shaded: 95% over documents" if what == "input" else ""
            caption = f"{how[0].upper()}{how[1:]}. One picture a kind of layer, text {rows[0]['text']}{ends}."
            drawn.append(_panels(f"{said[0].upper()}{said[1:]}", caption, panels, "layer", number))
    spectra = _by_kind([r for r in rows if r["what"] == "spectrum" and float(r["share"]) > DRAWN], _spectra)
    caption = (
        f"Eigenvalues over their sum by rank, those above {short_number(DRAWN)}; geometric mean over the layers of "
        f"a kind, as far as all have one. Text {rows[0]['text']}."
    )
    drawn.append(_panels("Spectrum of the covariance", caption, spectra, "rank", "share", log=True))
    return drawn


def _drift_figures(drift: Sequence[Row]) -> list[Figure]:
    """One picture a text."""
    drawn = []
    for number, (said, how) in DRIFT.items() if drift else ():
        texts = dict.fromkeys(str(row["text"]) for row in drift)
        panels = {text: _over_layers([row for row in drift if row["text"] == text], number) for text in texts}
        caption = f"{how[0].upper()}{how[1:]}. Residual stream before the first block (0) and after each block."
        drawn.append(_panels(f"{said[0].upper()}{said[1:]}", caption, panels, "layer", number))
    return drawn


def _by_kind(rows: Sequence[Row], lines: Callable[[Sequence[Row]], list[Series]]) -> dict[str, list[Series]]:
    """Kind of layer -> its lines, those of lm_head last."""
    kinds = sorted(dict.fromkeys(str(row["kind"]) for row in rows), key=lambda kind: kind == "lm_head")
    return {kind: lines([row for row in rows if row["kind"] == kind]) for kind in kinds}


def _over_layers(rows: Sequence[Row], number: str) -> list[Series]:
    """One line a model, with intervals where the number has some."""
    series = []
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        own = sorted((row for row in rows if row["model"] == model), key=lambda row: int(row["layer"]))
        low, high = (
            [float(row[f"{number}_{end}"]) for row in own if f"{number}_{end}" in row] for end in ("low", "high")
        )
        series.append(Series(model, [(float(row["layer"]), float(row[number])) for row in own], low, high))
    return series


def _spectra(rows: Sequence[Row]) -> list[Series]:
    """One line a model: the geometric mean of the shares of every rank that all layers have."""
    series = []
    by_rank = grouped([{**row, "log": math.log(float(row["share"]))} for row in rows], ("model", "rank"), "log")
    for model in dict.fromkeys(of for of, _ in by_rank):
        own = {int(rank): logs for (of, rank), logs in by_rank.items() if of == model}
        n_layers = max(map(len, own.values()))
        points = [(float(r), math.exp(sum(own[r]) / n_layers)) for r in sorted(own) if len(own[r]) == n_layers]
        series.append(Series(model, points))
    return series


def _panels(
    title: str, caption: str, panels: Mapping[str, Sequence[Series]], x: str, number: str, log: bool = False
) -> Figure:
    """The pictures with a table of all their points."""
    wide, phone = both_arrangements(panels, x, number.replace("_", " "), log, log)
    rows = [
        (heading, row.name, f"{at:g}", short_number(value))
        for heading, series in panels.items()
        for row in series
        for at, value in row.points
    ]
    return Figure("", "", title, caption, wide, phone, ("", "model", x, number.replace("_", " ")), tuple(rows))
