"""A job of SLURM whose time is nearly over: saved at a step, put into the queue again, and continued by itself.

``#SBATCH --signal=SIGUSR1@90`` sends the signal to every process that srun has started. Lightning saves inside of its
handler, in the middle of a step and on every rank at another moment, into a file of its own; so it is told to leave
the signal alone. Preemption notes it, StepCheckpoint saves at the end of the step, and the job is put into the queue
when the run's folder is free. Requeued, the script runs again as it stands: it must name the run and ``--ckpt_path
auto``, or it would begin another one; where it does not, the run is saved and the job ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

PATIENCE = 60.0
"""Seconds for an answer of SLURM."""


def take_over_requeue(plugins: Sequence[Any]) -> tuple[list[Any], signal.Signals | None]:
    """Have Lightning leave the signal alone by which a job is requeued.

    Args:
        plugins: of the Trainer; a ``SLURMEnvironment`` among them may choose the signal, or ``auto_requeue: false``.

    Returns:
        The plugins to use, and the signal; None where nothing is to be requeued, or SLURM has not started this process.
    """
    environments = [plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)]
    if not environments and not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        environments = [SLURMEnvironment()]
        plugins = [*plugins, *environments]
    ours = next((one for one in environments if isinstance(one, SLURMEnvironment)), None)
    if ours is None or not ours.auto_requeue:
        return list(plugins), None
    ours.auto_requeue = False
    return list(plugins), ours.requeue_signal


def requeue(trainer: Trainer, continues: bool) -> None:
    """Put this job into the queue again, once for all ranks, which end together afterwards.

    A cluster may kill all processes of a step as soon as one ends (``KillOnBadExit``), so none does before that.

    Args:
        trainer: of a run that has saved and let go of its folder.
        continues: whether the same command would go on with this run.
    """
    if trainer.is_global_zero and not continues:
        rank_zero_warn(
            "SLURM: not requeued, the same command would begin another run; with --run.name NAME --ckpt_path auto it "
            "goes on by itself"
        )
    elif trainer.is_global_zero:
        job = _job()
        try:
            said = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=PATIENCE)
            failure = said.stderr.strip() or f"exit status {said.returncode}" if said.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = str(error)
        if failure:
            rank_zero_warn(f"scontrol requeue {job}: {failure}; submit the same script again, it goes on by itself")
        else:
            rank_zero_info(f"SLURM: job {job} is in the queue again, and goes on with this run")
    trainer.strategy.barrier("requeue")


def _job() -> str:
    """The job, or of an array the one that this is: the number of its last job means the whole array to SLURM."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]
