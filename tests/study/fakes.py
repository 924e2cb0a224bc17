"""A parser in the place of fit's, and runs in the place of trained ones: what a study does with them is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.run_folder import RunFolder
from lit_consistency.study.cells import Cell
from lit_consistency.study.options import Reading, Replicates, Stage, StudyOptions
from lit_consistency.study.values import NO_BASE_YET

DEFAULTS: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 10},
    "model": {"checkpoint_dir": None, "name": None, "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.1}}},
    "world": {"class_path": "People", "init_args": {"seed": 0}},
    "forgetting": {"time_budget": 0.05},
    "run": {"name": None},
}
OPTIMIZERS = {"AdamW": {"lr": 0.1, "weight_decay": 0.0}, "Muon": {"lr": 0.2, "adamw_lr": None}}


class FakeParser:
    """Composes files and options over the defaults as fit does; counts the calls that it parses."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, calls: Sequence[tuple[str, list[str]]]) -> list[dict[str, Any]]:
        return [self._parse(number, call) for number, (_, call) in enumerate(calls)]

    def _parse(self, number: int, call: list[str]) -> dict[str, Any]:
        self.n += 1
        content = json.loads(json.dumps(DEFAULTS))
        i = 0
        while i < len(call):
            if call[i] == "--config":
                for key, value in _dotted(_content(Path(call[i + 1]).read_text())):
                    _put(content, key, value)
                i += 2
            else:
                key, _, value = call[i].removeprefix("--").partition("=")
                if key.startswith("no_such"):
                    raise ValueError(f"{number}: Unrecognized arguments: --{key}")
                _put(content, key, yaml.safe_load(value))
                i += 1
        has_base = content["model"]["checkpoint_dir"] is not None or NO_BASE_YET in call
        if content["model"].get("carry_optimizer_state") and not has_base:
            raise ValueError(f"{number}: carry_optimizer_state = true: expected checkpoint_dir too")
        return content


@lru_cache
def _content(text: str) -> dict[str, Any]:
    return yaml.safe_load(text) or {}


def _dotted(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in content.items():
        rows += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        if not isinstance(content.get(part), dict):  # a class or a set that was named by a word
            content[part] = {}
        content = content[part]
    if last == "class_path" and value in OPTIMIZERS and content.get("class_path") != value:
        content["init_args"] = dict(OPTIMIZERS[value])
    content[last] = value


# -------------------- studies


def optimizer_files(folder: Path) -> dict[str, str]:
    """One file an optimizer."""
    files = {}
    for name in ("AdamW", "Muon"):
        file = folder / f"{name.lower()}.yaml"
        file.write_text(f"model: {{optimizer: {{class_path: {name}}}}}\n")
        files[name.lower()] = str(file)
    return files


def crossed_study(
    folder: Path, seeds: Sequence[int] = (0, 1, 2), rates: Sequence[float] = (0.1, 0.2), **options: Any
) -> StudyOptions:
    """Two bases, each finetuned by both optimizers at some rates."""
    files = optimizer_files(folder)
    stages = {
        "pretrain": Stage(axes={"optimizer": dict(files)}),
        "finetune": Stage(
            base="pretrain",
            axes={
                "finetuner": dict(files),
                "lr": {
                    "key": "model.optimizer.init_args.lr",
                    "by": "finetuner",
                    "values": {"adamw": list(rates), "muon": [2 * rate for rate in rates]},
                },
            },
        ),
    }
    given: dict[str, Any] = {
        "title": "crossed",
        "output": folder / "study",
        "cells": folder / "cells",
        "stages": stages,
        "replicates": Replicates(list(seeds)),
        "read": crossed_reading(),
    }
    return StudyOptions(**{**given, **options})


def crossed_reading(**options: Any) -> Reading:
    given: dict[str, Any] = {
        "stage": "finetune",
        "learning": "learn/new",
        "forgetting": "retain/old",
        "panel": ["optimizer"],
        "group": ["finetuner"],
        "rate": "lr",
        "level": 0.5,
    }
    return Reading(**{**given, **options})


def write_run(
    cells: Path, cell: Cell, metrics: Mapping[str, float], base: Mapping[str, float] | None = None, **record: Any
) -> None:
    """A finished run with these numbers."""
    run = RunFolder(cells / cell.name)
    judged = {key: {"metric": "exact", "items": 100} for key in metrics if key.startswith(("learn/", "retain/"))}
    content = {
        "status": "finished",
        "final_metrics": dict(metrics),
        "base_metrics": dict(base or {}),
        "judged_by": judged,
    }
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_record({**content, **record})
