"""The loader: micro-batches in order, with a position that is saved and resumed exactly.

It holds a torch ``DataLoader`` and is none: Lightning rebuilds what is one, to put its own shuffling sampler under DDP
or an index sampler under predict (pytorch-lightning #10170, #21447), and leaves any other iterable as it is. The
position counts micro-batches handed out, not those that workers prepared ahead. Workers live for one epoch; those
that stay are left to the garbage collector, which can wait 10 s for them. The first batch is fetched at the first
``next``, since Lightning calls ``iter`` before it says which epoch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_consistency.data.loading.collate import EMPTY, Batch, collate
from lit_consistency.data.loading.order import MicroBatch, Order
from lit_consistency.data.tokens.token_rows import TokenRows


class _MicroBatches(Dataset):
    """Batches by their ``MicroBatch``; the workers of the DataLoader hold it, so collating runs in them."""

    def __init__(self, rows: TokenRows, training: bool) -> None:
        self.rows = rows
        self.training = training

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        rows = [self.rows[i] if i >= 0 else EMPTY for i in micro_batch.rows]
        whole = micro_batch.global_batch
        supervised = int(self.rows.supervised[whole].sum()) if self.training else None
        batch = collate(rows, self.rows.block_size if self.rows.full else None, supervised)
        if self.training and (replayed := self.rows.replayed) is not None:
            batch["replayed"] = torch.tensor([i >= 0 and bool(replayed[i]) for i in micro_batch.rows])
            batch["supervised_replayed"] = torch.tensor(int(self.rows.supervised[whole][replayed[whole]].sum()))
        return batch


class _Remaining:
    """Sampler of the micro-batches from a position on; the position is read when an iteration starts."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.position = (0, 0)
        self.lengths: np.ndarray | None = None

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.order.epoch(*self.position, self.lengths)


class TokenLoader:
    """Batches of one rank, epoch after epoch.

    Args:
        rows: The rows.
        order: Which rows a micro-batch holds.
        training: Whether batches hold the number of supervised tokens of the optimizer step, and every iteration goes
            on to the next epoch; else every iteration is the same.
        num_workers: Processes that prepare batches; 0 does it here.
        on_resume: Called when a state is loaded, with the micro-batches that the checkpoint counted, the number at
            which this loader goes on, and whether a global batch that was begun is begun anew.
    """

    def __init__(
        self,
        rows: TokenRows,
        order: Order,
        training: bool = True,
        num_workers: int = 0,
        on_resume: Callable[[int, int, bool], None] | None = None,
    ) -> None:
        self.rows = rows
        self.order = order
        self.training = training
        self.on_resume = on_resume
        self.epoch = 0
        self.consumed = 0
        self._sampler = _Remaining(order)
        self._micro_batches = _MicroBatches(rows, training)
        self._batches = DataLoader(
            self._micro_batches,
            sampler=self._sampler,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # else every iteration draws from the global random state
        )

    @property
    def sampler(self) -> TokenLoader:
        """The loader itself, for training: Lightning calls ``set_epoch`` of a sampler. None for evaluation."""
        if not self.training:
            raise AttributeError("sampler")
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of a later epoch; the epoch in progress is not disturbed."""
        self._roll_over()
        if epoch > self.epoch:
            self.epoch, self.consumed = epoch, 0

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, wherever the position is: Lightning counts on from the number it saved."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the epoch in progress, or the whole next one where it is finished."""
        if self.training:
            self._roll_over()
        else:
            self.consumed = 0
        self._sampler.position = (self.epoch, self.consumed)
        self._micro_batches.rows = rows = self.rows.of_epoch(self.epoch)
        self._sampler.lengths = rows.lengths if self.order.by_length else None
        for batch in self._batches:
            self.consumed += 1
            yield batch

    def _roll_over(self) -> None:
        if self.consumed >= len(self) > 0:
            self.epoch, self.consumed = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Position and layout; epoch and global batch mean the same under any layout."""
        global_batch, micro_batch = divmod(self.consumed, self.order.per_step)
        return {"epoch": self.epoch, "global_batch": global_batch, "micro_batch": micro_batch, **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the last whole global batch.

        A global batch that was begun is begun anew: the gradients it had gathered are in no checkpoint, so only this
        repeats the step exactly. The number of ranks and the micro-batch size may differ from the checkpoint's.

        Raises:
            ValueError: The rows, the global batch size or the seed differ, so that the position means nothing here.
        """
        layout = self._layout()
        for key in ("n_rows", "global_batch_size", "seed"):
            if state[key] != layout[key]:
                raise ValueError(f"resume: data.{key} = {layout[key]}; expected {state[key]}, as in the checkpoint")
        self.epoch = state["epoch"]
        self.consumed = state["global_batch"] * self.order.per_step
        if self.on_resume is not None:
            per_step = state["global_batch_size"] // (state["micro_batch_size"] * state["world_size"])
            saved = state["global_batch"] * per_step + state["micro_batch"]
            self.on_resume(saved, self.consumed, state["micro_batch"] > 0)

    def _layout(self) -> dict[str, int]:
        order = self.order
        return {
            "n_rows": order.n_rows,
            "global_batch_size": order.global_batch_size,
            "micro_batch_size": order.micro_batch_size,
            "world_size": order.world_size,
            "seed": order.seed if order.seed is not None else -1,
        }
