"""``predict`` writes one line of JSON per row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_consistency.callbacks.run_record import RunRecord


class PredictionWriter(Callback):
    """Append each batch's rows to a file; every rank but the first writes into its own, named by its rank.

    Args:
        record: of the run, in whose folder the file is written; an older one is replaced.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.path = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an empty file; the run's name is agreed on by now."""
        self.path = self.record.directory / "predictions.jsonl"
        if trainer.global_rank > 0:
            self.path = self.path.with_suffix(f".rank{trainer.global_rank}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        rank_zero_info(f"predictions: {self.path}")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of one batch."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in outputs)
