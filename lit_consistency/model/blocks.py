"""How blocks run in training: compiled, or with what they computed on the way computed again in the backward.

A block becomes an instance of a class that runs the same ``forward`` in another way; parameters, names and hooks stay.
Only training runs so: whatever measures a model runs its blocks plainly, so that a number of ``fit`` is that of
``evaluate``. Recomputed blocks stand inside compiled ones, and both inside what FSDP2 shards.

Which program a compiled row runs is a function of its shape alone, not of the rows before it, so that a resumed run
goes on as the one that was stopped: rows as long as ``block_size`` have a program of their own, and all shorter ones
share one whose length is open. Given up: mixtures of experts and sliding windows, whose loops in Python would be
unrolled or break the program apart.

Source of recomputation: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174; of one part
of a block alone, Korthikanti et al. 2022, arXiv 2205.05198.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from litgpt.config import Config
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from torch.utils.checkpoint import checkpoint

from lit_consistency.model.gpt import DocumentMask

Recomputed = Literal["blocks", "attention", "mlp"]

BACKEND = "inductor"
WORTH_COMPILING = 1 << 14
"""Blocks in sequence (layers times micro-batches of the run) from which compiling pays: they take a GPU half a minute
if they are as small as can be, and compiling them as long."""
PROGRAMS = 64
"""Most programs of one kind of block: of shapes, masks, and of what is frozen (torch's own limit is 8)."""


class Blocks:
    """How the blocks of a model run in training.

    Args:
        config: of the model.
        compile: whether they are compiled; None compiles on CUDA where it is possible and the run is long.
        activation_checkpointing: what is computed again in the backward: ``blocks``, their ``attention`` or ``mlp``
            alone, every n-th block for a number n; None for nothing.

    Raises:
        ValueError: a value that is not allowed, blocks that cannot be compiled, or no compiler.
    """

    def __init__(
        self, config: Config, compile: bool | None = None, activation_checkpointing: Recomputed | int | None = None
    ) -> None:
        what = activation_checkpointing
        is_every_nth = isinstance(what, int) and not isinstance(what, bool) and what >= 1
        if not (what is None or is_every_nth or what in get_args(Recomputed)):
            raise ValueError(
                f"activation_checkpointing = {what}: expected blocks, attention, mlp, or n >= 1 for every n-th block"
            )
        if isinstance(what, int) and what > config.n_layer:
            raise ValueError(f"activation_checkpointing = {what}: expected at most n_layer = {config.n_layer}")
        if compile and (why := unfit(config)):
            raise ValueError(f"compile = true with {config.name}: {why}; expected false or null")
        if compile and (lack := missing_compiler("cuda" if torch.cuda.is_available() else "cpu")):
            raise ValueError(f"compile = true: {lack}; expected false or null")
        self.compile = compile
        self.recomputed = what
        self.is_compiled = False

    def prepare(self, gpt: DocumentMask, device: str, block_size: int, micro_batches: int) -> None:
        """Make the blocks of a model run so, in place, before it is sharded.

        Args:
            gpt: the model, of which is chosen what is trained.
            device: ``cpu`` or ``cuda``, where it is trained.
            block_size: the length of most rows, or of the longest.
            micro_batches: of the run, on one device.
        """
        for i, block in enumerate(gpt.transformer.h):
            part = self._recomputed_part(i, block)
            if part is not None:
                kind: Any = type(part)
                part.__class__ = recomputed_class(kind)
        self.is_compiled = self._compiles(gpt.config, device, micro_batches)
        if self.is_compiled:
            programs: dict[Any, Program] = {}
            for block in gpt.transformer.h:
                kind = type(block)
                block.program = programs.setdefault(kind, Program(kind, block_size, required=bool(self.compile)))
                block.__class__ = compiled_class(kind)
            rank_zero_info(f"model: blocks are compiled for {device}; the first step takes longer")

    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"compiled": self.is_compiled, "activation_checkpointing": self.recomputed}

    def _recomputed_part(self, i: int, block: nn.Module) -> nn.Module | None:
        if self.recomputed in ("attention", "mlp"):
            return cast(nn.Module, block.attn if self.recomputed == "attention" else block.mlp)
        every = 1 if self.recomputed == "blocks" else self.recomputed
        return block if isinstance(every, int) and i % every == 0 else None

    def _compiles(self, config: Config, device: str, micro_batches: int) -> bool:
        if self.compile is not None:
            return self.compile
        if device != "cuda" or config.n_layer * micro_batches < WORTH_COMPILING or unfit(config):
            return False
        if lack := missing_compiler(device):
            rank_zero_info(f"model: blocks are not compiled and run slower: {lack}")
        return not lack


def unfit(config: Config) -> str | None:
    """Why blocks of a configuration cannot be compiled as a whole; None where they can."""
    if config.n_expert:
        return f"n_expert = {config.n_expert}, whose tokens are sorted in Python"
    if config.sliding_window_size is not None and any(config.sliding_window_indices or []):
        return f"sliding_window_size = {config.sliding_window_size}, whose mask is made in Python row by row"
    return None


def missing_compiler(device: str) -> str | None:
    """What compiling for a device needs and is not here; None where nothing is missing."""
    if device == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "no Triton that runs on this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler (g++ or clang++)"
    return None


def in_training(module: nn.Module) -> bool:
    """Whether a call of the module is one that is trained on, not one that measures."""
    return module.training and torch.is_grad_enabled()


@cache
def recomputed_class(kind: Any) -> Any:
    """A module's class with a ``forward`` that keeps its inputs alone, from which the backward computes the rest."""

    class OfInputs(kind):
        def forward(self, *inputs: Any) -> Any:
            if not in_training(self):
                return kind.forward(self, *inputs)
            # not reentrant: with adapters the first block's input takes no gradient
            return checkpoint(partial(kind.forward, self), *inputs, use_reentrant=False)

    OfInputs.__name__ = f"Recomputed{kind.__name__}"
    return OfInputs


@cache
def compiled_class(kind: Any) -> Any:
    """A block's class with a ``forward`` that runs its ``program``."""

    class Compiled(kind):
        program: Program

        def forward(self, *inputs: Any) -> Any:
            return self.program(self, *inputs) if in_training(self) else kind.forward(self, *inputs)

    Compiled.__name__ = f"Compiled{kind.__name__}"
    return Compiled


def largest_prime(most: int) -> int:
    """The largest prime number that is no more than ``most``; 2 at least."""
    return next((n for n in range(most, 2, -1) if all(n % divisor for divisor in range(2, math.isqrt(n) + 1))), 2)


class Program:
    """The compiled ``forward`` that all blocks of a class share.

    Args:
        kind: class of the blocks.
        block_size: length of the rows that have a program of their own.
        required: whether a compiler that fails is an error; else the blocks run plainly, and a warning says so.
    """

    def __init__(self, kind: Any, block_size: int, required: bool) -> None:
        self.kind = kind
        self.block_size = block_size
        # of a length that a width of the model equals, the compiler would conclude that it always does
        self.usual_length = largest_prime(block_size)
        self.required = required
        self.failed = False
        self.opens = True
        self.compiled = torch.compile(kind.forward, dynamic=False, backend=BACKEND)

    def __call__(
        self, block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, *cache: Any
    ) -> Tensor:
        """The block's output of (B, T, n_embd), rotary tables (1 or B, T, R), and a mask (B, 1, T, T) or none.

        What goes with a key-value cache, LitGPT's forward gives as None where there is no cache.
        """
        is_shorter = x.size(1) != self.block_size
        if self.failed or (is_shorter and not self.opens) or any(entry is not None for entry in cache):
            return self.kind.forward(block, x, cos, sin, mask, *cache)
        if is_shorter:
            self._open_length(x, cos, sin, mask)
        try:
            with torch._dynamo.config.patch(recompile_limit=PROGRAMS):
                return self.compiled(block, x, cos, sin, mask)
        except ConstraintViolationError:
            # of LoRA's convolution the compiler for CPUs makes a program of one length, whatever it is told
            rank_zero_warn(
                f"rows shorter than block_size = {self.block_size} are not compiled and run slower, as the compiler "
                "cannot leave their length open; `packing: true` makes rows of one length"
            )
            self.opens = False
            return self(block, x, cos, sin, mask)
        except torch._dynamo.exc.TorchDynamoException as error:
            # whatever a compiler fails with, the step can do without it; nothing has moved yet
            if self.required:
                raise RuntimeError("model.compile = true: the blocks do not compile; use null or false") from error
            rank_zero_warn(f"the blocks do not compile and run slower; model.compile false is silent: {error!r:.500}")
            self.failed = True
            return self(block, x, cos, sin, mask)

    def _open_length(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> None:
        """Leave the length of a row open, in a program that is the same whichever row comes first."""
        lengths = [(x, 1), (cos, 1), (sin, 1), *([(mask, 2), (mask, 3)] if mask is not None else [])]
        for tensor, dim in lengths:
            torch._dynamo.mark_dynamic(tensor, dim, hint_override=self.usual_length)
