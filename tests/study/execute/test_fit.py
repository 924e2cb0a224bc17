"""A training run from the server of processes is, to the last bit, the one that the same command gives by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_consistency.records.run_folder import RunFolder
from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.execute.state import State, read_attempts, state_of
from lit_consistency.study.job import Job
from tests.runs import ROOT, SCRATCH, arguments, equal, weights

TIMES = {"started", "ended", "speed", "evaluation", "command"}
"""What no two runs have in common."""


def run_job(root: Path, *extra: str, threads: int = 1) -> Job:
    argv = [*arguments(root, *SCRATCH), "--trainer.max_steps=30", "--ckpt_path=auto", *extra]
    return Job(f"{root.name}", root / "run", tuple(argv), threads=threads)


def by_hand(job: Job) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    subprocess.run([sys.executable, "-m", "lit_consistency", *job.argv], cwd=ROOT, env=environment, check=True)


def numbers(folder: RunFolder) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if not k.startswith(("speed", "evaluation/seconds"))}
        for line in folder.read_metrics()
    ]


def assert_same(a: RunFolder, b: RunFolder) -> None:
    assert equal(weights(a.model), weights(b.model))
    assert numbers(a) == numbers(b)
    first, second = a.read_record(), b.read_record()
    assert len(numbers(a)) > 30
    assert first["final_metrics"]
    assert {k: v for k, v in first.items() if k not in TIMES} == {k: v for k, v in second.items() if k not in TIMES}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_job_is_bit_equal_to_its_command_by_hand(tmp_path: Path, threads: int) -> None:
    hand = run_job(tmp_path / "hand", threads=threads)
    by_hand(hand)
    jobs = [run_job(tmp_path / name, threads=threads) for name in ("first", "second")]
    states = execute(lambda: [hand, *jobs], ExecutionOptions(workers=1, threads=threads, devices=[]))
    assert set(states.values()) == {State.FINISHED}
    assert not read_attempts(hand.folder)  # found, and not run again
    command = json.loads((jobs[0].folder / "run.json").read_text())["command"]
    assert command == " ".join(["python -m lit_consistency", *jobs[0].argv])
    for job in jobs:
        assert_same(RunFolder(hand.folder), RunFolder(job.folder))


@pytest.mark.slow
def test_a_run_that_fails_or_diverges_says_so(tmp_path: Path) -> None:
    diverges = run_job(tmp_path / "diverges", "--model.optimizer.init_args.lr=1e30", "--trainer.gradient_clip_val=null")
    refused = run_job(tmp_path / "refused", "--trainer.max_stepz=1")
    states = execute(lambda: [diverges, refused], ExecutionOptions(workers=1, devices=[]))
    assert states == {"diverges": State.DIVERGED, "refused": State.FAILED}
    assert "NonFiniteError" in read_attempts(diverges.folder)[0].error
    assert read_attempts(refused.folder)[0].error.startswith("error: ")
    # by its run.json alone too
    (diverges.folder / "outcome.json").unlink()
    assert state_of(diverges.folder) is State.DIVERGED
