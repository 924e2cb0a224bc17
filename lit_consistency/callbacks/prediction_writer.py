"""``predict`` writes one line of JSON per row of the user's, in the order of the rows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.data.predicted import Predictions
from lit_consistency.records.atomic import new_file


class PredictionWriter(Callback):
    """Append each batch's rows to a file; every rank but the first writes into its own, named by its rank.

    Packed rows come in the order of their packing. Where each stands in the file is kept, and at the end the lines are
    put in order, so that none has to wait in memory.

    Args:
        record: of the run, in whose folder the file is written; an older one is replaced.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.path = Path()
        self._predictions: Predictions | None = None
        self._lines: list[tuple[int, int]] = []  # number of the row, and where its line begins

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an empty file; the run's name is agreed on by now."""
        self.path = self.record.directory / "predictions.jsonl"
        if trainer.global_rank > 0:
            self.path = self.path.with_suffix(f".rank{trainer.global_rank}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        self._predictions = Predictions(trainer.datamodule)  # type: ignore[attr-defined]

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
        assert self._predictions is not None
        with open(self.path, "ab") as file:
            file.seek(0, os.SEEK_END)
            for predicted in outputs:
                number, line = self._predictions.line(predicted)
                self._lines.append((number, file.tell()))
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the lines in order, and say how many there are, and of how many."""
        assert self._predictions is not None
        in_order = sorted(self._lines)
        if in_order != self._lines:
            _reorder(self.path, [start for _, start in in_order])
        others = f", and beside it those of {trainer.world_size - 1} other ranks" if trainer.world_size > 1 else ""
        lines = f"{len(self._lines):,} lines{others}"
        rank_zero_info(f"predictions: {self.path}: {lines}, of {self._predictions.summary_line()}")


def _reorder(path: Path, starts: Sequence[int]) -> None:
    """Write the lines that begin at ``starts``, in that order, in place of the file."""
    with new_file(path) as temporary, open(path, "rb") as old, open(temporary, "wb") as new:
        for start in starts:
            old.seek(start)
            new.write(old.readline())
