"""How often a step makes the program wait for the device, as CUDA itself counts it; and that bad steps change nothing.

torch warns at every call that waits for CUDA. Between two logged steps of a run there should be none.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback

from lit_consistency.distributed import step_report
from lit_consistency.module import NonFiniteError
from tests.benchmarks.on_gpu.place import Place, Row, bar, or_skip
from tests.benchmarks.on_gpu.runs import STEPS, fit, task

SETTLED = 4  # steps after which the optimizer's state, kernels and memory are there
SAID = "synchronizing CUDA operation"


class Waits(Callback):
    """Collects what torch warns of, from the first hook of a batch to the last."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"
        self.said: dict[int, list[str]] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.recorded = warnings.catch_warnings(record=True)
        self.list: Any = self.recorded.__enter__()
        warnings.simplefilter("always")
        self.step = trainer.global_step
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.recorded.__exit__(None, None, None)
        places = [f"{Path(w.filename).name}:{w.lineno}" for w in self.list if SAID in str(w.message)]
        self.said.setdefault(self.step, []).extend(places)


class Spoil(Callback):
    """One number of the gradient is infinite at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.module = pl_module
            self.before = self.bits()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf

    def bits(self) -> list[torch.Tensor]:
        """Parameters and the optimizer's state as they are."""
        optimizer = self.module.trainer.optimizers[0]
        tensors = [*self.module.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
        return [v.detach().cpu().clone() for v in tensors if isinstance(v, torch.Tensor)]


def waiting(place: Place) -> Iterator[Row]:
    """By optimizer; MoFO's step is asked for before it is made, once."""
    for optimizer in ("adamw", "muon") if place.tiny else ("adamw", "muon", "lion", "mofo"):
        options = [
            *task(optimizer, "bf16-true", place),
            "--forgetting.every_n_steps=0",
            "--trainer.log_every_n_steps=10",
        ]
        row = or_skip(place, 10, {"optimizer": optimizer}, _waits, options, place)
        yield row
        if optimizer != "mofo" and "waits" in row:
            yield bar(f"times that a step waits for the device, {optimizer}", row["waits"], 0)
        row = or_skip(place, 10, {"optimizer": optimizer}, _spoiled, options, place)
        yield row
        if "unchanged" in row:
            title = f"what a bad step leaves equals what was there, {optimizer}"
            yield bar(title, float(row["unchanged"] and row["stopped at"] == SETTLED), 1, at_least=True)


def _waits(options: Sequence[str], place: Place) -> Row:
    watch = Waits(place.device)
    with tempfile.TemporaryDirectory() as folder, _as_on_cuda(place):
        fit(Path(folder), options, place, watch)
    between = {step: places for step, places in watch.said.items() if SETTLED <= step < 9}
    assert len(between) == 9 - SETTLED < STEPS
    return {
        "waits": sum(map(len, between.values())) / len(between),
        "where": sorted({where for places in between.values() for where in places}),
        "waits of a logged step": len(watch.said[9]),
    }


def _spoiled(options: Sequence[str], place: Place) -> Row:
    spoil = Spoil(SETTLED)
    with tempfile.TemporaryDirectory() as folder, _as_on_cuda(place):
        try:
            fit(Path(folder), options, place, spoil)
        except NonFiniteError as error:
            same = all(torch.equal(a, b) for a, b in zip(spoil.before, spoil.bits(), strict=True))
            return {"unchanged": same, "stopped at": spoil.module.trainer.global_step, "said": str(error)[:60]}
    raise RuntimeError("the run was to stop")


def _as_on_cuda(place: Place) -> Any:
    """A CPU goes the same way."""
    return mock.patch.object(step_report, "DEVICES", ("cuda", place.device))
