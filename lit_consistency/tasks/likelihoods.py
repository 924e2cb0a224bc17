"""Likelihoods of candidates, item by item, and what a task whose candidates were scored has measured.

Right is who is strictly likelier: an argmin would give a tie to whoever stands first, in minimal pairs always the right
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.inference.score import score_items
from lit_consistency.metrics import ItemScores
from lit_consistency.stats.intervals import Ratio, ratio
from lit_consistency.tasks.measured import Measured, clusters_of
from lit_consistency.tasks.question import EncodedQuestion
from lit_consistency.tasks.task import EncodedTask, Engine

CHUNK = 2048
"""Questions between two steps of a progress bar."""


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


def score_questions(encoded: EncodedTask, engine: Engine) -> Likelihoods:
    """The likelihoods of all candidates of a task whose questions have them."""
    parts = []
    for start in range(0, len(encoded.questions), CHUNK):
        chunk = encoded.questions[start : start + CHUNK]
        items = [question.item for question in chunk if question.item is not None]
        parts.append(score_items(engine.model, items, batch_tokens=engine.batch_tokens, device=engine.device))
        engine.advance(len(items))
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
