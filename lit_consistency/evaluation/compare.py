"""Two models on the same items: the difference, its interval, and how likely it is by chance.

Items are joined by task, format, number of examples and id, and their difference is taken item by item, which is far
sharper than two separate intervals. Texts that two models read in different windows are joined by document. For scores
of 0 and 1 of single items the p-value is McNemar's exact test; for all others (bits per byte, ROUGE-L, balanced
accuracy, items in groups) that of a permutation test, in which whole groups are exchanged. A model is better where p is
below 0.05; with fewer than six groups no p can be, and that is said. All of it is about these items: another seed of
the finetuning moves a score by more than their sampling error (Sun & Dredze, arXiv 2408.06663, see ten times as much).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_consistency.records.results import Result, check_items, higher_is_better, read_items, read_results
from lit_consistency.stats.intervals import Estimate, Ratio, by_class, paired_difference, ratio, turned, value_of
from lit_consistency.stats.paired_tests import LEVEL, least_p_value, mcnemar, permutation_test


@dataclass(frozen=True)
class Comparison:
    """One task in one format, of two models.

    Args:
        task: its name.
        format: of the prompts.
        shots: few-shot examples.
        metric: that judges the task.
        n: items that both have.
        first: value of the first model on these items.
        second: of the second.
        difference: second minus first.
        p_value: of McNemar's or the permutation test; NaN where a single item, or no number, gives none.
        better: ``first`` or ``second`` where p is below ``LEVEL``, or empty.
        undecidable: why no p-value of these items can be below ``LEVEL``, or empty where one can.
        chance: of the metric, on all items of the first; None where it has none.
        majority: likewise.
        n_clusters: what is drawn together, where that is more than single items; else None.
    """

    task: str
    format: str
    shots: int
    metric: str
    n: int
    first: float
    second: float
    difference: Estimate
    p_value: float
    better: str
    undecidable: str
    chance: float | None
    majority: float | None
    n_clusters: int | None = None

    @property
    def change(self) -> Estimate:
        """How much better the second is than the first, with its interval; below 0 it is worse."""
        return self.difference if higher_is_better(self.metric) else turned(self.difference)

    def as_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "difference": self.difference._asdict()}


def compare_folders(
    first: Path,
    second: Path,
    seed: int = 0,
    metrics: Mapping[str, Sequence[str]] | None = None,
    tested: bool = True,
) -> tuple[list[Comparison], list[str]]:
    """Compare every result that both folders hold.

    Args:
        first: output folder of ``evaluate``.
        second: another.
        seed: of the permutations.
        metrics: key of a result -> metrics of its items by which it is compared; when not given, the one that judges
            it. Of a mapping only its keys are compared.
        tested: whether p-values are computed, which take most of the time; else they are NaN.

    Returns:
        The comparisons, and warnings: what only one of them holds, and items that differ.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: they have no result, or of a result no item, in common, or items of one id are not the same; or the
            items do not hold a metric.
    """
    left = {result.key: result for result in read_results(first)}
    right = {result.key: result for result in read_results(second)}
    if metrics is not None:
        left, right = ({key: result for key, result in side.items() if key in metrics} for side in (left, right))
    warnings = [f"{key}: only in {first}" for key in left if key not in right]
    warnings += [f"{key}: only in {second}" for key in right if key not in left]
    warnings += [*_of_other_models(first, left), *_of_other_models(second, right)]
    comparisons = []
    for key in (key for key in left if key in right):
        if left[key].metric != right[key].metric:
            raise ValueError(f"{key}: judged by {left[key].metric} in {first}, by {right[key].metric} in {second}")
        check_items(first, left[key])
        check_items(second, right[key])
        items = read_items(first, key), read_items(second, key)
        pairs, warning = _join(key, *(_documents(*items) if left[key].kind == "text" else items))
        warnings += warning
        for metric in metrics[key] if metrics is not None else [left[key].metric]:
            comparisons.append(_compare(left[key], metric, _scored_by(left[key], metric, pairs), seed, tested))
    if not comparisons:
        raise ValueError(f"compare: {first} and {second} have no task, format and number of examples in common")
    return comparisons, warnings


def _of_other_models(folder: Path, results: dict[str, Result]) -> list[str]:
    """A warning where a folder was written for one model after another, and not all of it anew."""
    keys: dict[str, list[str]] = {}
    for key, result in results.items():
        keys.setdefault(result.model, []).append(key)
    if len(keys) < 2:
        return []
    models = (", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in keys.values())
    return [f"{folder}: holds results of {len(keys)} models: {'; '.join(models)}"]


Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def _join(key: str, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[Pairs, list[str]]:
    right = {record["id"]: record for record in second}
    pairs = [(record, right[record["id"]]) for record in first if record["id"] in right]
    if not pairs:
        raise ValueError(f"{key}: the two sets of items have no id (of texts, no document of one length) in common")
    if other := [a["id"] for a, b in pairs if a.get("gold") != b.get("gold")]:
        raise ValueError(
            f"{key}: {len(other)} of {len(pairs)} items, such as {other[0]}, have another right answer in the second; "
            "expected results on the same data"
        )
    warnings = []
    alone = (len(first) - len(pairs), len(second) - len(pairs))
    if any(alone):
        warnings.append(
            f"{key}: {alone[0]} items only in the first, {alone[1]} only in the second; {len(pairs)} compared"
        )
    n_other = sum(a["shot_ids"] != b["shot_ids"] for a, b in pairs)
    if n_other:
        warnings.append(f"{key}: {n_other} of {len(pairs)} items were asked with other few-shot examples")
    return pairs, warnings


def _documents(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], ...]:
    """The items, or whole documents where windows of one name are not of one length.

    Models with another tokenizer or context cut a document in other places. Documents that have not the same length
    in both, as the last one under a limit, are left out.
    """
    lengths = {record["id"]: record["weight"] for record in first}
    if all(record["weight"] == lengths.get(record["id"], record["weight"]) for record in second):
        return first, second
    documents = _join_windows(first), _join_windows(second)
    same = {name for name in documents[0] if documents[0][name]["weight"] == documents[1].get(name, {}).get("weight")}
    return tuple([record for name, record in side.items() if name in same] for side in documents)


def _join_windows(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Documents by their id, from their windows: weights add up, scores are the weighted mean."""
    documents: dict[str, dict[str, Any]] = {}
    for record in records:
        name = record["id"].rpartition("+")[0]
        document = documents.setdefault(name, {**record, "id": name, "score": 0.0, "weight": 0.0})
        weight = document["weight"] + record["weight"]
        score = document["score"] * document["weight"] + record["score"] * record["weight"]
        document["score"], document["weight"] = score / max(weight, 1e-300), weight
    return documents


def _scored_by(result: Result, metric: str, pairs: Pairs) -> Pairs:
    """The pairs scored by a metric of the task, as far as the items tell it; all tell the one that judges."""
    if metric == result.metric:
        return pairs
    scored = [(_by_metric(a, metric), _by_metric(b, metric)) for a, b in pairs]
    told = [(a, b) for a, b in scored if a is not None and b is not None]
    if len(told) < len(pairs):
        names = [name for name in result.metrics if name == result.metric or _by_metric(pairs[0][0], name)]
        raise ValueError(f"{result.key}: metric {metric!r}: its items do not tell it; expected {' or '.join(names)}")
    return told


def _by_metric(record: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """The item with another score, and what that weighs."""
    if metric in record:
        return {**record, "score": record[metric], "weight": 1.0}
    if metric != "nats_per_token" or not record.keys() >= {"log_likelihoods", "n_tokens"}:
        return None
    right = int(record.get("gold", 0))  # the only candidate of a completion has no number
    weight = record["n_tokens"][right]
    return {**record, "score": -record["log_likelihoods"][right] / max(weight, 1), "weight": float(weight)}


def _compare(result: Result, metric: str, pairs: Pairs, seed: int, tested: bool) -> Comparison:
    names = [a.get("cluster") or str(a["group"] or a["id"]) for a, _ in pairs]
    clusters = names if 1 < len(set(names)) < len(names) else None
    first, second = (_ratio(metric, [pair[side] for pair in pairs]) for side in (0, 1))
    difference = paired_difference(first, second, clusters, share=higher_is_better(metric))
    p_value = _p_value(metric, pairs, first, second, clusters, seed) if tested else math.nan
    values = [float(value_of(side.numerator.sum(0), side.denominator.sum(0))) for side in (first, second)]
    return Comparison(
        task=result.task,
        format=result.format,
        shots=result.shots,
        metric="nats_per_word" if metric == "word_perplexity" else metric,  # its logarithm is a mean
        n=len(pairs),
        first=values[0],
        second=values[1],
        difference=difference,
        p_value=p_value,
        better=_better(difference.value, p_value, higher_is_better(metric)),
        undecidable=_undecidable(len(pairs) if clusters is None else len(set(clusters)), clusters is not None),
        chance=result.baseline("chance", metric),
        majority=result.baseline("majority", metric),
        n_clusters=None if clusters is None else len(set(clusters)),
    )


def _p_value(
    metric: str, pairs: Pairs, first: Ratio, second: Ratio, clusters: Sequence[str] | None, seed: int
) -> float:
    scores = [[float(pair[side]["score"]) for pair in pairs] for side in (0, 1)]
    binary = all(score in (0.0, 1.0) for side in scores for score in side)
    if binary and clusters is None and metric != "balanced_accuracy":
        return mcnemar(*scores)
    return permutation_test(first, second, clusters, seed)


def _ratio(metric: str, records: Sequence[dict[str, Any]]) -> Ratio:
    scores = [float(record["score"]) for record in records]
    if metric == "balanced_accuracy":
        return by_class(scores, [int(record["gold"]) for record in records])
    weights = [float(record["weight"]) for record in records]
    return ratio([score * weight for score, weight in zip(scores, weights, strict=True)], weights)


def _better(difference: float, p_value: float, higher: bool) -> str:
    if math.isnan(difference) or not p_value < LEVEL:
        return ""
    return "second" if (difference > 0) == higher else "first"


def _undecidable(n: int, grouped: bool) -> str:
    least = least_p_value(n)
    if least < LEVEL:
        return ""
    return f"cannot be told with {n} {'groups' if grouped else 'items'}, whose least p is {least:.3g}"
