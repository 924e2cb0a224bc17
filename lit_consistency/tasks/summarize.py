"""From what was measured of a task in one format to its result: numbers with intervals, baselines, groups, findings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_consistency.records.results import Result
from lit_consistency.stats.intervals import Ratio, value_of
from lit_consistency.tasks.guards import Finding
from lit_consistency.tasks.measured import Measured, perplexity
from lit_consistency.tasks.task import EncodedTask


def summarize_result(
    encoded: EncodedTask,
    measured: Measured,
    findings: Sequence[Finding],
    fingerprint: str,
    model: str = "",
) -> Result:
    """Numbers with their intervals; what belongs together is drawn together (``measured.clusters``).

    Args:
        encoded: the questions.
        measured: what a model said.
        findings: of the guards.
        fingerprint: of all that the numbers depend on.
        model: fingerprint of the model alone.
    """
    task = encoded.task
    groups = [str(question.group) for question in encoded.questions]
    return Result(
        task=task.name,
        kind=task.kind,
        format=encoded.format,
        shots=encoded.shots,
        n=len(encoded.questions),
        metrics={name: numbers._asdict() for name, numbers in measured.estimates().items()},
        baselines=measured.baselines,
        groups=_groups(measured.ratios[task.metric], task.metric, groups),
        findings=[(finding.guard, finding.message) for finding in findings],
        n_truncated=sum(question.n_truncated for question in encoded.questions),
        fingerprint=fingerprint,
        model=model,
        confined=measured.confined,
    )


def _groups(items: Ratio, metric: str, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    numbers: dict[str, dict[str, float]] = {}
    names = np.asarray(groups)
    for name in sorted(set(groups)) if len(set(groups)) > 1 else []:
        members = names == name
        value = float(value_of(items.numerator[members].sum(0), items.denominator[members].sum(0)))
        numbers[name] = {"n": int(members.sum()), "value": perplexity(value) if metric == "word_perplexity" else value}
    return numbers
