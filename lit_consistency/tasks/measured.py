"""What a task measured: one ratio of sums per metric, one record per item.

A number that compares two models needs the items behind it, so every item's score is kept with its weight: the metric
is sum(score * weight) / sum(weight). Right is who is strictly likelier: an argmin would give a tie to whoever stands
first, in minimal pairs always the right one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lit_consistency.inference.score import score_items
from lit_consistency.metrics import ItemScores
from lit_consistency.records.results import higher_is_better
from lit_consistency.stats.intervals import Estimate, Ratio, estimate, ratio, value_of
from lit_consistency.tasks.question import EncodedQuestion, EncodedTask
from lit_consistency.tasks.task import Advance

CHUNK = 2048
"""Questions between two steps of a progress bar."""
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
    """

    ratios: dict[str, Ratio]
    records: list[dict[str, Any]]
    predictions: Sequence[int | str]
    golds: Sequence[int | str]
    baselines: dict[str, float]
    clusters: list[str] | None = None

    def values(self) -> dict[str, float]:
        """Metric -> its value, as the results of ``evaluate`` show it."""
        values = {name: float(value_of(r.numerator.sum(0), r.denominator.sum(0))) for name, r in self.ratios.items()}
        return {name: perplexity(value) if name == "word_perplexity" else value for name, value in values.items()}

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


class Likelihoods(NamedTuple):
    """Per item: of each candidate nll in nats, tokens and bytes; whether the right one was the greedy choice."""

    nll: list[np.ndarray]
    n_tokens: list[np.ndarray]
    n_bytes: list[np.ndarray]
    greedy: np.ndarray
    gold: np.ndarray

    def of_gold(self) -> Ratio:
        """Nats of the right answers over their tokens."""
        right = [(nll[g], n[g]) for nll, n, g in zip(self.nll, self.n_tokens, self.gold, strict=True)]
        return ratio([nll for nll, _ in right], [n for _, n in right])


def score_questions(
    model: nn.Module, encoded: EncodedTask, *, batch_tokens: int, device: torch.device, advance: Advance
) -> Likelihoods:
    """The likelihoods of all candidates of a task whose questions have them."""
    parts = []
    for start in range(0, len(encoded.questions), CHUNK):
        chunk = encoded.questions[start : start + CHUNK]
        items = [question.item for question in chunk if question.item is not None]
        parts.append(score_items(model, items, batch_tokens=batch_tokens, device=device))
        advance(len(items))
    return by_item(ItemScores.concatenate(parts))


def by_item(scores: ItemScores) -> Likelihoods:
    """The scores of C candidates as lists of N items."""
    ends = np.cumsum(scores.n_candidates.numpy())[:-1]
    nll, n_tokens, n_bytes = (np.split(sums.numpy(), ends) for sums in (scores.nll, scores.n_tokens, scores.n_bytes))
    right = scores.gold_rows
    # the argmax of logits that are not numbers is some token all the same, and may be a hit
    known = (scores.n_tokens[right] > 0) & ~scores.nll[right].isnan()
    greedy = (known & (scores.n_hits[right] == scores.n_tokens[right])).double().numpy()
    return Likelihoods(nll, n_tokens, n_bytes, greedy, scores.gold.numpy())


def likelihoods_measured(
    encoded: EncodedTask,
    likelihoods: Likelihoods,
    ratios: dict[str, Ratio],
    predictions: Sequence[int | str] = (),
    baselines: dict[str, float] | None = None,
) -> Measured:
    """The numbers of a task whose candidates were scored, with a record for every item."""
    task = encoded.task
    judged = ratios[task.metric]
    weight = judged.denominator.sum(1)
    score = judged.numerator.sum(1) / np.maximum(weight, 1e-300)
    golds = likelihoods.gold.tolist() if predictions else []
    per_item = {name: r for name, r in ratios.items() if name in task.metrics and (r.denominator.sum(1) == 1).all()}
    records = []
    for i, question in enumerate(encoded.questions):
        record = {**record_of(encoded, question), "score": float(score[i]), "weight": float(weight[i])}
        record |= {"log_likelihoods": (-likelihoods.nll[i]).tolist(), "n_tokens": likelihoods.n_tokens[i].tolist()}
        record |= {name: float(r.numerator[i].sum()) for name, r in per_item.items()}
        if predictions:
            record |= {"prediction": predictions[i], "gold": golds[i]}
        records.append(record)
    wanted = {name: ratios[name] for name in task.metrics}
    return Measured(wanted, records, predictions, golds, baselines or {}, clusters_of(encoded.questions))


def record_of(encoded: EncodedTask, question: EncodedQuestion) -> dict[str, Any]:
    """What names an item, in the results of every kind."""
    return {
        "task": encoded.task.name,
        "id": question.id,
        "group": question.group,
        "cluster": question.cluster,
        "format": encoded.format,
        "shots": encoded.shots,
        "shot_ids": list(question.shot_ids),
        "n_truncated": question.n_truncated,
    }


def clusters_of(questions: Sequence[EncodedQuestion]) -> list[str] | None:
    """What is drawn together; None where every item stands alone, or all are one cluster."""
    clusters = [question.cluster for question in questions]
    return clusters if 1 < len(set(clusters)) < len(clusters) else None
