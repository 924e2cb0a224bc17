"""The two scripts of the README for several nodes, run as they stand there, on two nodes of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from lit_consistency.records.run_folder import RunFolder
from tests.runs import ROOT, SCRATCH, arguments, equal, finish, start, weights
from tests.study.execute.clusters import absent_of_slurm, ask, free_ports, two_slurm_nodes
from tests.study.execute.test_worker import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = ["--trainer.max_steps=60", "--trainer.max_epochs=-1"]


def script(begins: str) -> str:
    """The block of the README that begins so, for one process a node and without GPUs."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (text,) = [block for block in blocks if block.startswith(begins)]
    for many in ("--nproc-per-node 8", "--ntasks-per-node=8", "--trainer.devices 8"):
        text = text.replace(many, f"{many[:-1]}1")
    text = text.replace(" python -m", f" {sys.executable} -m").replace(" --gpus-per-node=8", "")
    assert "=8" not in text
    assert " 8" not in text
    return text.replace("--run.name many ", "").replace("--config finetune.yaml ", "")


def options(root: Path) -> list[str]:
    """Of a tiny run, two rows a micro-batch, eight a step."""
    return [*arguments(root, *SCRATCH, *STEPS, "--data.init_args.micro_batch_size=2")[1:]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the same run leaves on two processes that Lightning starts."""
    root = tmp_path_factory.mktemp("undisturbed")
    finish(start(root, *SCRATCH, *STEPS, devices=2, strategy="ddp"))
    return weights(root / "run" / "model")


def test_the_launchers_of_two_nodes_train_what_one_machine_trains(
    tmp_path: Path, undisturbed: dict[str, Tensor]
) -> None:
    text = script("torchrun").replace("torchrun", f"{sys.executable} -m torch.distributed.run")
    text = text.replace("HEAD:29500", f"localhost:{free_ports(1)[0]}").rstrip()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", f'{text} "$@"', "bash", *options(tmp_path)]
    both = subprocess.PIPE, subprocess.STDOUT
    nodes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=both[0], stderr=both[1])
        for _ in range(2)
    ]
    for node in nodes:
        finish(node)
    assert equal(weights(tmp_path / "run" / "model"), undisturbed)


@pytest.mark.slurm
@pytest.mark.skipif(bool(absent_of_slurm()), reason=f"no SLURM here: {', '.join(absent_of_slurm())} absent")
def test_a_job_whose_time_is_over_is_requeued_and_ends_as_one_that_was_left_alone(
    tmp_path: Path, undisturbed: dict[str, Tensor]
) -> None:
    file, log, run = tmp_path / "train.sbatch", tmp_path / "job.log", RunFolder(tmp_path / "runs" / "run")
    file.write_text(script("#!/bin/bash"))
    with two_slurm_nodes(tmp_path / "slurm") as environment:
        # the names of these nodes are no names of hosts
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        said = subprocess.run(
            ["sbatch", "--parsable", f"--output={log}", f"--chdir={ROOT}", file, *options(run.path.parent)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        job = said.stdout.strip()
        assert job.isdigit(), said.stderr
        until(lambda: run.metrics_file.is_file() and len(run.read_metrics()) > 5, 300)
        ask(environment, "scancel", "--signal=SIGUSR1", job)  # as --signal sends it, to all that srun has started
        until(lambda: "in the queue again" in log.read_text())
        until(lambda: "PENDING" in ask(environment, "squeue", "--noheader", "--format=%T"))
        ask(environment, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else SLURM waits two minutes
        until(lambda: run.is_finished or not ask(environment, "squeue", "--noheader"), 300)
    text = log.read_text()
    assert run.is_finished, text
    assert run.read_record()["resumed_from"], text
    (step,) = map(int, re.findall(r"SIGUSR1: saving at step (\d+)", text))
    assert 0 < step < 60
    assert f"resuming from {run.checkpoints}/step-{step:08d}.ckpt" in text
    assert [line["step"] for line in run.read_metrics() if "train/loss" in line] == list(range(1, 61))
    assert not list(tmp_path.rglob("hpc_ckpt*")), "Lightning has saved too, in the middle of a step"
    assert equal(weights(run.model), undisturbed)
