from __future__ import annotations

import json
from pathlib import Path

from lit_consistency.loggers.metrics_file import MetricsFile
from lit_consistency.records.run_folder import RunFolder


def steps(folder: RunFolder) -> list[int]:
    return [line["step"] for line in folder.read_metrics()]


def test_one_line_per_step(tmp_path: Path) -> None:
    file = MetricsFile(RunFolder(tmp_path / "run"))
    file.log_metrics({"loss": 1.5}, step=1)
    file.log_metrics({"loss": 1.0}, step=2)
    assert file.folder.read_metrics() == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.0}]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    file = MetricsFile(RunFolder(tmp_path))
    file.log_metrics({"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.5}, step=1)
    line = '{"step": 1, "a": null, "b": null, "c": null, "d": 0.5}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == line
    file.keep_until(1)
    assert (tmp_path / "metrics.jsonl").read_text() == line


def test_a_resume_drops_later_steps_and_a_torn_last_line(tmp_path: Path) -> None:
    file = MetricsFile(RunFolder(tmp_path))
    for step in range(5):
        file.log_metrics({"loss": 0.0}, step=step)
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 2, "lo')
    file.keep_until(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert steps(file.folder) == [0, 1, 2]


def test_nothing_to_drop_is_no_error(tmp_path: Path) -> None:
    MetricsFile(RunFolder(tmp_path / "run")).keep_until(2)
    assert not (tmp_path / "run").exists()
