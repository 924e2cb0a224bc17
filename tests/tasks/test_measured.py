"""From sums to numbers with errors: what is drawn together, and what a group reaches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.load import Loaded
from lit_consistency.records.results import read_items, read_results
from lit_consistency.stats.intervals import estimate, ratio
from lit_consistency.tasks import likelihoods as engine
from lit_consistency.tasks.measured import Measured, clusters_of
from lit_consistency.tasks.question import EncodedQuestion
from lit_consistency.tasks.summarize import summarize_result
from tests.tasks.measuring import measure
from tests.tasks.tiny import NLI, PAIRS, built, evaluate, nli_rows, task_of, write_task


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [("aba", ["a", "b", "a"]), ("aab", ["a", "a", "b"]), ("abc", None), ("aaa", None), ("a", None)],
)
def test_single_items_and_a_single_cluster_are_no_clusters(clusters: str, expected: list[str] | None) -> None:
    questions = [EncodedQuestion(str(i), "", None, cluster, "", None) for i, cluster in enumerate(clusters)]
    assert clusters_of(questions) == expected


def test_what_belongs_together_stands_in_the_records(loaded: Loaded, tmp_path: Path) -> None:
    """The person of a fact, the document of a window, the phenomenon of a pair."""
    people = [{**row, "who": f"p{i // 3}", "part": "xyz"[i % 3]} for i, row in enumerate(nli_rows(6))]
    pairs = [{"good": f"a{i}", "bad": f"b{i}", "part": "xy"[i % 2]} for i in range(4)]
    windows = [f"task_data.jsonl:{i}" for i in (1, 1, 1, 2)]
    for keys, data, expected in (
        ({**NLI, "group": "{part}", "cluster": "{who}"}, people, ["p0"] * 3 + ["p1"] * 3),
        (PAIRS, pairs, ["x", "y", "x", "y"]),
        ({"kind": "text"}, [{"text": "zyxwvutzyxwvutzyxwvut"}, {"text": "z"}], windows),
    ):
        encoded = built(
            task_of(tmp_path, **keys, data=data), loaded.tokenizer, block=7 if keys["kind"] == "text" else 128
        )
        measured = measure(loaded, encoded)
        assert measured.clusters == [record["cluster"] for record in measured.records] == expected
        first = encoded.task.metric
        assert measured.estimates()[first].stderr == estimate(measured.ratios[first], expected).stderr


def test_the_error_of_a_text_is_that_of_its_documents(tiny_folder: Path, tmp_path: Path) -> None:
    """Windows of one document are alike: as if they were independent, the error would come out too small."""
    rng = np.random.default_rng(0)
    words = [["llama", "hill", "grass"], ["7", "42", "1999"], ["!", "?", "..."]]
    rows = [{"text": " ".join(rng.choice(words[i % 3], 150))} for i in range(6)]
    task = write_task(tmp_path / "prose.yaml", kind="text", metrics=["nats_per_token"], data=rows)
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


def test_a_perplexity_s_error_is_that_of_its_logarithm_times_itself() -> None:
    sums = ratio([1.0, 4.0, 2.0], [1.0, 2.0, 1.0])
    measured = Measured({"word_perplexity": sums}, [], [], [], {})
    found, plain = measured.estimates()["word_perplexity"], estimate(sums)
    assert found.value == measured.values()["word_perplexity"] == pytest.approx(math.exp(7 / 4))
    assert found.stderr == pytest.approx(math.exp(7 / 4) * plain.stderr)
    assert (found.low, found.high) == (math.exp(plain.low), math.exp(plain.high))
    huge = Measured({"word_perplexity": ratio([1e6], [1.0])}, [], [], [], {})
    assert math.isfinite(huge.values()["word_perplexity"])


def test_groups_are_reported_by_the_metric_that_judges(tiny: Tokenizer, loaded: Loaded, tmp_path: Path) -> None:
    rows = [{**row, "part": "ab"[i % 2]} for i, row in enumerate(nli_rows(8))]
    encoded = built(task_of(tmp_path, **NLI, group="{part}", data=rows), tiny)
    measured = measure(loaded, encoded)
    result = summarize_result(encoded, measured, [], "mark", 0)
    scores = [record["score"] for record in measured.records]
    assert result.groups == {
        "a": {"n": 4, "value": np.mean(scores[::2])},
        "b": {"n": 4, "value": np.mean(scores[1::2])},
    }


def test_chunks_of_questions_advance_a_progress_bar_and_change_no_number(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = built(task_of(tmp_path, **NLI, data=nli_rows(8)), loaded.tokenizer)
    whole = measure(loaded, encoded).values()
    monkeypatch.setattr(engine, "CHUNK", 3)
    advanced: list[int] = []
    assert measure(loaded, encoded, batch_tokens=64, advance=advanced.append).values() == pytest.approx(whole)
    assert advanced == [3, 3, 2]
