"""On a real Ray cluster of two node processes: a node and the driver die on the way, and the table is the same."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_consistency.study.execute.state import State, read_attempts, state_of
from tests.runs import ROOT
from tests.study.execute.clusters import TwoRayNodes
from tests.study.execute.drive import run, tiny_job
from tests.study.execute.test_worker import until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray here: pip install '.[ray]'"),
]
# no token in the home directory of who runs the tests, and nothing reported
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoRayNodes]:
    nodes = TwoRayNodes(ENVIRONMENT)
    try:
        yield nodes
    finally:
        nodes.close()


def drive(root: Path, cluster: TwoRayNodes, *jobs: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.study.execute.drive", str(root), f"ray={cluster.address}", *jobs]
    with (root / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)


@pytest.mark.timeout(600)
def test_jobs_save_after_a_signal_and_what_fits_nowhere_is_refused(tmp_path: Path, cluster: TwoRayNodes) -> None:
    driver = drive(tmp_path, cluster, *(f"{n}:finish:3000" for n in range(5)))
    until(lambda: len(list(tmp_path.glob("*/run.json"))) == 4, 120)
    driver.terminate()
    assert driver.wait(timeout=60) == 143, (tmp_path / "driver.log").read_text()
    states = sorted(str(state_of(tmp_path / str(n))) for n in range(5))
    assert states == [*["interrupted"] * 4, "missing"]
    assert len([path for path in tmp_path.glob("*/step") if int(path.read_text()) > 0]) == 4
    code = (
        "from tests.study.execute.drive import *\n"
        f"job = tiny_job(Path({str(tmp_path)!r}), 'wide', threads=3)\n"
        f"execute(lambda: [job], engine_options('ray={cluster.address}'), print, TINY)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    expected = "expected what a node has: 0 CPUs and 0 GPUs, 2 CPUs and 1 GPUs"
    assert f"ValueError: job wide: threads = 3, devices = 0: {expected}" in said.stderr


@pytest.mark.timeout(600)
def test_node_and_driver_die_on_the_way(tmp_path: Path, cluster: TwoRayNodes) -> None:
    # the last of this file: a node is missing afterwards
    names = [*map(str, range(6)), *(f"{n}-gpu" for n in range(4))]
    jobs = [f"{name}:finish:300" for name in names] + ["after:finish:1:0:0-gpu"]
    log = tmp_path / "driver.log"
    driver = drive(tmp_path, cluster, *jobs)
    # four CPUs, so that some run on either node
    until(lambda: len(list(tmp_path.glob("*/lease.json"))) == 4, 120)
    cluster.kill_node()
    until(lambda: "its task was lost" in log.read_text())
    until(lambda: any(state_of(tmp_path / name) is State.FINISHED for name in names))
    driver.kill()
    driver.wait()
    until(lambda: not any(state_of(tmp_path / name) is State.RUNNING for name in names))
    driver = drive(tmp_path, cluster, *jobs)
    assert driver.wait(timeout=300) == 0, log.read_text()
    folders = [tmp_path / name for name in (*names, "after")]
    assert [str(state_of(folder)) for folder in folders] == ["finished"] * 11
    assert not [path for name in ("twice", "again") for path in tmp_path.glob(f"*/{name}")]
    assert sum(len(read_attempts(folder)) for folder in folders) >= 13
    seen = [json.loads((folder / "seen.json").read_text())["CUDA_VISIBLE_DEVICES"] or "" for folder in folders]
    assert seen == [""] * 6 + ["0"] * 4 + [""]
    calm = tmp_path / "calm"
    texts = [text.split(":") for text in jobs]
    run([tiny_job(calm, name, do, steps=int(steps), needs=needs) for name, do, steps, *needs in texts])
    for folder in folders:
        assert (folder / "run.json").read_text() == (calm / folder.name / "run.json").read_text()
