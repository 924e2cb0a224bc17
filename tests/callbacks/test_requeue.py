"""A job of SLURM is put into the queue again when its run is saved; tests/distributed/test_nodes.py has a real one."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from lit_consistency.__main__ import main
from lit_consistency.callbacks.requeue import requeue, take_over_requeue
from lit_consistency.checkpointing.io import checkpoints
from lit_consistency.cli.fit import ConsistencyCLI
from tests.callbacks.test_preemption import Kill
from tests.runs import SCRATCH, arguments

TASK = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What scontrol was asked, in a task of a job."""
    script, file = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {file}\ntest "$2" != 9 || {{ echo "not possible" >&2; exit 1; }}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    return file


def rank(number: int) -> Any:
    return SimpleNamespace(is_global_zero=number == 0, strategy=SimpleNamespace(barrier=lambda name: None))


@pytest.mark.parametrize("name", ["run", None])
def test_a_run_is_saved_then_its_job_is_requeued_where_it_goes_on_by_itself(
    name: str | None, tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ConsistencyCLI.execute

    def execute(cli: ConsistencyCLI) -> None:
        cli.trainer.callbacks.insert(0, Kill("on_before_optimizer_step", signal.SIGUSR1))
        plain(cli)

    monkeypatch.setattr(ConsistencyCLI, "execute", execute)
    by_itself = ["--ckpt_path=auto"] if name else []
    words = [word for word in arguments(tmp_path, *SCRATCH, *by_itself) if name or not word.startswith("--run.name")]
    warned = pytest.warns(UserWarning, match="SLURM: not requeued, the same command would begin another run")
    with nullcontext() if name else warned, pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 128 + signal.SIGUSR1
    (run,) = [path for path in tmp_path.iterdir() if (path / "run.json").is_file()]
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000003.ckpt"]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert (asked.read_text() == "requeue 7\n") if name else not asked.exists()


def test_one_rank_asks_and_of_an_array_for_its_own_job_alone(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requeue(rank(1), continues=True)
    assert not asked.exists()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")  # the last job of an array has the number of the whole
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue(rank(0), continues=True)
    assert asked.read_text() == "requeue 7_3\n"


def test_what_slurm_refuses_is_said(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.warns(UserWarning, match="scontrol requeue 9: not possible; submit the same script again"):
        requeue(rank(0), continues=True)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(UserWarning, match="scontrol requeue 9: .*No such file.*; submit the same script again"):
        requeue(rank(0), continues=True)


def test_the_users_environment_decides_whether_and_by_which_signal(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plugin,), number = take_over_requeue([])
    assert (type(plugin), plugin.auto_requeue, number) == (SLURMEnvironment, False, signal.SIGUSR1)
    chosen = SLURMEnvironment(requeue_signal=signal.SIGHUP)
    assert take_over_requeue([chosen]) == ([chosen], signal.SIGHUP)
    assert not chosen.auto_requeue
    for plugin in (SLURMEnvironment(auto_requeue=False), LightningEnvironment()):
        assert take_over_requeue([plugin]) == ([plugin], None)
    monkeypatch.delenv("SLURM_NTASKS")
    assert take_over_requeue([]) == ([], None)
