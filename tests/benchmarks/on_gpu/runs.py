"""Whole runs by the command line on the device: stopped and resumed, sharded, and how fast the command is."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor

from lit_consistency.cli.fit import build
from tests.benchmarks.on_gpu.place import Place, Row, bar, or_skip, release
from tests.runs import ROOT, SCRATCH, arguments, equal, largest_difference, weights

STEPS = 12
# wall-clock numbers are never the same twice
TIMED = ("speed/", "evaluation/")


class StopAt(Callback):
    """Send SIGTERM to this process when a micro-batch begins: the step in work is finished and saved."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(root: Path, options: Sequence[str], place: Place, callback: Callback | None = None) -> Any:
    """``python -m lit_consistency fit`` in this process, which is left as it was; returns the command."""
    environment, sys.argv = dict(os.environ), sys.argv[:1]
    accelerator = "gpu" if place.device == "cuda" else "cpu"
    try:
        cli = build(
            [
                "fit",
                *options,
                f"--trainer.accelerator={accelerator}",
                "--trainer.devices=1",
                "--trainer.enable_progress_bar=false",
                f"--run.root={root}",
                "--run.name=run",
            ]
        )
        if callback is not None:
            cli.trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
        cli.execute()
        return cli
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.use_deterministic_algorithms(False)
        os.environ.clear()
        os.environ.update(environment)
        release(place.device)


def logged(root: Path) -> list[dict[str, Any]]:
    """What the run wrote to metrics.jsonl, without what the clock said."""
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if not any(key.startswith(TIMED) for key in line)]


def task(optimizer: str, precision: str, place: Place, *more: str) -> list[str]:
    """A short run with measurements at the start, at half way and at the end: the quickstart, or a tiny one."""
    options = [f"--trainer.precision={precision}", f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=2"]
    options += [f"--forgetting.every_n_steps={STEPS // 2}", *more]
    if place.tiny:
        return [*arguments(Path(), *SCRATCH, optimizer=optimizer)[1:], *options]
    return [
        f"--config={ROOT}/configs/quickstart.yaml",
        f"--config={ROOT}/configs/optimizers/{optimizer}.yaml",
        *options,
    ]


# -------------------- resume


def resume(place: Place) -> Iterator[Row]:
    """Stopped at half way and continued with ``--ckpt_path auto``: weights and logged numbers bit for bit."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first product, as torch's documentation asks
    cases = [("muon", "bf16-true", True), ("adamw", "bf16-mixed", True), ("mofo", "bf16-true", True)]
    cases += [] if place.tiny else [("adamw", "bf16-mixed", False)]
    for optimizer, precision, deterministic in cases[:1] if place.tiny else cases:
        labels = {"optimizer": optimizer, "precision": precision, "deterministic": deterministic}
        options = task(optimizer, precision, place, f"--trainer.deterministic={str(deterministic).lower()}")
        row = or_skip(place, 10, labels, _resumed, options, place)
        yield row
        if deterministic and "weights equal" in row:
            met = float(row["weights equal"] and row["log equal"])
            yield bar(f"resumed equals straight, {optimizer}, {precision}", met, 1, at_least=True)


def _resumed(options: Sequence[str], place: Place) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = Path(folder) / "straight", Path(folder) / "broken"
        began = time.monotonic()
        fit(straight, options, place)
        took = time.monotonic() - began
        fit(broken, options, place, StopAt(STEPS // 2 - 1))
        if (broken / "run" / "model").exists():
            raise RuntimeError("the run was to stop at half way, and has finished")
        fit(broken, [*options, "--ckpt_path=auto"], place)
        one, two = (weights(root / "run" / "model") for root in (straight, broken))
        return {
            "weights equal": equal(one, two),
            "largest difference": largest_difference(one, two),
            "log equal": logged(straight) == logged(broken),
            "straight run s": took,
        }


# -------------------- FSDP2


def fsdp(place: Place) -> Iterator[Row]:
    """FSDP2 on one device against no strategy at all, and resumed from a folder of shards.

    Under bf16-mixed the sharded run keeps its residual stream in bfloat16 (distributed/fsdp.py): it is another run.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # a machine without a network has the loopback interface alone
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sharded = f"--config={ROOT}/configs/devices/fsdp2.yaml"
    # only in float64 does rounding stay below what Adam makes of it where a gradient is nearly nothing
    for precision, limit in (("64-true", 1e-6), ("bf16-mixed", None)):
        options = task("adamw", precision, place, "--trainer.deterministic=true")
        row = or_skip(place, 10, {"precision": precision}, _against_one, options, [*options, sharded], place)
        yield row
        if limit is not None and "relative difference" in row:
            title = f"FSDP2 on one device apart from one device alone, relative to the change, {precision}"
            yield bar(title, row["relative difference"], limit)
    options = task("muon", "bf16-mixed", place, "--trainer.deterministic=true", sharded)
    row = or_skip(place, 10, {"precision": "bf16-mixed", "optimizer": "muon"}, _resumed, options, place)
    yield row
    if "weights equal" in row:
        met = float(row["weights equal"] and row["log equal"])
        yield bar("FSDP2 resumed equals straight, muon, bf16-mixed", met, 1, at_least=True)


def _against_one(alone: Sequence[str], sharded: Sequence[str], place: Place) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        fit(one, alone, place)
        cli = fit(many, sharded, place)
        a, b = (weights(root / "run" / "model") for root in (one, many))
        last = [line for line in logged(one) if "distance/all" in line][-1]
        return {
            "strategy": type(cli.trainer.strategy).__name__,
            "relative difference": distance(a, b) / last["distance/all"],
            "largest difference": largest_difference(a, b),
        }


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Euclidean norm of the difference of two models."""
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in a) ** 0.5


# -------------------- the whole command


def command(place: Place) -> Iterator[Row]:
    """Pretraining at 124M's width and depth by ``fit``, with loader, callbacks and records: what it logs."""
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}
    if place.tiny:
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 128}
    rows = 8 if place.tiny else 32
    options = [
        f"--config={ROOT}/configs/pretrain.yaml",
        f"--config={ROOT}/configs/pretraining/adamw.yaml",
        *(f"--model.overrides.{name}={value}" for name, value in sizes.items()),
        f"--data.init_args.block_size={sizes['block_size']}",
        f"--data.init_args.global_batch_size={rows}",
        f"--data.init_args.micro_batch_size={rows}",
        f"--trainer.max_steps={6 if place.tiny else 30}",
        "--trainer.max_epochs=4",
        "--trainer.log_every_n_steps=2",
        "--model.optimizer.init_args.lr=0.0006",
        "--forgetting.every_n_steps=0",
    ]
    cases = [("bf16-mixed", "false"), ("bf16-true", "false"), ("bf16-mixed", "true")]
    for precision, compiled in cases[:1] if place.tiny else cases:
        labels = {"command": "fit", "precision": precision, "compiled": compiled}
        more = [f"--trainer.precision={precision}", f"--model.compile={compiled}"]
        yield or_skip(place, 40 if compiled == "true" else 10, labels, _speed, [*options, *more], place)


def _speed(options: Sequence[str], place: Place) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        fit(Path(folder), options, place)
        took = time.monotonic() - began
        path = Path(folder) / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    speeds = [line for line in lines if "speed/tokens_per_second" in line]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    # the fastest stretch between two logged steps: the first ones find kernels and memory
    best = max(speeds, key=lambda line: line["speed/tokens_per_second"])
    numbers = {name.removeprefix("speed/"): value for name, value in best.items() if name.startswith("speed/")}
    return {**numbers, "first loss": losses[0], "last loss": losses[-1], "command s": took}
