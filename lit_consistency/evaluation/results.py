"""Results on disk: one file of numbers and one of items for every task, format and number of examples.

``results/KEY.json`` is written last and whole, so it says that ``items/KEY.jsonl`` beside it is complete; its
fingerprint holds all that the numbers depend on, and an evaluation that finds the same one does not measure again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lit_consistency.data.files import require
from lit_consistency.evaluation.guards import Finding
from lit_consistency.evaluation.measure import Measured
from lit_consistency.evaluation.questions import Questions
from lit_consistency.evaluation.task import LOWER_IS_BETTER
from lit_consistency.metrics.intervals import Estimate, Ratio, estimate, value_of
from lit_consistency.model.folder import flush

ITEM_FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True)
class Result:
    """What is kept of a task in one format.

    Args:
        task: its name.
        kind: its kind.
        format: name of the format, ``none`` for texts and pairs.
        shots: few-shot examples.
        n: items scored.
        metrics: metric -> value, stderr, low, high; the first one judges the task.
        baselines: chance, majority and balanced_majority, where the kind has them.
        groups: part of the set -> n and value of the judging metric.
        findings: guard and message.
        n_truncated: prompt tokens that were cut.
        fingerprint: of all that the numbers depend on.
        model: fingerprint of the model alone, so that results of two models in one folder are told apart.
    """

    task: str
    kind: str
    format: str
    shots: int
    n: int
    metrics: dict[str, dict[str, float]]
    baselines: dict[str, float]
    groups: dict[str, dict[str, float]]
    findings: list[tuple[str, str]]
    n_truncated: int
    fingerprint: str
    model: str = ""

    @property
    def key(self) -> str:
        """Name of the files."""
        return result_key(self.task, self.format, self.shots)

    @property
    def metric(self) -> str:
        """The metric that judges."""
        return next(iter(self.metrics))

    @property
    def value(self) -> float:
        """Of the metric that judges."""
        return self.metrics[self.metric]["value"]

    def baseline(self, name: str, metric: str) -> float | None:
        """``chance`` or ``majority`` of a metric; None where it has none."""
        if "accuracy" not in metric and metric != "exact_match":
            return None
        balanced = name == "majority" and metric == "balanced_accuracy"
        return self.baselines.get("balanced_majority" if balanced else name)

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that judges."""
        return self.metric not in (*LOWER_IS_BETTER, "nats_per_token")


def result_key(task: str, form: str, shots: int) -> str:
    """Name of the files of a task in one format."""
    return f"{task}.{form}.{shots}shot"


def summarize_result(
    questions: Questions,
    measured: Measured,
    findings: Sequence[Finding],
    fingerprint: str,
    seed: int,
    model: str = "",
) -> Result:
    """Numbers with their intervals; what belongs together is drawn together (``clusters_of``)."""
    groups = [str(question.group) for question in questions.questions]
    clusters = clusters_of(questions.task.kind, groups, [question.id for question in questions.questions])
    metrics = {name: _as_shown(name, estimate(items, clusters, seed)) for name, items in measured.ratios.items()}
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


def _as_shown(name: str, found: Estimate) -> dict[str, float]:
    if name != "word_perplexity":
        return found._asdict()
    value, low, high = map(_perplexity, (found.value, found.low, found.high))
    return {"value": value, "stderr": value * found.stderr, "low": low, "high": high}


def _perplexity(nats_per_word: float) -> float:
    return math.exp(min(nats_per_word, 700))  # what is greater has no float64


def _groups(items: Ratio, metric: str, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    names = np.asarray(groups)
    for name in sorted(set(groups)) if len(set(groups)) > 1 else []:
        taken = names == name
        value = float(value_of(items.numerator[taken].sum(0), items.denominator[taken].sum(0)))
        found[name] = {"n": int(taken.sum()), "value": _perplexity(value) if metric == "word_perplexity" else value}
    return found


def fingerprint_of(parts: Any) -> str:
    """sha256 of the JSON of what a result depends on; the order counts, as that of a task's fields does."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


# -------------------- files


def write_result(folder: Path, result: Result, records: Sequence[dict[str, Any]], items: str = "jsonl") -> None:
    """Write items and then numbers, each whole or not at all."""
    path = folder / "items" / f"{result.key}.{items}"
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = folder / "results" / f"{result.key}.json"
    numbers.unlink(missing_ok=True)  # earlier numbers must not stand beside these items, should this end in between
    for other in ITEM_FORMATS:
        if other != items:
            path.with_suffix(f".{other}").unlink(missing_ok=True)
    if items == "parquet":
        require("pyarrow", "--item_format parquet")
        import pyarrow
        from pyarrow import parquet

        unfinished = path.with_name(path.name + ".unfinished")
        parquet.write_table(pyarrow.Table.from_pylist(list(records)), unfinished)
        flush(unfinished)
        os.replace(unfinished, path)
    else:
        write_text(path, "".join(json.dumps(_plain(record), ensure_ascii=False) + "\n" for record in records))
    write_json(numbers, asdict(result))


def read_results(folder: Path) -> list[Result]:
    """The results of a folder, sorted by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or written by another version.
    """
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder}: holds no results; expected a folder written by evaluate --output")
    return [read_result(file) for file in files]


def read_result(file: Path) -> Result:
    """One result; what was no number is NaN again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {entry.name: content[entry.name] for entry in fields(Result) if entry.name != "model"}
        known["model"] = content.get("model", "")  # added later
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no result of this version ({error!r})") from None
    for numbers in known["metrics"].values():
        numbers |= {key: math.nan if value is None else value for key, value in numbers.items()}
    known["findings"] = [tuple(finding) for finding in known["findings"]]
    return Result(**known)


def read_items(folder: Path, key: str) -> list[dict[str, Any]]:
    """The records of a result, from JSONL or Parquet; a score that was no number is NaN again."""
    path = folder / "items" / f"{key}.jsonl"
    if path.is_file():
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{**record, "score": math.nan} if record["score"] is None else record for record in records]
    path = path.with_suffix(".parquet")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no items/{key}.jsonl or .parquet; expected the items of every result")
    require("pyarrow", "items in .parquet files")
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; what is no number becomes null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, bring it to the disk, and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    flush(unfinished)
    os.replace(unfinished, path)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
