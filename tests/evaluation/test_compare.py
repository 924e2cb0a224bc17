"""Two models on the same items."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lit_consistency.__main__ import main
from lit_consistency.evaluation.compare import compare_folders
from lit_consistency.records.results import Result, read_items, read_result, read_results, write_result
from lit_consistency.stats.intervals import by_class, ratio
from lit_consistency.stats.paired_tests import mcnemar, permutation_test
from tests.tasks.tiny import NLI, PAIRS, evaluate, nli_rows, tiny_model, write_task


def test_the_paired_comparison_of_two_models(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(tiny_folder, "--tasks", *tasks, "--output", first)
    evaluate(
        tiny_model(tmp_path / "other", seed=1), "--tasks", *tasks[:3], "--output", second, "--item_format", "parquet"
    )
    capsys.readouterr()
    main(["evaluate", "--compare", str(first), str(second), "--output", str(tmp_path / "both")])
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert "said.default.0shot: only in" in shown
    comparisons = {c.task: c for c in compare_folders(first, second)[0]}
    left, right = ({r.task: r.value for r in read_results(folder)} for folder in (first, second))
    for task, compared in comparisons.items():
        if compared.metric != "nats_per_word":
            assert (compared.first, compared.second) == pytest.approx((left[task], right[task]))
            assert compared.difference.value == pytest.approx(right[task] - left[task])
    assert 0 <= comparisons["nli"].p_value <= 1
    assert (comparisons["nli"].chance, comparisons["nli"].majority) == (0.5, 0.5)
    assert comparisons["prose"].chance is None
    assert 0 < comparisons["prose"].p_value <= 1
    assert len(json.loads((tmp_path / "both" / "comparison.json").read_text())["comparisons"]) == 3


def test_a_comparison_joins_by_id_and_tells_what_differs(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(tiny_folder, "--tasks", tasks[0], "--shots", 2, "--output", first)
    evaluate(tiny_folder, "--tasks", tasks[0], "--shots", 2, "--output", second, "--limit", 6, "--seed", 1)
    (found,), warnings = compare_folders(first, second)
    assert found.n == 6
    assert "10 items only in the first, 0 only in the second; 6 compared" in warnings[0]
    assert "6 of 6 items were asked with other few-shot examples" in warnings[1]
    result = read_results(second)[0]
    write_result(second, result, [{**item, "gold": 1 - item["gold"]} for item in read_items(second, result.key)])
    with pytest.raises(ValueError, match=r"6 of 6 items, such as nli_data\.jsonl:\d+, have another right answer"):
        compare_folders(first, second)
    records = [{**item, "id": f"x{i}"} for i, item in enumerate(read_items(second, result.key))]
    write_result(second, result, records)
    with pytest.raises(ValueError, match="have no id .* in common"):
        compare_folders(first, second)
    with pytest.raises(FileNotFoundError, match="holds no results"):
        compare_folders(first, tmp_path / "nowhere")


def test_texts_in_other_windows_are_compared_by_document(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(tiny_folder, "--tasks", tasks[2], "--output", first)
    evaluate(tiny_model(tmp_path / "short", block_size=4), "--tasks", tasks[2], "--output", second)
    left, right = read_results(first)[0], read_results(second)[0]
    assert right.n > left.n, "more windows"
    (found,), warnings = compare_folders(first, second)
    assert not warnings
    documents = {item["id"].rpartition("+")[0] for item in read_items(first, left.key)}
    assert found.n == len(documents)
    assert (found.first, found.second) == pytest.approx((left.value, right.value), rel=1e-9)


def test_a_folder_that_holds_results_of_two_models_is_told(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    mixed, whole = tmp_path / "mixed", tmp_path / "whole"
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", mixed)
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", whole)
    assert not compare_folders(mixed, whole)[1]
    evaluate(tiny_model(tmp_path / "other", seed=1), "--tasks", tasks[1], "--output", mixed)
    assert compare_folders(mixed, whole)[1] == [
        f"{mixed}: holds results of 2 models: nli.default.0shot; syntax.none.0shot"
    ]


def test_a_model_that_gives_no_numbers_is_compared_all_the_same(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(tiny_folder, "--tasks", tasks[2], "--output", first)
    evaluate(tiny_model(tmp_path / "broken", scale=1e30), "--tasks", tasks[2], "--output", second)  # overflows
    capsys.readouterr()
    main(["evaluate", "--compare", str(first), str(second)])
    assert "nan" in capsys.readouterr().out
    (found,), _ = compare_folders(first, second)
    assert math.isnan(found.second)
    assert not found.better


def test_the_p_value_is_that_of_the_metric(tiny_folder: Path, tmp_path: Path) -> None:
    """Balanced accuracy weighs items by their class, and minimal pairs of one phenomenon belong together."""
    rows = [{"good": f"a {i}", "bad": f"b {i}", "part": str(i % 4)} for i in range(16)]
    files = [
        write_task(tmp_path / "single.yaml", **NLI, metrics=["accuracy"], data=nli_rows(16)),
        write_task(tmp_path / "balanced.yaml", **NLI, metrics=["balanced_accuracy"], data=nli_rows(16)),
        write_task(tmp_path / "pairs.yaml", **PAIRS, data=rows),
    ]
    for folder in ("first", "second"):
        evaluate(tiny_folder, "--tasks", *files, "--output", tmp_path / folder)
    scores = {"first": [0.0] * 16, "second": [1.0] * 9 + [0.0] * 7}
    golds: dict[str, list[int]] = {}
    for folder, given in scores.items():
        for path in sorted((tmp_path / folder / "items").iterdir()):
            records = [json.loads(line) for line in path.read_text().splitlines()]
            golds[path.name.partition(".")[0]] = [record["gold"] for record in records]
            result = read_result(tmp_path / folder / "results" / f"{path.stem}.json")
            scored = [record | {"score": score} for record, score in zip(records, given, strict=True)]
            write_result(tmp_path / folder, result, scored)
    found = {c.task: c.p_value for c in compare_folders(tmp_path / "first", tmp_path / "second")[0]}
    sides = [by_class(given, golds["balanced"]) for given in scores.values()]
    parts = [ratio(given) for given in scores.values()]
    assert found == {
        "single": mcnemar(*scores.values()),
        "balanced": permutation_test(*sides),
        "pairs": permutation_test(*parts, [row["part"] for row in rows]),
    }
    assert found["single"] < 0.01 < found["pairs"]


def write_scores(folder: Path, scores: np.ndarray) -> None:
    """A result of pairs in groups, as ``evaluate`` leaves it; scores are (groups, items of each)."""
    groups = {str(g): {"n": scores.shape[1], "value": float(scores[g].mean())} for g in range(len(scores))}
    metrics = {"accuracy": {"value": float(scores.mean()), "stderr": 0.0, "low": 0.0, "high": 1.0}}
    result = Result("pairs", "pairs", "none", 0, scores.size, metrics, {"chance": 0.5}, groups, [], 0, "")
    common = {"weight": 1.0, "gold": 0, "shot_ids": []}
    records = [{"id": f"{g}-{i}", "group": str(g), "score": x, **common} for (g, i), x in np.ndenumerate(scores)]
    write_result(folder, result, records)


@pytest.mark.parametrize(("n_groups", "most"), [(4, 0.0), (10, 0.1)])
def test_two_equal_models_are_seldom_told_apart(tmp_path: Path, n_groups: int, most: float) -> None:
    """The strength of either model differs from group to group by chance alone; .22 of 4 groups were "better" once."""
    rng = np.random.default_rng(0)
    n_better = 0
    for i in range(100):
        for side in ("first", "second"):
            strength = rng.uniform(0.2, 0.8, (n_groups, 1))
            write_scores(tmp_path / str(i) / side, (rng.random((n_groups, 25)) < strength).astype(float))
        (comparison,), _ = compare_folders(tmp_path / str(i) / "first", tmp_path / str(i) / "second")
        n_better += bool(comparison.better)
        expected = "cannot be told with 4 groups, whose least p is 0.125" if n_groups == 4 else ""
        assert comparison.undecidable == expected
        assert bool(comparison.better) == (comparison.p_value < 0.05)
    assert n_better / 100 <= most


def test_a_model_that_is_better_in_every_group_is_named(tmp_path: Path) -> None:
    for side, n_right in (("first", 10), ("second", 20)):
        write_scores(tmp_path / side, np.tile(np.arange(25) < n_right, (6, 1)).astype(float))
    (comparison,), _ = compare_folders(tmp_path / "first", tmp_path / "second")
    assert (comparison.better, comparison.p_value) == ("second", 2 / 2**6)
