"""What is drawn together when a number's error is estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_consistency.records.results import read_items, read_results
from lit_consistency.stats.intervals import estimate, ratio
from tests.tasks.tiny import evaluate, write_task


def test_the_error_of_a_text_is_that_of_its_documents(tiny_folder: Path, tmp_path: Path) -> None:
    """Windows of one document are alike: as if they were independent, the error would come out too small."""
    rng = np.random.default_rng(0)
    words = [["llama", "hill", "grass"], ["7", "42", "1999"], ["!", "?", "..."]]
    rows = [{"p": " ".join(rng.choice(words[i % 3], 150))} for i in range(6)]
    task = write_task(tmp_path / "prose.yaml", kind="text", text="{p}", metrics=["nats_per_token"], data=rows)
    evaluate(tiny_folder, "--tasks", task, "--output", tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    items = read_items(tmp_path / "out", result.key)
    assert len(items) > 2 * len(rows)
    sums = ratio([item["score"] * item["weight"] for item in items], [item["weight"] for item in items])
    documents = [item["id"].rpartition("+")[0] for item in items]
    numbers = result.metrics["nats_per_token"]
    assert numbers["stderr"] == pytest.approx(estimate(sums, documents).stderr)
    assert numbers["stderr"] > 1.1 * estimate(sums).stderr
    assert result.groups == {}
