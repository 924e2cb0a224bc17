"""How fast the run goes and where the time goes.

Tokens per second (all, and supervised), the time of a step split into data, forward and backward, optimizer,
evaluation, and saving, the share of the machine's peak where that is known, and peak memory. The numbers are those of
rank 0 as if all ranks were alike; only the tokens of the whole run are summed over the ranks. Waiting for the batch
after a checkpoint counts as saving, since Lightning calls nothing between the two.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import psutil
import torch
import torch.distributed as dist
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_consistency.callbacks.clock import Clock
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.module import LitLanguageModel, language_model

UNPRODUCTIVE = ("evaluation", "saving")  # phases in which nothing is trained, left out of tokens per second

# Peaks by the exact name of the device, dense, operations per second: the SXM board calls itself "NVIDIA H200", which
# Lightning 2.6 does not recognize, and its own numbers for the H200 are those with sparsity.
# NVIDIA H200 data sheet (https://www.nvidia.com/en-us/data-center/h200/): 1,979 TFLOPS in 16 bits with sparsity, twice
# the dense rate, and 67 in float32. tf32: the dense 494.7 of the same chip, GH100, in NVIDIA's H100 white paper.
PEAKS: dict[str, dict[torch.dtype | str, float]] = {
    "NVIDIA H200": {
        torch.bfloat16: 989.5e12,
        torch.float16: 989.5e12,
        "tfloat32": 494.7e12,
        torch.float32: 67e12,
    },
}


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
        self.total_tokens_all: int | None = None
        self._clock = Clock(torch.device("cpu"))
        # two counts each, of all tokens and of supervised ones
        self._tokens = torch.zeros(2, dtype=torch.int64)  # since the last numbers, on this rank
        self._total = torch.zeros(2, dtype=torch.int64)  # from start or resume to the last numbers, on this rank
        self._before = torch.zeros(2, dtype=torch.int64)  # up to the resume, on all ranks
        self._peak: int | None = None
        self._saved = False
        self._evaluated = 0.0
        self._steps = 0
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock after the first evaluation."""
        self.total_tokens_all = None
        self._saved = False
        self._peak = available_flops(pl_module.device, trainer)
        self._tokens = self._tokens.to(pl_module.device)
        self._clock = Clock(pl_module.device)
        self._reset(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The time since the last batch, or since the validation after it, was that of data or of saving."""
        self._between(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The gradients are computed: forward and backward end."""
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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's validation begins: the time since the last batch was that of data or of saving."""
        self._between(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's validation is an evaluation too."""
        self._lap(trainer, "evaluation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written."""
        self.begin_saving()

    def begin_saving(self) -> None:
        """Something is about to be written; the time until the next mark counts as saving."""
        self._saved = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the tokens of all ranks, which all of them do here."""
        self.total_tokens_all = int(self._all_ranks()[0])

    def total_tokens(self, world_size: int = 1) -> int:
        """Tokens trained on since the run began, padding excluded.

        Args:
            world_size: number of ranks. Until training has ended the other ranks' tokens are not known, and they are
                taken to have as many as this one.
        """
        if self.total_tokens_all is not None:
            return self.total_tokens_all
        return int(self._before[0] + (self._total[0] + self._tokens[0].cpu()) * world_size)

    def state_dict(self) -> dict[str, Any]:
        """The tokens of the run so far, of all ranks; a collective call, as saving a checkpoint is."""
        return {"total": self._all_ranks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; every rank gets the sum over all ranks, which is therefore not added to its own tokens."""
        self._before = state_dict["total"]
        self._total.zero_()
        self._tokens.zero_()

    def _all_ranks(self) -> Tensor:
        """Tokens since the run began, all and supervised, on the CPU."""
        here = self._total.to(self._tokens.device) + self._tokens  # NCCL wants them on the device
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(here)
        return self._before + here.cpu()

    def _log(self, trainer: Trainer, pl_module: LitLanguageModel) -> None:
        all_tokens, supervised = (int(n) * trainer.world_size for n in self._tokens)
        phases = {"saving": 0.0} | self._clock.seconds()
        busy = sum(seconds for phase, seconds in phases.items() if phase not in UNPRODUCTIVE)
        numbers = {
            "speed/tokens_per_second": all_tokens / busy,
            "speed/supervised_tokens_per_second": supervised / busy,
            **{f"speed/{phase}_ms": 1000 * seconds / self._steps for phase, seconds in phases.items()},
            "speed/peak_memory_gib": peak_memory_gib(pl_module.device),
        }
        if self._peak:
            used = all_tokens * flops_per_token(pl_module.gpt, trainer.datamodule.block_size)  # type: ignore
            numbers["speed/model_flops_use"] = used / busy / (self._peak * trainer.world_size)
        self.latest = numbers
        pl_module.log_now(numbers)

    def _reset(self, trainer: Trainer) -> None:
        self._total += self._tokens.cpu()
        self._tokens.zero_()
        self._steps = 0
        self._evaluated = _evaluation_seconds(trainer)
        self._clock.reset()

    def _between(self, trainer: Trainer) -> None:
        self._lap(trainer, "saving" if self._saved else "data")
        self._saved = False

    def _lap(self, trainer: Trainer, phase: str) -> None:
        evaluated = _evaluation_seconds(trainer)
        self._clock.lap(phase, evaluated - self._evaluated)
        self._evaluated = evaluated


def flops_per_token(model: Any, length: int) -> int:
    """Floating-point operations of forward and backward per token, model FLOPs without recomputation.

    6 per parameter of a matrix product (the embedding is a look-up), and 12 * n_layer * n_head * head_size * length
    for the attention scores. Source: Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B. A frozen matrix, as in
    LoRA's base, costs 4: 2 forward and 2 for the gradient of its input, but no gradient of its own.

    The attention term takes every row for one document of ``length`` tokens. Packed documents are shorter and attend
    to themselves only, so for packed rows the term, and with it the model FLOPs use, is an upper bound.
    """
    config = model.config
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "wte" not in name]
    products = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
    return int(products + 12 * config.n_layer * config.n_head * config.head_size * length)


def available_flops(device: torch.device, trainer: Trainer) -> int | None:
    """Peak operations per second of the device at the precision of the run, dense, from ``PEAKS`` or Lightning.

    None where it is not known, as for CPUs.
    """
    if device.type != "cuda":
        return None
    precision = str(trainer.precision)
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
    own = PEAKS.get(torch.cuda.get_device_name(device))
    if own is not None:
        tf32 = dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return int(own["tfloat32" if tf32 else dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown chip is no fault of the run: the number is left out
        return get_available_flops(device, dtype)


def peak_memory_gib(device: torch.device) -> float:
    """Greatest memory so far: of the allocator on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _evaluation_seconds(trainer: Trainer) -> float:
    watching = [c for c in trainer.callbacks if isinstance(c, Forgetting)]  # type: ignore[attr-defined]
    return sum(callback.evaluation_seconds for callback in watching)
