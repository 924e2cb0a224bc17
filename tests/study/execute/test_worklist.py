"""Workers that get their jobs from a driver's list, without any cluster; and what the drivers refuse beforehand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lit_consistency.study.execute import slurm
from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.local import ProcessFailed
from lit_consistency.study.execute.options import ExecutionOptions, RayOptions, SlurmOptions
from lit_consistency.study.execute.retries import INTERRUPTIONS, Retries
from lit_consistency.study.execute.state import Attempt, State, read_attempts, state_of, write_attempts
from lit_consistency.study.execute.worklist import Worklist
from tests.runs import ROOT
from tests.study.execute.drive import TINY, tiny_job
from tests.study.execute.test_worker import until


def test_workers_of_one_list_run_what_is_added_and_retry_once_together(tmp_path: Path) -> None:
    """Two workers, one list; ``retry_failed`` counts from the driver's beginning for both."""
    failed = tiny_job(tmp_path, "failed", "fail")
    failed.folder.mkdir()
    before = Attempt("fit", "elsewhere", time.time() - 60, 1, time.time() - 50, 1, State.FAILED, "KeyError: 0")
    write_attempts(failed.folder, [before])
    first = tiny_job(tmp_path, "first", steps=30)
    later = tiny_job(tmp_path, "later", needs=("first",), threads=2)
    file = tmp_path / "jobs.json"
    worklist = Worklist([failed, first], TINY, Retries(0, retry_failed=True), folder=str(ROOT), idle=60)
    worklist.write(file)
    assert Worklist.read(file) == worklist
    command = [sys.executable, "-m", "lit_consistency.study.execute.worklist", str(file)]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    until(lambda: state_of(first.folder) is State.FINISHED)
    assert [worker.poll() for worker in workers] == [None, None]  # there may be more
    replace(worklist, jobs=[failed, first, later]).write(file)
    until(lambda: state_of(later.folder) is State.FINISHED)
    replace(worklist, jobs=[failed, first, later], complete=True).write(file)
    assert [worker.wait(timeout=30) for worker in workers] == [0, 0]
    assert [attempt.state for attempt in read_attempts(failed.folder)] == [State.FAILED] * 2


def test_a_job_that_is_killed_again_and_again_is_left_alone_by_all_workers() -> None:
    retries = Retries(since=100.0)
    killed = [Attempt("fit", "a", 100.0 + n, 1, 101.0 + n, -9, State.INTERRUPTED) for n in range(INTERRUPTIONS)]
    unseen = [Attempt("fit", "a", 100.0 + n) for n in range(INTERRUPTIONS)]
    stopped = [replace(attempt, status=143) for attempt in killed]
    before = [replace(attempt, started=50.0) for attempt in killed]
    allowed = [retries.may_run(State.INTERRUPTED, attempts) for attempts in (killed, unseen, stopped, before)]
    assert allowed == [False, False, True, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SlurmOptions(nodes=0), "slurm.nodes = 0: expected at least 1"),
        (lambda: SlurmOptions(time=0.01), "slurm.time = 0.01: expected hours, at least 0.083"),
        (lambda: SlurmOptions(parameters={"time": 3}), "slurm.parameters: time: expected none of account, array"),
        (lambda: SlurmOptions(parameters={"cpus_per_task": 3}), "slurm.parameters: cpus_per_task: expected none of"),
        (lambda: SlurmOptions(parameters={"--qos": "a"}), "slurm.parameters: --qos: expected the long name"),
        (lambda: RayOptions("ray://a:1"), "ray.address = ray://a:1: expected HOST:PORT, auto, or none"),
        (lambda: ExecutionOptions("ray", workers=2), "workers = 2: expected none with engine = ray"),
        (lambda: ExecutionOptions("slurm", devices=[0]), "devices = ['0']: expected none with engine = slurm"),
        (
            lambda: ExecutionOptions("slurm", workers=3, threads=2, slurm=SlurmOptions(cpus=4)),
            "slurm.cpus = 4: expected at least 6, workers = 3 times threads = 2",
        ),
    ],
)
def test_options_of_engines_that_cannot_be(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(("engine", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_absent_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, package: str
) -> None:
    known = importlib.util.find_spec
    absent = "lit_consistency.records.extras.find_spec"
    monkeypatch.setattr(absent, lambda name: None if name == package else known(name))
    options = ExecutionOptions(engine)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"engine = {engine} needs .*'lit_consistency\[{engine}\]'"):
        execute(lambda: [], options, print, TINY, tmp_path)


def commands_of_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that take every allocation and never have one."""
    log = folder / "calls"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        file = folder / name
        said = "echo Submitted batch job 7" if name == "sbatch" else ""
        file.write_text(f"#!/bin/sh\necho {name} $@ >> {log}\n{said}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def test_what_is_asked_of_slurm_and_an_end_when_no_worker_ever_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    calls = commands_of_slurm(tmp_path / "bin", monkeypatch)
    for name in ("ASK_EVERY", "QUEUE_EVERY", "POLL"):
        monkeypatch.setattr(slurm, name, 0.01)
    given = SlurmOptions(8, time=1.51, gpus=2, memory="9G", account="lab", parameters={"qos": "long", "hint": "x y"})
    options = ExecutionOptions("slurm", workers=2, threads=3, slurm=given)
    jobs = [tiny_job(tmp_path, str(n), threads=3, devices=0.5) for n in range(5)]
    with pytest.raises(ProcessFailed, match="workers ended 3 times before they began a job"):
        execute(lambda: jobs, options, print, TINY, tmp_path / "workers")
    assert calls.read_text().count("sbatch") == 3
    script = (tmp_path / "workers" / "7_submission.sh").read_text()
    set_options = dict(re.findall(r"#SBATCH --([a-z-]+)=(.*)", script))
    expected = {"time": "91", "cpus-per-task": "6", "gpus-per-node": "2", "mem": "9G", "account": "lab", "qos": "long"}
    # five jobs fill three allocations of two at a time
    expected |= {"array": "0-2%3", "signal": "TERM@120", "nodes": "1", "ntasks-per-node": "1", "hint": "'x y'"}
    assert {key: set_options[key] for key in expected} == expected
    assert "--cpus-per-task=6" in script.partition("srun")[2]
    for wrong, words in (
        (tiny_job(tmp_path, "a", devices=3.0), "devices = 3.0: expected at most the 2 GPUs of an allocation"),
        (tiny_job(tmp_path, "a", threads=7), "threads = 7: expected at most the 6 cores of an allocation (slurm.cpus)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            execute(lambda wrong=wrong: [wrong], options, print, TINY, tmp_path)  # type: ignore[misc]
    assert calls.read_text().count("sbatch") == 3


def test_a_worker_sees_nothing_of_its_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would take a job for one rank of many by SLURM_NTASKS, and requeue the worker by SLURM_JOB_ID."""
    seen: list[dict[str, str]] = []
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(slurm.subprocess, "call", lambda command, env: seen.append(env) or 3)
    assert slurm.run_worker(str(tmp_path)) == 3
    assert not [name for name in seen[0] if name.startswith(("SLURM_", "SUBMITIT_"))]
    assert seen[0]["PATH"] == os.environ["PATH"]
