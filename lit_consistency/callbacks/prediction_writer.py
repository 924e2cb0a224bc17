"""``predict`` writes one line of JSON per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class PredictionWriter(BasePredictionWriter):
    """Append each batch's rows to a file; every rank but the first writes into its own, named by its rank.

    Args:
        path: the file.
        write_interval: when Lightning calls it; after every batch.
    """

    def __init__(self, path: Path, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        super().__init__(write_interval)
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start an empty file."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        if trainer.global_rank > 0:
            self.path = self.path.with_suffix(f".rank{trainer.global_rank}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        rank_zero_info(f"predictions: {self.path}")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the rows of one batch."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in prediction)
