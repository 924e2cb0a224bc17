"""A plan of two stages, and two ways to run its commands in this process: all of them, or training in pretence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.__main__ import main
from lit_consistency.records.provenance import read_provenance
from lit_consistency.study.sequence import run as sequence
from tests.runs import ROOT, weights
from tests.study.sequence.sequences import Started
from tests.tasks.tiny import NLI, nli_rows, tiny_model, write_task


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The commands that were started; they run in this process."""
    found: Started = []

    def run(arguments: Sequence[str], log: Path) -> None:
        found.append(list(arguments))
        main(arguments)

    monkeypatch.setattr(sequence, "run_command", run)
    return found


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The commands that were started; a fit hands on its base, a little changed, and an evaluation is real."""
    found: Started = []

    def run(arguments: Sequence[str], log: Path) -> None:
        found.append(list(arguments))
        if arguments[0] == "evaluate":
            main(arguments)
            return
        options = dict(argument.lstrip("-").split("=", 1) for argument in arguments[1:])
        folder = Path(options["run.root"]) / options["run.name"]
        shutil.copytree(options["model.checkpoint_dir"], folder / "model")
        state = weights(folder / "model")
        changed = int(hashlib.sha256(options["run.name"].encode()).hexdigest()[:4], 16) / 2**16
        state["lm_head.weight"] += changed * torch.linspace(-1, 1, state["lm_head.weight"].numel()).view_as(
            state["lm_head.weight"]
        )
        torch.save(state, folder / "model" / "lit_model.pth")
        provenance = read_provenance(folder / "model")
        assert provenance is not None
        provenance.write(folder / "model")
        (folder / "run.json").write_text(json.dumps({"status": "finished"}))

    monkeypatch.setattr(sequence, "run_command", run)
    return found


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """Two stages with opposite answers, and a text that is never trained on."""
    other = {**NLI, "gold_values": [1, 0]}
    first = write_task(tmp_path / "first.yaml", **NLI, data=nli_rows(12), few_shot=nli_rows(16, start=50))
    second = write_task(tmp_path / "second.yaml", **other, data=nli_rows(12), few_shot=nli_rows(16, start=50))
    prose = write_task(tmp_path / "prose.yaml", kind="text", text="{p}", data=nli_rows(3))
    trainer = {"accelerator": "cpu", "max_steps": 3, "enable_progress_bar": False, "log_every_n_steps": 1}
    return {
        "base": str(tiny_model(tmp_path / "base")),
        "output": str(tmp_path / "out"),
        "stages": [{"task": str(first)}, {"task": str(second)}],
        "fit": {
            "config": [f"{ROOT}/configs/optimizers/adamw.yaml"],
            "options": {
                "trainer": trainer,
                "data.init_args": {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64},
                "model.optimizer.init_args.lr": 0.01,
            },
        },
        "evaluation": {"general": [str(prose)], "device": "cpu", "limit": 8},
    }
