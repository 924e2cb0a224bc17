"""How fast the run goes and where the time goes.

Tokens per second (all, and supervised), the time of a step split into data, forward and backward, optimizer, and
evaluation, the share of the machine's peak where that is known, and peak memory.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_consistency.callbacks.clock import Clock
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.module import LitLanguageModel, language_model


class Throughput(Callback):
    """Log ``speed/*`` every ``trainer.log_every_n_steps`` optimizer steps.

    Args:
        warmup_steps: steps that are not counted, because compilation and allocation make them slow.
    """

    def __init__(self, warmup_steps: int = 2) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps = {warmup_steps}: expected 0 or more")
        self.warmup_steps = warmup_steps
        self.latest: dict[str, float] = {}
        self._clock = Clock(torch.device("cpu"))
        self._tokens = torch.zeros(2, dtype=torch.int64)  # all and supervised, since the last numbers
        self._total = torch.zeros(2, dtype=torch.int64)  # since the run began, on this rank
        self._evaluated = 0.0
        self._steps = 0
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock after the first evaluation."""
        self._tokens = self._tokens.to(pl_module.device)
        self._clock = Clock(pl_module.device)
        self._reset(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """What passed since the last batch was data, or saving."""
        self._lap(trainer, "data")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Gradients are there."""
        self._lap(trainer, "forward_backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Count tokens; at the end of a step that is logged, write the numbers."""
        self._tokens += torch.stack([(batch["documents"] >= 0).sum(), (batch["targets"] != -100).sum()])
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._lap(trainer, "optimizer" if stepped else "forward_backward")
        if not stepped:
            return
        self._steps += 1
        self._seen += 1
        if self._seen == self.warmup_steps:
            self._reset(trainer)
        elif self._seen > self.warmup_steps and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore
            self._log(trainer, language_model(pl_module))
            self._reset(trainer)

    def total_tokens(self, world_size: int) -> int:
        """Tokens trained on since the run began, padding excluded, as if all ranks had as many as this one."""
        return int(self._total[0] + self._tokens[0].cpu()) * world_size

    def state_dict(self) -> dict[str, Any]:
        """The tokens of the run so far."""
        return {"total": self._total + self._tokens.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._total = state_dict["total"]

    def _log(self, trainer: Trainer, pl_module: LitLanguageModel) -> None:
        all_tokens, supervised = (int(n) * trainer.world_size for n in self._tokens)
        parts = self._clock.seconds()
        busy = sum(seconds for part, seconds in parts.items() if part != "evaluation")
        numbers = {
            "speed/tokens_per_second": all_tokens / busy,
            "speed/supervised_tokens_per_second": supervised / busy,
            **{f"speed/{part}_ms": 1000 * seconds / self._steps for part, seconds in parts.items()},
            "speed/peak_memory_gib": peak_memory_gib(pl_module.device),
        }
        peak = available_flops(pl_module.device, trainer)
        if peak:
            used = all_tokens * flops_per_token(pl_module.gpt, trainer.datamodule.block_size)  # type: ignore
            numbers["speed/model_flops_use"] = used / busy / (peak * trainer.world_size)
        self.latest = numbers
        pl_module.log_now(numbers)

    def _reset(self, trainer: Trainer) -> None:
        self._total += self._tokens.cpu()
        self._tokens.zero_()
        self._steps = 0
        self._evaluated = _evaluation_seconds(trainer)
        self._clock.reset()

    def _lap(self, trainer: Trainer, part: str) -> None:
        evaluated = _evaluation_seconds(trainer)
        self._clock.lap(part, evaluated - self._evaluated)
        self._evaluated = evaluated


def flops_per_token(model: Any, length: int) -> int:
    """Floating-point operations of forward and backward per token, model FLOPs without recomputation.

    6 per parameter of a matrix product (the embedding is a look-up), and 12 * n_layer * n_head * head_size * length
    for the attention scores. Source: Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B.
    """
    config = model.config
    parameters = sum(p.numel() for name, p in model.named_parameters() if p.dim() >= 2 and "wte" not in name)
    return int(6 * parameters + 12 * config.n_layer * config.n_head * config.head_size * length)


def available_flops(device: torch.device, trainer: Trainer) -> int | None:
    """Peak operations per second of the device at the precision of the run; None where it is not known (CPUs)."""
    if device.type != "cuda":
        return None
    precision = str(trainer.precision)
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
    return get_available_flops(device, dtype)


def peak_memory_gib(device: torch.device) -> float:
    """Greatest memory so far: of the allocator on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _evaluation_seconds(trainer: Trainer) -> float:
    watching = [c for c in trainer.callbacks if isinstance(c, Forgetting)]  # type: ignore[attr-defined]
    return sum(callback.evaluation_seconds for callback in watching)
