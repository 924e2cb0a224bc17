"""On a real SLURM of two nodes: workers, driver and allocations are lost on the way, and the table is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lit_consistency.records.processes import start_of
from lit_consistency.study.execute.state import State, read_attempts, state_of
from tests.runs import ROOT
from tests.study.execute.clusters import absent_of_slurm, ask, two_slurm_nodes
from tests.study.execute.drive import run, tiny_job
from tests.study.execute.test_worker import until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(absent_of_slurm()), reason=f"no SLURM here: {', '.join(absent_of_slurm())} absent"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    pytest.importorskip("submitit")
    with two_slurm_nodes(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def drive(root: Path, environment: dict[str, str], *jobs: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.study.execute.drive", str(root), "slurm", *jobs]
    with (root / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def running(root: Path) -> list[int]:
    """Workers with a job that has begun and goes on."""
    folders = [file.parent for file in root.glob("*/lease.json") if state_of(file.parent) is State.RUNNING]
    begun = [folder for folder in folders if (attempts := read_attempts(folder)) and attempts[-1].ended is None]
    workers = []
    for folder in begun:
        with suppress(FileNotFoundError):  # it has just ended
            pid = json.loads((folder / "lease.json").read_text())["processes"][0][0]
            if start_of(pid):  # else only its server is left, and lets the job save
                workers.append(pid)
    return workers


def queue(environment: dict[str, str], *options: str) -> list[str]:
    return ask(environment, "squeue", "--noheader", "--array", "--format=%i", *options).split()


def test_worker_allocation_and_driver_are_lost_on_the_way(tmp_path: Path, environment: dict[str, str]) -> None:
    names = list(map(str, range(10)))
    jobs = [f"{n}:finish:{150 + 20 * (n % 3)}" + (f":{n - 1}" if n % 2 else "") for n in range(10)]
    log = tmp_path / "driver.log"
    driver = drive(tmp_path, environment, *jobs)
    until(lambda: len(running(tmp_path)) == 2)
    os.kill(running(tmp_path)[0], signal.SIGKILL)
    until(lambda: log.read_text().count("asked slurm") == 2)  # in the place of the lost one
    until(lambda: len(running(tmp_path)) == 2)
    allocation = queue(environment, "--states=RUNNING")[0]
    ask(environment, "scontrol", "requeue", allocation)
    until(lambda: allocation in queue(environment, "--states=PENDING"))
    until(lambda: any(state_of(tmp_path / name) is State.FINISHED for name in names))
    driver.kill()
    driver.wait()
    n_finished = len([name for name in names if state_of(tmp_path / name) is State.FINISHED])
    until(lambda: len([n for n in names if state_of(tmp_path / n) is State.FINISHED]) > n_finished)  # by itself
    driver = drive(tmp_path, environment, *jobs)
    assert driver.wait(timeout=240) == 0, log.read_text()
    assert "of an earlier call are still there" in log.read_text()
    assert [str(state_of(tmp_path / name)) for name in names] == ["finished"] * 10
    assert not [path for name in ("twice", "again") for path in tmp_path.glob(f"*/{name}")]
    assert sum(len(read_attempts(tmp_path / name)) for name in names) >= 11
    until(lambda: not queue(environment))  # also the allocation that waited to be requeued
    # the table is that of an undisturbed execution on this machine
    calm = tmp_path / "calm"
    texts = [text.split(":") for text in jobs]
    run([tiny_job(calm, name, do, steps=int(steps), needs=needs) for name, do, steps, *needs in texts])
    for name in names:
        assert (tmp_path / name / "run.json").read_text() == (calm / name / "run.json").read_text()


def test_a_signal_to_the_driver_lets_jobs_save_and_frees_the_nodes(tmp_path: Path, environment: dict[str, str]) -> None:
    driver = drive(tmp_path, environment, *(f"{n}:finish:3000" for n in range(3)))
    until(lambda: len(list(tmp_path.glob("*/run.json"))) == 2)
    driver.terminate()
    assert driver.wait(timeout=60) == 143
    assert not queue(environment)
    assert sorted(str(state_of(tmp_path / str(n))) for n in range(3)) == ["interrupted", "interrupted", "missing"]
    assert len([path for path in tmp_path.glob("*/step") if int(path.read_text()) > 0]) == 2


def test_allocations_that_slurm_does_not_grant_are_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    code = (
        "from lit_consistency.study.execute.options import *; from tests.study.execute.drive import *\n"
        "options = ExecutionOptions(engine='slurm', slurm=SlurmOptions(partition='nowhere'))\n"
        f"root = Path({str(tmp_path)!r})\n"
        "execute(lambda: [tiny_job(root, 'a')], options, print, TINY, root / 'workers')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "ValueError: engine = slurm: it refuses the allocations:" in said.stderr
    assert "invalid partition specified: nowhere" in said.stderr
