"""The task about the invented people: its rows are what the world tells, and the base of the quickstart knows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_consistency.data.worlds import Biographies
from lit_consistency.evaluation import evaluate as command
from tests.runs import ROOT

N_ROWS = 120
PROBES = {"old_people": "base_cloze", "new_people": "new_cloze"}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The first probes of the world, with three wrong values evenly spread over all values."""
    rows = []
    for i, probe in enumerate(Biographies(n_people=500, n_new=100, n_exposures=40).probes(PROBES[name])[:N_ROWS]):
        n = len(probe.choices)
        places = sorted((probe.choices.index(probe.answer) + k * n // 4) % n for k in range(4))
        choices = [probe.choices[place].strip() for place in places]
        row = {"id": f"{name}-{i}", "prompt": probe.prompt, "answer": probe.answer.strip(), "choices": choices}
        rows.append({**row, "attribute": probe.tags["attribute"]})
    return rows


@pytest.mark.parametrize("name", PROBES)
def test_the_rows_are_those_of_the_world(name: str) -> None:
    lines = (ROOT / "configs" / "evaluation" / "worlds" / f"{name}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows_of(name)


def test_the_base_knows_the_old_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"
    found = command.evaluate(command.Options(model, ["worlds/biographies"], device="cpu"))
    values = {result.task.removeprefix("biographies_"): result.value for result in found}
    assert values["old_choice"] > 0.8
    assert values["old_written"] > 0.5
    assert values["new_choice"] < 0.5
    assert values["new_written"] < 0.2
    assert all(not result.findings for result in found)
