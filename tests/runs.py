"""Tiny runs through the real command line: a world of Markov chains, one layer, a second or two each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.records.provenance import read_provenance

ROOT = Path(__file__).parent.parent
OPTIMIZERS = sorted(path.stem for path in (ROOT / "configs" / "optimizers").glob("*.yaml"))
WORLD = '{"class_path": "lit_consistency.data.worlds.MarkovChains", "init_args": {"n_documents": 20, "length": 16}}'
VALIDATION = (
    '{"class_path": "lit_consistency.data.worlds.WorldText", "init_args": {"part": "held_out", "world": ' + WORLD + "}}"
)
SIZES = ["n_layer=1", "n_head=2", "n_embd=16", "block_size=32"]


def arguments(root: Path, *extra: str, data: str = "PretrainData", optimizer: str = "adamw") -> list[str]:
    """Arguments of a tiny ``fit``: 120 documents in rows of 32 tokens, two micro-batches of 4 rows a step."""
    part = "source" if data == "PretrainData" else "rows"
    source = (
        ["lit_consistency.data.worlds.WorldText"]
        if part == "source"
        else ["lit_consistency.data.worlds.WorldRows", "--data.init_args.rows.init_args.task=new_chain"]
    )
    return [
        "fit",
        f"--config={ROOT}/configs/optimizers/{optimizer}.yaml",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.max_steps=4",
        "--trainer.limit_val_batches=0",
        "--forgetting.time_budget=1",  # tests count measurements
        "--forgetting.retain={}",  # and name what is watched
        f"--data=lit_consistency.data.{data}",
        f"--data.init_args.{part}={source[0]}",
        *source[1:],
        f"--data.init_args.{part}.init_args.world={WORLD}",
        "--data.init_args.global_batch_size=8",
        "--data.init_args.micro_batch_size=4",
        "--data.init_args.block_size=32",
        f"--run.root={root}",
        "--run.name=run",
        "--run.reuse_base=false",  # no test depends on another's
        *extra,
    ]


class OnlyFit(ConsistencyCLI):
    """The command line without the parsers of ``validate``, ``test`` and ``predict``, a fifth of its building."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": ConsistencyCLI.subcommands()["fit"]}


SCRATCH = ["--model.name=pythia-14m", *(f"--model.overrides.{size}" for size in SIZES)]


def fit(root: Path, *extra: str, base: Path | None = None, **options: str) -> ConsistencyCLI:
    """Run to the end in this process; from scratch unless there is a base."""
    model = SCRATCH if base is None else [f"--model.checkpoint_dir={base}"]
    cli = build(arguments(root, *model, *extra, **options), OnlyFit)
    cli.execute()
    return cli


FINISHED = tempfile.TemporaryDirectory(prefix="runs-")  # removed when the process ends


@cache
def _finished_run(*extra: str, optimizer: str) -> Path:
    root = Path(tempfile.mkdtemp(dir=FINISHED.name))
    fit(root, *extra, optimizer=optimizer)
    return root / "run"


def finished(root: Path, *extra: str, optimizer: str = "adamw") -> Path:
    """Folder of a run from scratch as ``fit`` leaves it, for tests of what comes after: made once, then copied."""
    return Path(shutil.copytree(_finished_run(*extra, optimizer=optimizer), root / "run"))


def start(root: Path, *extra: str, devices: int, strategy: str, **options: str) -> subprocess.Popen[str]:
    """``python -m lit_consistency fit`` on several processes that Lightning starts; rows of a step: 8, 2 or 1 each."""
    many = [f"--trainer.devices={devices}", f"--trainer.strategy={strategy}"]
    many.append(f"--data.init_args.micro_batch_size={max(1, 4 // devices)}")
    command = [sys.executable, "-m", "lit_consistency", *arguments(root, *many, *extra, **options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIT_CONSISTENCY_TRACEBACK": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a run on several processes; what it has printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of any coordinate of two models."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a saved model."""
    return torch.load(folder / "lit_model.pth", weights_only=True)


def changed_on_purpose(folder: Path) -> None:
    """Record the hashes of files of weights that a test has replaced; else they are refused as damaged."""
    provenance = read_provenance(folder)
    assert provenance is not None
    provenance.write(folder)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
