"""From what was measured of a task in one format to its result: numbers with intervals, baselines, groups, findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lit_consistency.records.results import Result, higher_is_better
from lit_consistency.stats.intervals import Estimate, Ratio, estimate, value_of
from lit_consistency.tasks.guards import Finding
from lit_consistency.tasks.measure import Measured
from lit_consistency.tasks.questions import Questions


def summarize_result(
    questions: Questions,
    measured: Measured,
    findings: Sequence[Finding],
    fingerprint: str,
    model: str = "",
) -> Result:
    """Numbers with their intervals; what belongs together is drawn together (``clusters_of``)."""
    groups = [str(question.group) for question in questions.questions]
    clusters = clusters_of(questions.task.kind, groups, [question.id for question in questions.questions])
    metrics = {
        name: _as_shown(name, estimate(items, clusters, share=higher_is_better(name)))
        for name, items in measured.ratios.items()
    }
    return Result(
        task=questions.task.name,
        kind=questions.task.kind,
        format=questions.format,
        shots=questions.shots,
        n=len(questions.questions),
        metrics=metrics,
        baselines=measured.baselines,
        groups=_groups(measured.ratios[questions.task.metric], questions.task.metric, groups),
        findings=[(finding.guard, finding.message) for finding in findings],
        n_truncated=sum(question.n_truncated for question in questions.questions),
        fingerprint=fingerprint,
        model=model,
    )


def clusters_of(kind: str, groups: Sequence[str], ids: Sequence[str]) -> list[str] | None:
    """What is drawn together: groups where there are several, windows of one document, or None for single items.

    Args:
        kind: of the task.
        groups: of every item.
        ids: of every item; of a text that of its document, a plus sign, and where the window starts.
    """
    if len(set(groups)) > 1:
        return list(groups)
    documents = [name.rpartition("+")[0] for name in ids] if kind == "text" else []
    # of a single document the windows are all there is
    return documents if 1 < len(set(documents)) < len(ids) else None


def _as_shown(name: str, number: Estimate) -> dict[str, float]:
    if name != "word_perplexity":
        return number._asdict()
    value, low, high = map(_perplexity, (number.value, number.low, number.high))
    # the derivative of exp(x) is exp(x)
    return {"value": value, "stderr": value * number.stderr, "low": low, "high": high}


def _perplexity(nats_per_word: float) -> float:
    return math.exp(min(nats_per_word, 700))  # what is greater has no float64


def _groups(items: Ratio, metric: str, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    names = np.asarray(groups)
    values: dict[str, dict[str, float]] = {}
    for name in sorted(set(groups)) if len(set(groups)) > 1 else []:
        members = names == name
        value = float(value_of(items.numerator[members].sum(0), items.denominator[members].sum(0)))
        values[name] = {"n": int(members.sum()), "value": _perplexity(value) if metric == "word_perplexity" else value}
    return values
