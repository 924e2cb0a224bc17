"""What a training step of ``fit`` costs beside a plain loop, for a model so small that the rest of a step shows.

    python -m tests.benchmarks.small_models --check --json small_models.json

The quickstart with its callbacks, loggers and lines, 1.05M parameters, in one process and one thread. After every step
of ``fit`` comes one of a plain loop: forward, backward, optimizer's step, and nothing else, on a copy of the model with
the same optimizer and the same batches, which lie ready; every loss is the same. What ``fit`` takes beyond it is
Lightning's and ours, the making of batches included. Seconds of CPU, medians over rounds of ten steps, one of which is
logged. Measurements and validations are left out: ``forgetting.time_budget`` bounds their share.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_consistency.cli.fit import build
from lit_consistency.data.loading.collate import model_inputs, supervised_tokens
from lit_consistency.model import TokenNLL, linear_loss
from lit_consistency.module import language_model
from lit_consistency.optimizers import parameter_groups
from lit_consistency.study.summary import processor
from tests.benchmarks.measure import Bar

ROUND = 10
"""Steps, as many as ``trainer.log_every_n_steps``."""
MOST = 0.15
"""Greatest share of a step that is not the model's, its data's and its optimizer's."""
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class PlainLoop(Callback):
    """Takes turns with the run that it is a callback of."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.plain: list[float] = []
        self.data: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model as it is before the first step."""
        module = language_model(pl_module)
        self.gpt = copy.deepcopy(module.gpt)
        self.optimizer = module.optimizer(parameter_groups(self.gpt, module.qkv, module.roles))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: module.schedule.factor(step, module.total_steps())
        )
        self.batches = _forever(trainer)
        self._begin_round()
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The step of the run is over: it is the plain loop's turn."""
        self.ours[-1] += time.process_time() - self.began
        began = time.process_time()
        loss = self.step(self.ready.pop(0))
        self.plain[-1] += time.process_time() - began
        # ours is summed in float64
        torch.testing.assert_close(loss.item(), language_model(pl_module).step_loss, rtol=1e-6, atol=0)
        if not self.ready:
            self._begin_round()
        self.began = time.process_time()

    def _begin_round(self) -> None:
        began = time.process_time()
        self.ready = list(islice(self.batches, ROUND))
        self.data.append(time.process_time() - began)
        self.ours.append(0.0)
        self.plain.append(0.0)

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One step, and its loss."""
        indices, targets = supervised_tokens(batch)
        states = self.gpt.document_states(**model_inputs(batch)).flatten(0, 1)
        loss, _ = linear_loss(states[indices], self.gpt, TokenNLL(targets), 1 / batch["supervised"].double())
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss.detach()


def _forever(trainer: Trainer) -> Iterator[dict[str, torch.Tensor]]:
    """Batches in the order of the run, prepared as Lightning has the data module prepare them."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.on_before_batch_transfer(batch, 0)


def measure(options: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds of CPU a step, and the share of it that is not the plain loop's."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ["--trainer.max_steps", str(rounds * ROUND), "--trainer.limit_val_batches", "0"]
        unmeasured = ["--forgetting.every_n_steps", "0", "--run.save_model", "false", "--run.root", folder]
        cli = build(["fit", "--config", str(QUICKSTART), *steps, *unmeasured, *options])
        loop = PlainLoop()
        cli.trainer.callbacks.append(loop)  # type: ignore[attr-defined]
        cli.execute()
    # the first round pays for what is made once, the last one is not filled
    ours, plain = loop.ours[1:-1], loop.plain[1:-1]
    return {
        "steps": len(ours) * ROUND,
        "ours_ms": round(100 * statistics.median(ours), 2),
        "plain_ms": round(100 * statistics.median(plain), 2),
        "data_ms": round(100 * statistics.median(loop.data[1:-1]), 2),
        "share": round(statistics.median(1 - b / a for a, b in zip(ours, plain, strict=True)), 3),
    }


def main() -> int:
    """Measure, print, write the JSON; 1 where ``--check`` misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help=f"of {ROUND} steps each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given, options = parser.parse_known_args()
    torch.set_num_threads(1)
    row = measure(options, given.rounds)
    bar = Bar("share of a step that is not the model's", row["share"], MOST)
    if given.json:
        given.json.write_text(
            json.dumps({"processor": processor(), "torch": torch.__version__, **row}, indent=1) + "\n"
        )
    print(f"{processor()}, torch {torch.__version__}: {json.dumps(row)}\n{'' if bar.met else f'missed: {bar.text}'}")
    return int(given.check and not bar.met)


if __name__ == "__main__":
    sys.exit(main())
