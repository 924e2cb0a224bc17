"""A sequence whose runs are real processes: stopped by a signal in the middle of a stage, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import ROOT
from tests.tasks.tiny import NLI, nli_rows, tiny_model, write_task


@pytest.mark.slow
def test_a_signal_saves_the_stage_and_the_same_command_goes_on(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task.yaml", **NLI, data=nli_rows(12), few_shot=nli_rows(16, start=50))
    sizes = {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64}
    trainer = {"accelerator": "cpu", "max_steps": 3000, "enable_progress_bar": False, "log_every_n_steps": 1}
    plan: dict[str, Any] = {
        "base": str(tiny_model(tmp_path / "base")),
        "output": str(tmp_path / "out"),
        "stages": [{"task": str(task)}],
        "fit": {
            "config": [f"{ROOT}/configs/optimizers/adamw.yaml"],
            "options": {"trainer": trainer, "data.init_args": sizes},
        },
        "evaluation": {"device": "cpu"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "lit_consistency", "sequence", f"--config={tmp_path / 'plan.yaml'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while first.poll() is None and not _step(tmp_path / "out") > 20:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM, output
    (run,) = (tmp_path / "out" / "runs").glob("[!.]*")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 3000)
    assert record["resumed_from"]
    assert "OP (overall performance)" in again.stdout


def _step(output: Path) -> int:
    files = list((output / "runs").glob("*/metrics.jsonl"))
    return len(files[0].read_text().splitlines()) if files else 0
