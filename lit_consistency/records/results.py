"""Results on disk: one file of numbers and one of items for every task, format and number of examples.

``results/KEY.json`` is written last and whole, so it says that ``items/KEY.jsonl`` beside it is complete; its
fingerprint holds all that the numbers depend on, and an evaluation that finds the same one does not measure again. It
names the hash and the number of its items, which tell items that were edited or cut from those that were written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import json_line, new_file, write_json, write_text
from lit_consistency.records.extras import require
from lit_consistency.records.fingerprints import sha256

ITEM_FORMATS = ("jsonl", "parquet")
METRICS = {
    "accuracy": True,
    "accuracy_per_byte": True,
    "balanced_accuracy": True,
    "exact": True,
    "exact_match": True,
    "rouge_l": True,
    "pass": True,
    "maj": True,
    "bits_per_byte": False,
    "nats_per_token": False,
    "nats_per_word": False,
    "word_perplexity": False,
    "loss": False,
    "perplexity": False,
    "kl": False,
}
"""Whether more is better; of ``pass@K`` and ``maj@K`` the name alone. What is better higher is a share from 0 to 1."""


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better: shares of right answers, but no loss and no perplexity.

    Raises:
        ValueError: no metric of this name is known, so what it means to be worse is not either.
    """
    name = metric.partition("@")[0]
    if name not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    return METRICS[name]


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
        confined: of programs that the model wrote, what stood around them when they ran.
        n_items: records in the file of items; set when it is written.
        items_sha256: SHA-256 of that file; empty in results of older versions.
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
    confined: str | None = None
    n_items: int = 0
    items_sha256: str = ""

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
        """``chance``, ``shortest`` or ``majority`` of a metric; None where it has none."""
        if name == "shortest" and metric != "accuracy":  # by summed log-likelihood short answers win, else not
            return None
        if "accuracy" not in metric and metric != "exact_match":
            return None
        balanced = name == "majority" and metric == "balanced_accuracy"
        return self.baselines.get("balanced_majority" if balanced else name)

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that judges."""
        return higher_is_better(self.metric)


def result_key(task: str, form: str, shots: int) -> str:
    """Name of the files of a task in one format."""
    return f"{task}.{form}.{shots}shot"


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

        with new_file(path) as temporary:
            parquet.write_table(pyarrow.Table.from_pylist(list(records)), temporary)
    else:
        write_text(path, "".join(f"{json_line(record)}\n" for record in records))
    write_json(numbers, asdict(replace(result, n_items=len(records), items_sha256=sha256(path))))


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
        later = {"model": "", "confined": None, "n_items": 0, "items_sha256": ""}
        known = {entry.name: content[entry.name] for entry in fields(Result) if entry.name not in later}
        known |= {name: content.get(name, none) for name, none in later.items()}
        for numbers in known["metrics"].values():
            numbers |= {key: math.nan if value is None else value for key, value in numbers.items()}
        known["findings"] = [tuple(finding) for finding in known["findings"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: damaged, or no result of this version ({error!r})") from None
    return Result(**known)


def check_items(folder: Path, result: Result) -> None:
    """ValueError unless the items of a result are those that were written with it."""
    files = [folder / "items" / f"{result.key}.{kind}" for kind in ITEM_FORMATS]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{folder}: no items/{result.key}.jsonl or .parquet; expected the items of every result"
        )
    if not result.items_sha256 or sha256(file) == result.items_sha256:
        return
    try:
        n_items = f"{len(read_items(folder, result.key))} items"
    except ValueError as error:
        n_items = str(error)
    raise ValueError(
        f"{file}: not what was written with results/{result.key}.json, {result.n_items} items ({n_items} now); "
        "expected items as evaluate has written them: measure again"
    )


def read_items(folder: Path, key: str) -> list[dict[str, Any]]:
    """The records of a result, from JSONL or Parquet; a score that was no number is NaN again."""
    path = folder / "items" / f"{key}.jsonl"
    if path.is_file():
        records = [_item(path, i, line) for i, line in enumerate(path.read_bytes().split(b"\n"), 1) if line]
        return [{**record, "score": math.nan} if record["score"] is None else record for record in records]
    path = path.with_suffix(".parquet")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no items/{key}.jsonl or .parquet; expected the items of every result")
    require("pyarrow", "items in .parquet files")
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


def _item(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        item = json.loads(line)
        if not {"id", "score"} <= item.keys():
            raise ValueError("expected id and score")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}, line {number}: damaged ({error})") from None
    return item
