"""Killed at any moment, by any signal, driver, server or job: a rerun does what is missing, and nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lit_consistency.study.execute.state import State, read_attempts, state_of
from tests.runs import ROOT
from tests.study.execute.drive import run, tiny_job

KILLS = 40
N_JOBS = 24
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def plan(root: Path) -> list[str]:
    """Chains of three; most jobs take as long as a few kills."""
    texts = []
    for n in range(N_JOBS):
        need = f":{n - 1}" if n % 3 else ""
        texts.append(f"{n}:finish:{10 + 15 * (n % 5)}{need}")
    return texts


def drive(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.study.execute.drive", str(root), "3", *plan(root)]
    with open(root / "driver.log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def processes(root: Path) -> dict[str, list[int]]:
    """Servers and jobs that work under the folder now."""
    found: dict[str, list[int]] = {"server": [], "job": []}
    for file in root.glob("*/lease.json"):
        with suppress(FileNotFoundError, ValueError, IndexError):
            server = json.loads(file.read_text())["processes"][1][0]
            found["server"].append(server)
            found["job"] += map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
    return found


@pytest.mark.slow
def test_two_drivers_under_fire_run_every_job_to_its_end_once(tmp_path: Path) -> None:
    chance = random.Random(0)
    drivers = [drive(tmp_path), drive(tmp_path)]
    kills = dict.fromkeys(("driver", "server", "job"), 0)
    while sum(kills.values()) < KILLS:
        time.sleep(chance.uniform(0.0, 0.6))
        kind = chance.choice(("driver", "server", "job", "job"))
        number = chance.choice(SIGNALS)
        pids = {**processes(tmp_path), "driver": [d.pid for d in drivers if d.poll() is None]}[kind]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(pids), number)
                kills[kind] += 1
        drivers = [drive(tmp_path) if d.poll() is not None else d for d in drivers]
        if all(state_of(tmp_path / str(n)) is State.FINISHED for n in range(N_JOBS)):
            break
    for driver in drivers:
        driver.wait(timeout=120)
    last = drive(tmp_path)
    assert last.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()
    folders = [tmp_path / str(n) for n in range(N_JOBS)]
    assert [str(state_of(folder)) for folder in folders] == ["finished"] * N_JOBS
    for name in ("twice", "again"):
        assert not list(tmp_path.glob(f"*/{name}"))
    assert min(kills.values()) > 0
    assert sum(kills.values()) >= 20
    print(kills, "attempts:", sum(len(read_attempts(folder)) for folder in folders))
    # the table is that of an undisturbed execution
    calm = tmp_path / "calm"
    texts = [text.split(":") for text in plan(calm)]
    run([tiny_job(calm, name, do, steps=int(steps), needs=needs) for name, do, steps, *needs in texts])
    for folder in folders:
        assert (folder / "run.json").read_text() == (calm / folder.name / "run.json").read_text()
