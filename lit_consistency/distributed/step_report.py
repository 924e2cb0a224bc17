"""What the ranks tell each other of an optimizer step: one message, which the program reads when it is there.

Loss, the anchor's divergence, the gradients' norm and the votes of callbacks (a signal has come, it is time to save)
are summed over the ranks in one all-reduce. On CUDA the program, which runs ahead of the device, does not wait for the
sums: a flag on the device makes the optimizer skip a step whose numbers are not finite, and the program reads the
numbers a step later, from pinned memory, and stops then. Elsewhere reading costs nothing, and they are read at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lit_consistency.distributed.gradients import norm_of, norm_parts
from lit_consistency.optimizers.core.optimizer import PROGRESS
from lit_consistency.optimizers.core.skipping import skips_on_device

DEVICES = ("cuda",)
"""Types of devices behind which the program does not wait."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient was not finite; the optimizer has not moved."""


class StepReport(NamedTuple):
    """Numbers of an optimizer step over all ranks.

    Attributes:
        step: number of optimizer steps before it.
        loss: nats per token.
        grad_norm: before clipping.
        anchor: mean divergence from the base; None without an anchor.
        votes: name -> number of ranks that said so.
    """

    step: int
    loss: float
    grad_norm: float
    anchor: float | None
    votes: dict[str, int]


class UnreadReport:
    """The same, on the device, and on its way to the program; all ranks make it together.

    Args:
        step: number of optimizer steps before this one.
        loss: this rank's share, float64 of shape ().
        anchor: likewise, or None.
        optimizer: whose gradients are complete.
        votes: name -> whether this rank says so; the same names on every rank.
        world_size: number of ranks.
    """

    def __init__(
        self,
        step: int,
        loss: Tensor,
        anchor: Tensor | None,
        optimizer: Optimizer,
        votes: Mapping[str, bool],
        world_size: int,
    ) -> None:
        self.step = step
        self._votes = list(votes)
        on_cuda = loss.device.type == "cuda"
        pin = on_cuda and torch.cuda.is_available()
        numbers = {"loss": loss, **({} if anchor is None else {"anchor": anchor}), **norm_parts(optimizer, world_size)}
        # from pinned memory nothing waits for the copy; from other memory the program would
        said = torch.tensor([float(vote) for vote in votes.values()], dtype=torch.float64, pin_memory=pin)
        shared = torch.cat([torch.stack(list(numbers.values())), said.to(loss.device, non_blocking=True)])
        if world_size > 1:
            work = dist.all_reduce(shared, async_op=True)
            assert work is not None
            work.wait()  # of NCCL the device's stream waits, not the program
        sums = dict(zip(numbers, shared, strict=False))
        self.loss = sums["loss"]
        self.grad_norm = norm_of(sums).to(loss.device)
        kept = torch.cat(
            [torch.stack([self.loss, self.grad_norm, sums.get("anchor", self.loss)]), shared[len(numbers) :]]
        )
        self._has_anchor = anchor is not None
        self._host = torch.empty(len(kept), dtype=torch.float64, pin_memory=pin).copy_(kept, non_blocking=True)
        self._arrived = torch.cuda.Event() if on_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def not_finite(self) -> Tensor:
        """``found_inf`` for the optimizer: float32 of shape (), 1 where loss or norm is not finite."""
        return 1 - (self.loss.isfinite() & self.grad_norm.isfinite()).float()

    def read(self) -> StepReport:
        """The numbers; waits until the device has come to where they were made, which a step later it has."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm, anchor, *said = self._host.tolist()
        votes = {name: round(count) for name, count in zip(self._votes, said, strict=True)}
        return StepReport(self.step, loss, grad_norm, anchor if self._has_anchor else None, votes)


class StepReports:
    """The reports of a run, one unread at most.

    Attributes:
        latest: the last that was read.
        votes: what callbacks tell the other ranks with the next one, under the same names on every rank; they set it
            in ``on_before_optimizer_step``.
    """

    def __init__(self) -> None:
        self.latest: StepReport | None = None
        self.votes: dict[str, bool] = {}
        self._unread: _Unread | None = None

    def add(self, trainer: Any, optimizer: Optimizer, loss: Tensor, anchor: Tensor | None) -> Tensor:
        """Report on the step that is about to be made; at once where the device does not run behind the program.

        Args:
            trainer: of the run.
            optimizer: about to step.
            loss: this rank's share of the step's loss, float64 of shape ().
            anchor: likewise of the divergence, or None.

        Returns:
            The loss over all ranks, on the device.

        Raises:
            NonFiniteError: see ``settle``.
        """
        report = UnreadReport(trainer.global_step, loss, anchor, optimizer, self.votes, trainer.world_size)
        # a gradient scaler waits for the device in every step anyway, and skips steps of its own
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        skips = loss.device.type in DEVICES and not is_scaled and skips_on_device(optimizer)
        self._unread = _Unread(report, trainer, is_scaled, skips)
        if skips:
            optimizer.found_inf = report.not_finite()  # type: ignore[attr-defined]
        else:
            self.settle()
        return report.loss

    def settle(self) -> None:
        """Read the numbers of the latest step, if they are not read yet; whoever shows or saves something does.

        Raises:
            NonFiniteError: they are not finite; the step has changed nothing and is not counted.
        """
        if self._unread is None:
            return
        (unread, trainer, is_scaled, skips), self._unread = self._unread, None
        self.latest = report = unread.read()
        # float16: a gradient that overflowed is skipped by the scaler, which then scales less
        if math.isfinite(report.loss) and (is_scaled or math.isfinite(report.grad_norm)):
            return
        if skips:
            uncount_step(trainer, report.step)
        raise NonFiniteError(
            f"step {report.step}: loss {report.loss}, gradient norm {report.grad_norm}: not finite; stopped before the "
            "optimizer moved. Lower the learning rate, or look at the rows of this step."
        )


class _Unread(NamedTuple):
    report: UnreadReport
    trainer: Any
    is_scaled: bool  # by a gradient scaler
    skips: bool  # the optimizer has stepped, and skipped the step where the numbers are not finite


def uncount_step(trainer: Any, step: int) -> None:
    """Take the latest step, which the optimizer has skipped, back from the counts, so that ``step`` is right again."""
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    if trainer.global_step > step:
        for counts in (progress.total, progress.current):
            counts.ready -= 1
            counts.completed -= 1
    for group in trainer.optimizers[0].param_groups:
        for key in PROGRESS:
            if group.get(key):
                group[key] -= 1
