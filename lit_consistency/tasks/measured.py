"""What a task measured: one ratio of sums per metric, one record per item.

A number that compares two models needs the items behind it, so every item's score is kept with its weight: the metric
is sum(score * weight) / sum(weight). Right is who is strictly likelier: an argmin would give a tie to whoever stands
first, in minimal pairs always the right one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_consistency.records.results import higher_is_better
from lit_consistency.stats.intervals import Estimate, Ratio, estimate, value_of
from lit_consistency.tasks.question import EncodedQuestion

MOST_NATS = 700
"""The exponential of what is greater has no float64."""


class Measured(NamedTuple):
    """Numbers and items of one task in one format.

    Attributes:
        ratios: metric to sums; of ``word_perplexity`` its logarithm, nats per word.
        records: one per item, as JSON.
        predictions: of every item: the index of a candidate, or a text.
        golds: of every item.
        baselines: ``chance``, ``majority``, ``balanced_majority`` and ``shortest``, where the kind has them.
        clusters: of every item, what is drawn together; None where every item stands alone.
        confined: of programs that a model wrote, in words: what stood around them when they ran.
    """

    ratios: dict[str, Ratio]
    records: list[dict[str, Any]]
    predictions: Sequence[int | str]
    golds: Sequence[int | str]
    baselines: dict[str, float]
    clusters: list[str] | None = None
    confined: str | None = None

    def values(self) -> dict[str, float]:
        """Metric -> its value, as the results of ``evaluate`` show it."""
        values = {name: float(value_of(r.numerator.sum(0), r.denominator.sum(0))) for name, r in self.ratios.items()}
        return {name: perplexity(value) if name == "word_perplexity" else value for name, value in values.items()}

    def floor(self, metric: str) -> float:
        """What a model that knows nothing may reach by a metric: its greatest baseline; 0 where there is none."""
        if "accuracy" not in metric:
            return 0.0
        names = {
            "accuracy": ("chance", "majority", "shortest"),
            "accuracy_per_byte": ("chance", "majority"),
            "balanced_accuracy": ("chance", "balanced_majority"),
        }.get(metric, ("chance",))
        return max((self.baselines.get(name, 0.0) for name in names), default=0.0)

    def estimates(self) -> dict[str, Estimate]:
        """Metric -> value, standard error and interval, as ``values``."""
        estimates = {
            name: estimate(items, self.clusters, share=higher_is_better(name)) for name, items in self.ratios.items()
        }
        if (words := estimates.get("word_perplexity")) is not None:
            value, low, high = map(perplexity, (words.value, words.low, words.high))
            estimates["word_perplexity"] = Estimate(value, value * words.stderr, low, high)
        return estimates


def perplexity(nats_per_word: float) -> float:
    """exp(nats), below infinity."""
    return math.exp(min(nats_per_word, MOST_NATS))


def clusters_of(questions: Sequence[EncodedQuestion]) -> list[str] | None:
    """What is drawn together; None where every item stands alone, or all are one cluster."""
    clusters = [question.cluster for question in questions]
    return clusters if 1 < len(set(clusters)) < len(clusters) else None
