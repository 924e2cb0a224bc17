r"""Generalization gap: how much better a model predicts text that it was trained on than text that was held out.

.. math::
    gap = \frac{\sum nll(held\ out)}{n} - \frac{\sum nll(seen)}{n},

mean losses in nats per scored token, in evaluation mode (no dropout), on the same number n of scored tokens of each:
documents in an order drawn by the seed until there are n, the last one cut. Positive is the usual sign: what was seen
is predicted better (Han et al. 2026, arXiv 2602.11137, write seen minus held out). Texts that a model saw once have
no gap; it is read where training took several epochs.

Interval: BCa bootstrap over documents (Efron 1987, Better Bootstrap Confidence Intervals, JASA 82), which are drawn
with replacement on each side by itself; of a text that is a single document, over windows of ``block_size`` tokens
(column ``drawn``). With few documents it is too narrow, with one there is none.

x-axis: ``tau``, the time scale of weight decay in the model's last training, and ``tau_pretraining`` in its first, see
core/time_scale.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.stats import bootstrap

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.analysis.core.time_scale import tau_of_pretraining
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.scatter import Spot, draw_scatter
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.score import score_items
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.records.tables import Row

N_BOOT = 9999
AT_ONCE = 1 << 22
"""Drawn documents that are held in memory at a time."""


class Sums(NamedTuple):
    """Of K documents: summed nll in nats (K,) float64, and scored tokens (K,) float64."""

    nll: np.ndarray
    n_tokens: np.ndarray


@dataclass(frozen=True)
class GeneralizationGap(Analysis):
    """Generalization gap.

    Args:
        seen: a text that the models were trained on: a task (as ``seen/markov``) or a file.
        held_out: one of the same kind that they were not.
        tokens: scored tokens of each; 0: as many as the smaller one has.
        level: of the interval.
    """

    title: ClassVar[str] = "Seen and held-out text"

    seen: str = ""
    held_out: str = ""
    tokens: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        for key in ("seen", "held_out"):
            if not getattr(self, key):
                raise ValueError(f"{key}: expected a task of configs/evaluation, or a file of text")
        if self.seen == self.held_out:
            raise ValueError(f"seen, held_out: both are {self.seen!r}; expected two texts")
        if self.tokens < 0:
            raise ValueError(f"tokens = {self.tokens}: expected 0 (as many as there are) or more")
        if not 0 < self.level < 1:
            raise ValueError(f"level = {self.level}: expected a share between 0 and 1")

    def check(self, subject: Subject) -> None:
        """Both texts must have as many tokens as are asked for, and must not be the same."""
        there = {key: subject.text(getattr(self, key)) for key in ("seen", "held_out")}
        if self.tokens > min(text.n_scored for text in there.values()):
            said = ", ".join(f"{key} = {text.name!r} has {text.n_scored}" for key, text in there.items())
            raise ValueError(f"tokens = {self.tokens}: {said} scored tokens; expected no more, or another --limit")
        same = {tuple(tokens.tolist()) for tokens, _ in there["seen"].rows}
        shared = sum(tuple(tokens.tolist()) in same for tokens, _ in there["held_out"].rows)
        if shared == len(there["held_out"].rows):
            raise ValueError(f"held_out = {self.held_out!r}: all of it stands in seen = {self.seen!r} too")

    def inputs(self, subject: Subject) -> list[str]:
        """Both texts."""
        return [subject.text(self.seen).fingerprint, subject.text(self.held_out).fingerprint]

    def parts(self, subject: Subject) -> list[str]:
        """One."""
        return ["gap"]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """One row."""
        texts = [subject.text(name) for name in (self.seen, self.held_out)]
        n = self.tokens or min(text.n_scored for text in texts)
        sums, drawn = [], []
        for text in texts:
            unit, items, owners = of_size(text, n, seed_of(subject.seed, text.name))
            sums.append(self._score(subject, items, owners))
            drawn.append(unit)
            advance(0.4)
        gap = difference(sums[0], sums[1])
        low, high = bca_interval(sums[0], sums[1], self.level, seed_of(subject.seed, "bootstrap"))
        return [
            {
                "optimizer": subject.model.optimizer,
                "seen": self.seen,
                "held_out": self.held_out,
                "n_tokens": n,
                "n_seen": len(sums[0].nll),
                "n_held_out": len(sums[1].nll),
                "drawn": drawn[0] if drawn[0] == drawn[1] else " and ".join(drawn),
                "seen_nats_per_token": float(sums[0].nll.sum() / n),
                "held_out_nats_per_token": float(sums[1].nll.sum() / n),
                "gap": gap,
                "low": low,
                "high": high,
                "tau_pretraining": tau_of_pretraining(subject.model),
            }
        ]

    def _score(self, subject: Subject, items: Sequence[Item], owners: Sequence[int]) -> Sums:
        loaded = subject.load()
        with evaluation_mode(loaded.model):
            scores = score_items(loaded.model, items, batch_tokens=subject.batch_tokens, device=loaded.device)
        nll, n_tokens = (np.bincount(owners, values.double().numpy()) for values in (scores.nll, scores.n_tokens))
        return Sums(nll, n_tokens)

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The gap with its interval, both losses, and the time scales."""
        names = ("gap", "low", "high", "seen_nats_per_token", "held_out_nats_per_token", "tau", "tau_pretraining")
        return {name: float(rows[0][name]) for name in names if name in rows[0]}

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The gap of every model, and over tau where models differ in it."""
        columns = ("model", "gap", "low", "high", "seen", "held out")
        keys = ("gap", "low", "high", "seen_nats_per_token", "held_out_nats_per_token")
        table = tuple((str(r["model"]), *(short_number(float(r[key])) for key in keys)) for r in rows)
        first = rows[0]
        caption = (
            f"Loss on {first['held_out']} less that on {first['seen']}, {first['n_tokens']} scored tokens of each; "
            f"{self.level:.0%} BCa intervals over {first['drawn']}."
        )
        dots = [Dot(str(r["model"]), "gap", *(float(r[key]) for key in keys[:3])) for r in rows]
        title = "gap in nats per token"
        figures = [Figure("", "", "Gap", caption, draw_dots(dots, title, WIDTH), None, columns, table)]
        # of models that were trained once, both are the same
        twice = all(r.get("tau") == r["tau_pretraining"] for r in rows)
        for key, said in (("tau_pretraining", "pretraining"), ("tau", "last training"))[: 1 if twice else 2]:
            known = [r for r in rows if math.isfinite(float(r.get(key, math.nan)))]
            if len({r[key] for r in known}) > 1:
                spots = [
                    Spot(str(r["model"]), str(r["optimizer"]), *(float(r[name]) for name in (key, *keys[:3])))
                    for r in known
                ]
                canvas = draw_scatter(spots, "tau, in passes over the data", title, WIDTH, log_x=True)
                figures.append(Figure("", "", f"Gap over tau of the {said}", caption, canvas, None, columns, table))
        return figures


# -------------------- texts of one size


def of_size(text: Text, n: int, seed: int) -> tuple[str, list[Item], list[int]]:
    """Exactly ``n`` scored tokens of a text.

    Args:
        text: with at least as many.
        n: scored tokens.
        seed: of the order of the documents; the windows of one document stay in their order.

    Returns:
        What is drawn, ``documents`` or ``windows``; items with one candidate each, the right answer; and of each the
        number of what it belongs to, 0 .. K - 1 without a gap.
    """
    alone = len(set(text.clusters)) == 1 and len(text.items) > 1
    clusters = [str(i) for i in range(len(text.items))] if alone else text.clusters
    members: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    names = list(members)
    items: list[Item] = []
    owners: list[int] = []
    left = n
    for k in np.random.default_rng(seed).permutation(len(names)):
        for i in members[names[k]]:
            answer = text.items[i].candidates[text.items[i].gold]
            # the first token is context only, as nothing stands before it
            scored = np.asarray(answer.supervised, dtype=bool) & (np.arange(len(answer.tokens)) > 0)
            at = np.flatnonzero(scored)[:left]
            if len(at):
                kept = np.zeros(at[-1] + 1, dtype=bool)
                kept[at] = True
                items.append(Item([Candidate(answer.tokens[: len(kept)], kept, 0)], gold=0))
                owners.append(int(k))
                left -= len(at)
    number = {k: i for i, k in enumerate(dict.fromkeys(owners))}
    return "windows" if alone else "documents", items, [number[k] for k in owners]


# -------------------- bootstrap


def difference(seen: Sums, held_out: Sums) -> float:
    """Mean loss of the second less that of the first."""
    return float(held_out.nll.sum() / held_out.n_tokens.sum() - seen.nll.sum() / seen.n_tokens.sum())


def bca_interval(
    seen: Sums, held_out: Sums, level: float = 0.95, seed: int = 0, n_boot: int = N_BOOT
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the difference of two means (Efron and Tibshirani 1993).

    Documents are drawn within each side. Of documents that are all alike the interval is the difference itself; NaN
    where a side is one document.
    """
    sizes = [len(side.nll) for side in (seen, held_out)]
    if min(sizes) < 2:
        return math.nan, math.nan
    gap = difference(seen, held_out)
    # without any spread the interval of the bootstrap is not defined
    if all(np.ptp(side.nll / side.n_tokens) == 0 for side in (seen, held_out)):
        return gap, gap

    def of_documents(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        one, two = (
            side.nll[at].sum(axis) / side.n_tokens[at].sum(axis) for side, at in ((seen, first), (held_out, second))
        )
        return two - one

    result = bootstrap(
        [np.arange(n) for n in sizes],
        of_documents,
        confidence_level=level,
        n_resamples=n_boot,
        batch=max(AT_ONCE // max(sizes), 1),
        method="BCa",
        random_state=np.random.default_rng(seed),
        vectorized=True,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
