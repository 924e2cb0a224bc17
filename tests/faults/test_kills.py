"""Killed at any moment: what stands on disk is whole, the same command goes on, and the end is that of a calm run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_consistency.checkpointing.io import AtomicCheckpointIO, newest_valid
from lit_consistency.cli.fit import main as fit
from lit_consistency.model import load_weights
from lit_consistency.model.checkpoint import save_model
from lit_consistency.model.export import export_hf
from lit_consistency.records.atomic import remove_leftovers
from lit_consistency.records.run_folder import RunFolder
from tests.faults.injections import KILLS, Strikes, alive, check_run, children, fork, kill, numbers, wait
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_model, tiny_provenance, tiny_tokenizer
from tests.runs import ROOT, SCRATCH, VALIDATION, arguments, equal, weights
from tests.tasks.tiny import NLI, nli_rows, write_task
from tests.tasks.tiny import tiny_model as tiny_base

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600)]

Record = Callable[[str, Any], None]
VALIDATED = [f"--data.init_args.validation={VALIDATION}", "--trainer.limit_val_batches=1.0"]
# 14 steps, the ninth of which ends an epoch; measured every four, saved every three
FIT = [*SCRATCH, *VALIDATED, "--trainer.max_steps=14", "--checkpoint.every_n_steps=3", "--forgetting.every_n_steps=4"]


def test_a_fit_that_is_killed_ends_as_a_calm_one(tmp_path: Path, record_property: Record) -> None:
    def command(root: Path) -> int:
        return fork(lambda: fit([*arguments(root, *FIT), "--ckpt_path=auto"]), tmp_path / "log.txt")

    assert wait(command(tmp_path / "warm")) == 0, (tmp_path / "log.txt").read_text()
    began = time.monotonic()
    assert wait(command(tmp_path / "calm")) == 0
    calm, seconds = tmp_path / "calm" / "run", time.monotonic() - began
    runs, strikes = 0, Strikes(0, 0.8 * seconds)
    while strikes.go_on:
        root, status = tmp_path / f"killed{runs}", None
        while status is None:
            pid = command(root)
            status = wait(pid, strikes.moment())
            if status is None:
                kill(pid)
                wait(pid)
                strikes.n += 1
                check_run(root / "run")
        assert status == 0, (tmp_path / "log.txt").read_text()
        runs += 1
        assert equal(weights(calm / "model"), weights(root / "run" / "model"))
        assert numbers(calm) == numbers(root / "run")
        assert not list((root / "run").rglob("*.unfinished"))
    record_property("fault", ("SIGKILL in `fit`", strikes.n, f"{runs} of {runs} runs end bit-equal, every number once"))


def test_a_save_that_is_killed_leaves_what_stood_there(tmp_path: Path, record_property: Record) -> None:
    """Checkpoints are written over and over, and a model takes the place of a model: there is no moment without one."""
    state = {"w": torch.zeros(1_000_000)}
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    tiny_checkpoint(tmp_path / "model", "pythia-14m", tokenizer)
    model, config = tiny_model("pythia-14m"), tiny_config("pythia-14m")

    def save() -> None:
        for step in range(10_000):
            AtomicCheckpointIO().save_checkpoint(state, folder / f"step-{step % 3:08d}.ckpt")
            provenance = tiny_provenance(model="pythia-14m")
            save_model(tmp_path / "model", model.state_dict(), config, tokenizer, provenance, overwrite=True)

    folder = tmp_path / "checkpoints"
    first = fork(
        lambda: AtomicCheckpointIO().save_checkpoint(state, folder / "step-00000001.ckpt"), tmp_path / "log.txt"
    )
    assert wait(first) == 0
    strikes = Strikes(1, 0.6, first=0.2)
    while strikes.go_on:
        pid, seconds = fork(save, tmp_path / "log.txt"), strikes.moment()
        strikes.n += 1
        assert wait(pid, seconds) is None, (tmp_path / "log.txt").read_text()
        kill(pid)
        wait(pid)
        newest, _ = newest_valid(folder)
        assert newest is not None
        assert load_weights(tmp_path / "model").keys() == model.state_dict().keys()
    remove_leftovers(tmp_path)
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "checkpoints" / "step-00000009.ckpt")
    assert not list(tmp_path.rglob(".*"))
    record_property(
        "fault", ("SIGKILL while checkpoints and a model are written", strikes.n, "a whole one of each, always")
    )


def test_an_export_that_is_killed_is_whole_or_not_there(tmp_path: Path, record_property: Record) -> None:
    base = tmp_path / "base"
    tiny_checkpoint(base, "pythia-14m", tiny_tokenizer(tmp_path / "tokenizer"))
    export_hf(base, tmp_path / "calm" / "out")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "calm" / "out").iterdir()}
    began = time.monotonic()
    export_hf(base, tmp_path / "calm" / "out", overwrite=True)

    def export() -> None:
        for _ in range(10_000):
            export_hf(base, tmp_path / "out", overwrite=True)

    there, out, strikes = 0, tmp_path / "out", Strikes(2, 4 * (time.monotonic() - began))
    while strikes.go_on:
        pid, seconds = fork(export, tmp_path / "log.txt"), strikes.moment()
        strikes.n += 1
        assert wait(pid, seconds) is None, (tmp_path / "log.txt").read_text()
        kill(pid)
        wait(pid)
        assert out.is_dir() or not there, "what stood there once stays"
        if out.is_dir():
            assert {file.name: file.read_bytes() for file in out.iterdir()} == whole
            there += 1
    assert there
    remove_leftovers(tmp_path, "out")
    assert not list(tmp_path.glob(".*"))
    record_property("fault", ("SIGKILL in `export`", strikes.n, "the folder is whole or not there"))


def tiny_sequence(folder: Path) -> list[str]:
    """The command of a sequence of two stages of a task with opposite answers."""
    folder.mkdir()
    tasks = [
        write_task(folder / f"{name}.yaml", **task, data=nli_rows(8), few_shot=nli_rows(16, start=50))
        for name, task in (("first", NLI), ("second", {**NLI, "gold_values": [1, 0]}))
    ]
    trainer = {"accelerator": "cpu", "max_steps": 20, "enable_progress_bar": False, "log_every_n_steps": 1}
    sizes = {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64}
    plan: dict[str, Any] = {
        "base": str(tiny_base(folder / "base")),
        "output": str(folder / "out"),
        "stages": [{"task": str(task)} for task in tasks],
        "fit": {
            "config": [f"{ROOT}/configs/optimizers/adamw.yaml"],
            "options": {"trainer": trainer, "data.init_args": sizes, "checkpoint.every_n_steps": 5},
        },
        "evaluation": {"device": "cpu", "limit": 8},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return [sys.executable, "-m", "lit_consistency", "sequence", f"--config={folder / 'plan.yaml'}"]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def strike(process: subprocess.Popen[bytes], pid: int, seconds: float = 60.0) -> None:
    """Kill one of its processes; all others end by themselves."""
    family = [process.pid, *children(process.pid)]
    kill(pid)
    process.wait(timeout=seconds)
    end = time.monotonic() + seconds
    while left := alive(family):
        assert time.monotonic() < end, f"{left} live on"
        time.sleep(0.05)


def test_a_sequence_whose_launcher_is_killed_ends_as_a_calm_one(tmp_path: Path, record_property: Record) -> None:
    log = tmp_path / "log.txt"
    began = time.monotonic()
    assert start(tiny_sequence(tmp_path / "calm"), log).wait() == 0, log.read_text()
    seconds = time.monotonic() - began
    runs, strikes = 0, Strikes(3, 0.6 * seconds)
    while strikes.go_on:
        folder, status = tmp_path / f"killed{runs}", None
        command = tiny_sequence(folder)
        while status is None:
            process = start(command, log)
            try:
                status = process.wait(strikes.moment())
            except subprocess.TimeoutExpired:
                strike(process, process.pid)
                strikes.n += 1
                for run in (folder / "out" / "runs").glob("seed*"):
                    check_run(run)
        assert status == 0, log.read_text()
        runs += 1
        matrices = [json.loads((tmp_path / name / "out" / "matrix.json").read_text()) for name in ("calm", folder.name)]
        assert matrices[0]["matrices"] == matrices[1]["matrices"]
    record_property(
        "fault", ("SIGKILL of a `sequence`", strikes.n, f"no orphan; {runs} of {runs} end with the same matrix")
    )


@pytest.mark.parametrize("who", ["rank", "launcher"])
def test_a_run_on_two_processes_of_which_one_is_killed(who: str, tmp_path: Path, record_property: Record) -> None:
    log = tmp_path / "log.txt"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.micro_batch_size=2"]

    def command(root: Path) -> list[str]:
        return [sys.executable, "-m", "lit_consistency", *arguments(root, *FIT, *two), "--ckpt_path=auto"]

    began = time.monotonic()
    assert start(command(tmp_path / "calm"), log).wait() == 0, log.read_text()
    calm, seconds = tmp_path / "calm" / "run", time.monotonic() - began
    # most of the time goes into imports: strike when both are there
    runs, strikes = 0, Strikes(4 + (who == "rank"), seconds, first=0.4 * seconds)
    while strikes.go_on:
        root, status = tmp_path / f"killed{runs}", None
        while status is None:
            process = start(command(root), log)
            try:
                status = process.wait(strikes.moment())
            except subprocess.TimeoutExpired:
                family = children(process.pid)
                strike(process, process.pid if who == "launcher" or not family else family[0])
                assert process.returncode != 0
                strikes.n += 1
                check_run(root / "run")
        assert status == 0, log.read_text()
        runs += 1
        assert equal(weights(calm / "model"), weights(root / "run" / "model"))
        assert numbers(calm) == numbers(root / "run")
    name = "the launcher" if who == "launcher" else "a rank"
    record_property(
        "fault", (f"SIGKILL of {name} of DDP", strikes.n, f"no process lives on; {runs} of {runs} end bit-equal")
    )


def test_a_second_run_in_the_folder_is_kept_out(tmp_path: Path, record_property: Record) -> None:
    """Until the first is dead; the second names it and leaves every file as it is."""
    endless = [*SCRATCH, "--trainer.max_steps=100000", "--trainer.max_epochs=100000", "--checkpoint.every_n_steps=5"]
    for i in range(KILLS // 4):
        root = tmp_path / "root"
        first = fork(lambda root=root: fit(arguments(root, *endless)), tmp_path / "first.txt")
        while not list((root / "run" / "checkpoints").glob("*.manifest.json")):
            assert wait(first, 0.05) is None, (tmp_path / "first.txt").read_text()
        second = fork(lambda root=root: fit([*arguments(root, *endless), "--ckpt_path=auto"]), tmp_path / "second.txt")
        assert wait(second) == 2
        assert f"process {first} on host" in (tmp_path / "second.txt").read_text()
        assert wait(first, 0.01) is None
        check_run(root / "run")
        kill(first)
        wait(first)
        third = fork(lambda root=root: fit([*arguments(root, *endless), "--ckpt_path=auto"]), tmp_path / "third.txt")
        while not RunFolder(root / "run").read_record()["resumed_from"]:
            assert wait(third, 0.05) is None, (tmp_path / "third.txt").read_text()
        time.sleep(1)  # the handlers of signals stand when training has begun
        os.kill(third, signal.SIGTERM)
        assert wait(third) == 128 + signal.SIGTERM
        root.rename(tmp_path / f"root{i}")
    record_property("fault", ("a second run in a folder", KILLS // 4, "refused by the host and process of the first"))
