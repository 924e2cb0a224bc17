from __future__ import annotations

import json
from pathlib import Path

from lit_consistency.loggers.metrics_file import MetricsFile


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_one_line_per_step(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.log_metrics({"loss": 1.5}, step=1)
    file.log_metrics({"loss": 1.0}, step=2)
    assert json.loads(file.path.read_text().splitlines()[1]) == {"step": 2, "loss": 1.0}


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log_metrics({"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.5}, step=1)
    assert file.path.read_text() == '{"step": 1, "a": null, "b": null, "c": null, "d": 0.5}\n'
    file.keep_until(1)
    assert steps(file.path) == [1]


def test_a_resume_drops_later_steps_and_a_torn_last_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(5):
        file.log_metrics({"loss": 0.0}, step=step)
    with open(file.path, "a") as stream:
        stream.write('{"step": 2, "lo')
    file.keep_until(2)
    assert steps(file.path) == [0, 1, 2]


def test_nothing_to_drop_is_no_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.keep_until(2)
    assert not file.path.exists()
