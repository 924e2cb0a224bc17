"""A table of next tokens under a real Trainer: a model that shows every sample it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.token_data import TokenData
from tests.data.helpers import ListRows

PAIRS = [(f"the question {i} ", "the answer " * (i % 4 + 1) + str(i)) for i in range(21)]


class Bigram(LightningModule):
    """Logits of the next token by a table; keeps the batches it has seen."""

    def __init__(self, vocab_size: int, checkpoint_dir: Path | None = None) -> None:
        super().__init__()
        self.checkpoint_dir = checkpoint_dir
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["tokens"].flatten().tolist())
        loss = self._nll(batch) / batch["supervised"]
        return loss * self.trainer.accumulate_grad_batches

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", self._nll(batch), reduce_fx="sum")

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return (batch["targets"] != -100).sum()

    def _nll(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.table(batch["tokens"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAndStop(Callback):
    """Saves behind the optimizer step of this number, and stops there."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.file.exists():
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


def sft(folder: Path, **options: Any) -> SFTData:
    defaults = {"global_batch_size": 4, "micro_batch_size": 2, "block_size": 64, "packing": False, "seed": 5}
    return SFTData(ListRows(PAIRS), tokenizer_dir=folder, **{**defaults, **options})


def fit(data: TokenData, callback: Callback | None = None, resume: Path | None = None, **options: Any) -> Bigram:
    module = Bigram(350)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[callback] if callback else None,
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module


class SaveInside(Callback):
    """Saves behind the first of two micro-batches of a step, and stops there."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.fit_loop.batch_idx % 2 == 0:
            trainer.save_checkpoint(self.file)
            raise KeyboardInterrupt
