"""What all callbacks and the default evaluation cost in a run of ten minutes: ``fit`` beside the same fit with none.

    LIT_CONSISTENCY_TEST_DATA=DATA python -m tests.benchmarks.watching --check --json watching.json

pythia-14m with 50,304 tokens and random weights (which end no text that they write, so that it is as dear as it can
be) is finetuned on Dolly's rows, a tenth of which is held out, with all that ``fit`` does where nothing is said: the
suite and the base's own samples at the start and the end, distances, loggers, progress, checkpoint, the final model and
its validation. The other run has no callback and no logger, and measures and writes nothing. Both take turns in one
process and one thread, on the same batches; their losses are the same. Seconds of CPU: what the one spends outside of
its steps more than the other is the fixed part, and what its callbacks and loggers spend within them, logging included,
is the part of each step. From both follows the share of a run that takes ``MINUTES`` in all. Whole steps of both are
printed beside, medians over rounds of ten: their difference is less than the noise of a busy machine. Left out:
Lightning's validation at the end of each epoch, whose cost is that of the rows that a user holds out; printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lit_consistency.cli.fit import build
from lit_consistency.module import language_model
from lit_consistency.study.summary import processor
from tests.benchmarks.engine import LONGEST, STEP_ROWS, STYLE, Place
from tests.benchmarks.measure import Bar

MINUTES = 10.0
MOST = 0.05
"""Greatest share of such a run that is not the training's own."""
ROUND = 10
"""Steps, as many as ``trainer.log_every_n_steps``."""
HOOKS = ("setup", "teardown", *(name for name in dir(Callback) if name.startswith("on_")))
PER_STEP = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_before_zero_grad")
OFF = [
    "--forgetting.retain={}",
    "--forgetting.learn={}",
    "--forgetting.kl_positions=0",
    "--run.save_model=false",
    "--checkpoint.at_end=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
]


class Clock:
    """CPU seconds of callbacks and loggers; what one calls of another is its own."""

    def __init__(self) -> None:
        self.outside: dict[str, float] = defaultdict(float)
        self.within: dict[str, float] = defaultdict(float)
        self.in_step = self.inside = False

    def watch(self, watched: Callback | Logger, names: Iterable[str]) -> None:
        """Count what some methods take, where the class of the object has them."""
        for name in names:
            if getattr(type(watched), name, None) is not getattr(Callback, name, None):
                setattr(watched, name, self._counting(getattr(watched, name), type(watched).__name__, name))

    def _counting(self, method: Callable[..., Any], owner: str, name: str) -> Callable[..., Any]:
        @wraps(method)
        def counted(*args: Any, **options: Any) -> Any:
            if self.inside:
                return method(*args, **options)
            self.inside, began = True, time.process_time()
            try:
                return method(*args, **options)
            finally:
                self.inside, seconds = False, time.process_time() - began
                (self.within if self.in_step or name in PER_STEP else self.outside)[owner] += seconds

        return counted


class Marks(Callback):
    """CPU seconds of the process at the beginning of the first step and at the end of each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at: list[float] = []
        self.counted: list[float] = []
        self.losses: list[float] = []
        self.validating = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Only that of the first step counts: between two steps, both are the next one's."""
        self.clock.in_step = True
        if not self.at:
            self._mark()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The last of the callbacks: all others belong to the step."""
        if trainer.fit_loop._should_accumulate():
            return
        self._mark()
        self.losses.append(language_model(pl_module).step_loss or 0.0)

    def _mark(self) -> None:
        self.at.append(time.process_time())
        self.counted.append(sum(self.clock.within.values()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind a step the module logs; behind an epoch there is no step."""
        self.clock.in_step = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """That of the last step."""
        self.validating -= time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is over."""
        self.validating += time.process_time()


class Spent(NamedTuple):
    """CPU seconds of a run outside of its steps, of one step and what callbacks take of it, and of one validation.

    Args:
        parts: class of each callback or logger -> seconds outside of the steps.
    """

    fixed: float
    step: float
    of_step: float
    validation: float
    parts: dict[str, float]
    losses: list[float]
    steps_per_epoch: int


def run(place: Place, steps: int, watched: bool) -> Spent:
    """One fit, with all that it does by itself or with nothing."""
    rows = place.row_folder(len(place.rows) - 4) / "ours.jsonl"
    packed = round(STEP_ROWS * statistics.mean(place.lengths) / LONGEST)
    with tempfile.TemporaryDirectory(dir=place.folder) as root:
        options = {
            "trainer.accelerator": "cpu",
            "trainer.max_steps": steps,
            "trainer.check_val_every_n_epoch": steps,  # the last step is validated all the same
            "model.checkpoint_dir": place.base,
            "model.optimizer": "lit_consistency.optimizers.AdamW",
            "model.optimizer.init_args.lr": 3e-4,
            "data": "lit_consistency.data.SFTData",
            "data.init_args.rows": "lit_consistency.data.RowFiles",
            "data.init_args.rows.init_args.path": rows,
            "data.init_args.validation_share": 0.1,
            "data.init_args.prompt_style": STYLE,
            "data.init_args.block_size": LONGEST,
            "data.init_args.global_batch_size": packed,
            "data.init_args.micro_batch_size": packed,
            "run.root": root,
            "run.reuse_base": "false",
        }
        cli = build(["fit", *(f"--{key}={value}" for key, value in options.items()), *([] if watched else OFF)])
        clock, callbacks = Clock(), cli.trainer.callbacks  # type: ignore[attr-defined]
        marks = Marks(clock)
        if watched:
            for callback in callbacks:
                clock.watch(callback, HOOKS)
            for logger in cli.trainer.loggers:
                clock.watch(logger, ("log_metrics", "log_hyperparams", "save", "finalize"))
        else:
            callbacks.clear()
            cli.trainer.loggers = []
        callbacks.append(marks)
        began = time.process_time()
        cli.execute()
        whole = time.process_time() - began
    # the first round pays for what is made once, in the last one the end is saved
    step, of_step = (statistics.median(rounds(at)[1:-1]) for at in (marks.at, marks.counted))
    saving = rounds(marks.counted)[-1] - of_step
    clock.outside["in the last steps"] = saving
    return Spent(
        whole - (marks.at[-1] - marks.at[0]) + saving,
        step / ROUND,
        of_step / ROUND,
        marks.validating,
        dict(clock.outside),
        marks.losses,
        cli.datamodule.steps_per_epoch,
    )


def rounds(at: list[float]) -> list[float]:
    """Differences of marks that lie a round apart."""
    return [after - before for before, after in zip(at[::ROUND], at[ROUND::ROUND], strict=False)]


def share(on: Spent, off: Spent, seconds: float = 60 * MINUTES) -> tuple[float, int]:
    """Of a run of so many seconds what is not the other one's, and the number of its steps."""
    n_steps = int((seconds - on.fixed) / on.step)
    return (on.fixed - off.fixed + n_steps * on.of_step) / seconds, n_steps


def least(runs: list[Spent]) -> Spent:
    """The least of each part over some runs: another process on the machine only adds to them."""
    smallest = {name: min(getattr(one, name) for one in runs) for name in ("step", "of_step", "validation")}
    return min(runs, key=lambda one: one.fixed)._replace(**smallest)


def measure(place: Place, steps: int, repeats: int) -> dict[str, Any]:
    """The share of a run, and of what it consists."""
    pairs = [(run(place, steps, True), run(place, steps, False)) for _ in range(repeats)]
    assert all(on.losses == off.losses for on, off in pairs), "a run that is watched has other losses"
    on, off = (least(list(runs)) for runs in zip(*pairs, strict=True))
    whole, n_steps = share(on, off)
    epochs = n_steps / on.steps_per_epoch
    return {
        "share": round(whole, 4),
        "steps": n_steps,
        "fixed_s": {"watched": round(on.fixed, 2), "bare": round(off.fixed, 2)},
        "of_step_ms": round(1e3 * on.of_step, 2),
        "step_ms": {"watched": round(1e3 * on.step, 1), "bare": round(1e3 * off.step, 1)},
        "outside_steps_s": {name: round(s, 2) for name, s in sorted(on.parts.items(), key=lambda part: -part[1])},
        "validations_share": round(epochs * on.validation / (60 * MINUTES), 4),
    }


def main() -> int:
    """Measure, print, write the JSON; 1 where ``--check`` misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4 * ROUND, help=f"of each run, at least {3 * ROUND}")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not (data := os.environ.get("LIT_CONSISTENCY_TEST_DATA")):
        parser.error("LIT_CONSISTENCY_TEST_DATA is not set: expected a folder with books, Dolly's rows and a tokenizer")
    if given.steps < 3 * ROUND or given.steps % ROUND:
        parser.error(f"--steps {given.steps}: expected a multiple of {ROUND}, at least {3 * ROUND}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Place(Path(folder), Path(data)), given.steps, given.repeats)
    bar = Bar(f"share of callbacks and default evaluation in {MINUTES:g} minutes", row["share"], MOST)
    if given.json:
        content = {"processor": processor(), "torch": torch.__version__, **row}
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"{processor()}, torch {torch.__version__}: {json.dumps(row)}\n{'met' if bar.met else 'missed'}: {bar.text}")
    return int(given.check and not bar.met)


if __name__ == "__main__":
    sys.exit(main())
