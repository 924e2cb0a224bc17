"""What is wrong with a plan is said before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.study.sequence.sequences import Started, run
from tests.tasks.tiny import NLI, nli_rows, write_task

WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no base": ({"base": "nowhere"}, ["nowhere"]),
    "no stage": ({"stages": []}, ["stages = []", "at least one"]),
    "unknown task": ({"stages": [{"task": "piqqa"}]}, ["'piqqa'", "expected"]),
    "no training split": ({"stages": [{"task": "{prose}"}], "evaluation": {}}, ["prose.yaml", "of kind text"]),
    "a task twice": ({"stages": [{"task": "{first}"}, {"task": "{first}"}]}, ["first.yaml is there twice"]),
    "trained and general": ({"evaluation": {"general": ["{first}"]}}, ["first.yaml is there twice"]),
    "a share of 1": ({"replay": {"earlier_tasks": 1.0}}, ["replay.earlier_tasks = 1.0", "below 1"]),
    "a negative share": ({"replay": {"pretraining": -0.1}}, ["replay.pretraining = -0.1"]),
    "shares of more than all": (
        {"replay": {"earlier_tasks": 0.6, "pretraining": 0.5, "source": {}}},
        ["expected less than 1"],
    ),
    "a share of nothing": ({"replay": {"pretraining": 0.1}}, ["replay.source"]),
    "no such source": (
        {"replay": {"pretraining": 0.1, "source": {"class_path": "lit_consistency.data.Text"}}},
        ["replay.source", "lit_consistency.data.Text"],
    ),
    "unknown format": ({"fit": {"format": "fancy"}}, ["'fancy'"]),
    "no such file": ({"fit": {"config": ["no.yaml"]}}, ["fit.config: no.yaml"]),
    "rows of one's own": (
        {"fit": {"options": {"data": {"init_args": {"rows": {"class_path": "x"}}}}}},
        ["data.init_args.rows.class_path", "the sequence sets it"],
    ),
    "a name of one's own": ({"stages": [{"task": "{first}", "fit": {"run.name": "x"}}]}, ["run.name"]),
    "no seed": ({"seeds": []}, ["seeds = []"]),
    "a negative seed": ({"seeds": [-1]}, ["seeds = -1"]),
    "a seed twice": ({"seeds": [1, 1]}, ["seeds: 1 is there twice"]),
    "no examples": ({"evaluation": {"shots": [4], "general": ["{bare}"]}}, ["shots = 4", "few_shot"]),
    "no such world": (
        {"worlds": {"w": {"world": {"class_path": "lit_consistency.data.worlds.Moon"}, "probes": "x"}}},
        ["worlds.w", "Moon"],
    ),
    "no such key": ({"evaluations": {"limit": 1}}, ["evaluations"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_starts_nothing(
    case: str, plan: dict[str, Any], started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path / "bare.yaml", **NLI, data=nli_rows(3))
    changed, parts = WRONG[case]
    for name in ("first", "prose", "bare"):
        changed = json.loads(json.dumps(changed).replace(f"{{{name}}}", str(tmp_path / f"{name}.yaml")))
    with pytest.raises(SystemExit) as stop:
        run({**plan, **changed, "output": plan["output"]})
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(part in message for part in parts), message
    assert started == []
    assert not (tmp_path / "out").exists()
