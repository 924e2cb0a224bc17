"""From what the engines return to the numbers of a task: one ratio of sums per metric, one record per item.

A number that compares two models needs the items behind it, so every item's score is kept with its weight: the metric
is sum(score * weight) / sum(weight). Right is who is strictly likelier: an argmin would give a tie to whoever stands
first, in minimal pairs always the right one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.metrics import ItemScores
from lit_consistency.stats.intervals import Ratio, by_class, ratio, value_of
from lit_consistency.tasks.prompts import n_words
from lit_consistency.tasks.questions import Question, Questions


class Measured(NamedTuple):
    """Numbers and items of one task in one format.

    Attributes:
        ratios: metric to sums; of ``word_perplexity`` its logarithm, nats per word.
        records: one per item, as JSON.
        predictions: of every item: the index of a candidate, or a text.
        golds: of every item.
        baselines: ``chance``, ``majority`` and ``balanced_majority``, where the kind has them.
    """

    ratios: dict[str, Ratio]
    records: list[dict[str, Any]]
    predictions: list[int | str]
    golds: list[int | str]
    baselines: dict[str, float]

    def values(self) -> dict[str, float]:
        """Metric -> its value, as the results of ``evaluate`` show it."""
        found = {name: float(value_of(r.numerator.sum(0), r.denominator.sum(0))) for name, r in self.ratios.items()}
        if "word_perplexity" in found:
            found["word_perplexity"] = math.exp(min(found["word_perplexity"], 700))
        return found


class _Likelihoods(NamedTuple):
    """Per item: of each candidate nll in nats, tokens and bytes; whether the right one was the greedy choice."""

    nll: list[np.ndarray]
    n_tokens: list[np.ndarray]
    n_bytes: list[np.ndarray]
    greedy: np.ndarray
    gold: np.ndarray


def measure_likelihood(questions: Questions, scores: ItemScores) -> Measured:
    """Numbers of a task whose candidates were scored.

    Args:
        questions: of kind text, choice or pairs.
        scores: of their items, in their order.
    """
    found = _by_item(scores)
    if questions.task.kind == "text":
        ratios = _text_ratios(questions.questions, found)
        golds: list[int | str] = []
        predictions: list[int | str] = []
        values: dict[str, np.ndarray] = {}
    else:
        per_byte = [nll / np.maximum(n, 1) for nll, n in zip(found.nll, found.n_bytes, strict=True)]
        values = {
            "accuracy": _wins(found.nll, found.gold),
            "accuracy_per_byte": _wins(per_byte, found.gold),
            "exact": found.greedy,
        }
        ratios = {name: ratio(value) for name, value in values.items()}
        ratios["balanced_accuracy"] = by_class(values["accuracy"], found.gold.tolist())
        ratios["nats_per_token"] = _of_gold(found)
        golds = found.gold.tolist()
        predictions = [int(np.argmin(np.nan_to_num(nll, nan=np.inf))) for nll in found.nll]
    judged = ratios[questions.task.metric]
    weight = judged.denominator.sum(1)
    score = judged.numerator.sum(1) / np.maximum(weight, 1e-300)
    records = []
    for i, question in enumerate(questions.questions):
        record = {**record_of(questions, question), "score": float(score[i]), "weight": float(weight[i])}
        record |= {"log_likelihoods": (-found.nll[i]).tolist(), "n_tokens": found.n_tokens[i].tolist()}
        record |= {name: float(values[name][i]) for name in questions.task.metrics if name in values}
        if values:
            record |= {"prediction": predictions[i], "gold": golds[i]}
        records.append(record)
    wanted = {name: ratios[name] for name in questions.task.metrics}
    return Measured(wanted, records, predictions, golds, _baselines(questions, found))


def record_of(questions: Questions, question: Question) -> dict[str, Any]:
    """What names an item, in the results of every kind."""
    return {
        "task": questions.task.name,
        "id": question.id,
        "group": question.group,
        "format": questions.format,
        "shots": questions.shots,
        "shot_ids": list(question.shot_ids),
        "n_truncated": question.n_truncated,
    }


def _by_item(scores: ItemScores) -> _Likelihoods:
    ends = np.cumsum(scores.n_candidates.numpy())[:-1]
    nll, n_tokens, n_bytes = (np.split(part.numpy(), ends) for part in (scores.nll, scores.n_tokens, scores.n_bytes))
    right = scores.gold_rows
    # the argmax of logits that are not numbers is some token all the same, and may be a hit
    known = (scores.n_tokens[right] > 0) & ~scores.nll[right].isnan()
    greedy = (known & (scores.n_hits[right] == scores.n_tokens[right])).double().numpy()
    return _Likelihoods(nll, n_tokens, n_bytes, greedy, scores.gold.numpy())


def _wins(costs: Sequence[np.ndarray], golds: np.ndarray) -> np.ndarray:
    """(N,) 1.0 where the right candidate costs strictly less than every other, else 0.0."""
    return np.asarray(
        [float((np.delete(c, g) > c[g]).all() and c[g] == c[g]) for c, g in zip(costs, golds, strict=True)]
    )


def _of_gold(found: _Likelihoods) -> Ratio:
    pick = [(nll[g], n[g]) for nll, n, g in zip(found.nll, found.n_tokens, found.gold, strict=True)]
    return ratio([nll for nll, _ in pick], [n for _, n in pick])


def _text_ratios(questions: Sequence[Question], found: _Likelihoods) -> dict[str, Ratio]:
    nll = [float(part[0]) for part in found.nll]
    return {
        "nats_per_token": ratio(nll, [float(n[0]) for n in found.n_tokens]),
        "bits_per_byte": ratio([value / math.log(2) for value in nll], [float(n[0]) for n in found.n_bytes]),
        "word_perplexity": ratio(nll, [n_words(question) for question in questions]),
    }


def _baselines(questions: Questions, found: _Likelihoods) -> dict[str, float]:
    """Chance: one over the number of candidates. Majority: always the class that is right most often.

    Of the balanced accuracy that is one over the number of classes.
    """
    n_candidates = [len(nll) for nll in found.nll]
    if questions.task.kind == "text" or max(n_candidates) < 2:
        return {}
    baselines = {"chance": float(np.mean([1 / n for n in n_candidates]))}
    if questions.task.kind == "choice":
        counts = Counter(found.gold.tolist())
        baselines["majority"] = counts.most_common(1)[0][1] / len(n_candidates)
        baselines["balanced_majority"] = 1 / len(counts)
    return baselines
