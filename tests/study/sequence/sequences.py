"""Plans of sequences as files, run by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.__main__ import main

Started = list[list[str]]
"""The commands that a sequence has started."""


def run(plan: dict[str, Any], *args: str) -> dict[str, Any]:
    """Run the command; what stands in matrix.json."""
    file = Path(plan["output"]).parent / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    main(["sequence", f"--config={file}", *args])
    return json.loads((Path(plan["output"]) / "matrix.json").read_text())


def commands(started: Started) -> list[str]:
    return [arguments[0] for arguments in started]


def configs(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runs were given, in their order."""
    files = sorted((Path(plan["output"]) / "configs").glob("*.yaml"))
    return [yaml.safe_load(file.read_text()) for file in files if not file.stem.endswith(".data")]
