"""Runs from one base measure it once, and have the same numbers and items as if each had done it itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.records.atomic import write_json
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.text import TextTask
from tests.callbacks.test_forgetting import SETS
from tests.runs import finished, fit

NAMES = ("old", "next", "new")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("base")) / "model"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that have been measured."""
    names: list[str] = []

    def counting(measure: Any) -> Any:
        def measured(task: Any, *args: Any) -> Any:
            names.append(task.name)
            return measure(task, *args)

        return measured

    for kind in (TextTask, CompletionTask):
        monkeypatch.setattr(kind, "measure", counting(kind.measure))
    return names


def run(root: Path, name: str, base: Path, *more: str) -> dict[str, Any]:
    """Numbers of a run that measures at its start and its end, and every file of its first items."""
    fit(
        root,
        *SETS,
        f"--run.name={name}",
        "--run.save_model=false",
        "--run.reuse_base=true",
        *more,
        base=base,
        data="SFTData",
    )
    record = json.loads((root / name / "run.json").read_text())
    first = root / name / "measured" / "first"
    items = {str(path.relative_to(first)): path.read_text() for path in first.rglob("*.jsonl")}
    assert len(items) == len(NAMES)
    return {"base": record["base_metrics"], "final": record["final_metrics"], "items": items}


def test_a_base_is_measured_once_with_the_same_numbers_and_items(
    tmp_path: Path, base: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "lit_consistency" / "measured"
    apart = run(tmp_path, "apart", base, "--run.reuse_base=false")
    assert len(asked) == 2 * len(NAMES)
    assert not kept.exists()
    assert run(tmp_path / "one", "first", base) == apart
    assert len(asked) == 4 * len(NAMES)
    assert len(list(kept.iterdir())) == len(NAMES)
    assert run(tmp_path, "second", base) == apart
    assert len(asked) == 5 * len(NAMES), "only at its end"
    # what is damaged, or no measurement, is made anew
    altered, replaced, _ = kept.iterdir()
    altered.write_text(altered.read_text().replace("0.", "1.", 1))
    write_json(replaced, {"seconds": 1})
    assert run(tmp_path, "third", base) == apart
    assert len(asked) == 6 * len(NAMES) + 2
    # other questions, other weights
    run(tmp_path, "questions", base, SETS[-1].replace('"limit": 12', '"limit": 11'))
    assert len(asked) == 7 * len(NAMES) + 3
    run(tmp_path, "lora", base, "--model.method=lit_consistency.methods.LoRA")
    assert len(asked) == 9 * len(NAMES) + 3
