"""The interface of a method: which weights of a model are trained, and how they are saved in the base's terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_consistency.distributed.dtensors import KeptShards, full_tensor, local_shard
from lit_consistency.distributed.fsdp import reshard, weights_of
from lit_consistency.model import GPT, DocumentMask
from lit_consistency.model.interpolation import interpolate

HALF = 2
"""Bytes of a number in half precision."""


class Merging(NamedTuple):
    """In which precision a method merges what it trained into the base's weights, and in which they are stored.

    Args:
        computed: dtype of the sum, float32 at least.
        stored_as: dtype of the merged model.
    """

    computed: torch.dtype
    stored_as: torch.dtype

    @classmethod
    def of(cls, model: torch.dtype, base: torch.dtype | None) -> Merging:
        """Stored as the base where that is in half precision and the model is not; else as the model is.

        Args:
            model: dtype of the model's parameters.
            base: widest dtype of the base's weights; None for a model without a base.
        """
        stored_as = base if base is not None and base.itemsize == HALF else model
        return cls(torch.promote_types(model, torch.float32), stored_as)

    @classmethod
    def of_record(cls, record: Mapping[str, str]) -> Merging:
        """What ``as_record`` wrote; ValueError where it names no dtype."""
        dtypes: list[Any] = [getattr(torch, str(record.get(key)), None) for key in cls._fields]
        if not all(isinstance(dtype, torch.dtype) for dtype in dtypes):
            raise ValueError(f"merging = {dict(record)}: expected {' and '.join(cls._fields)}, each a dtype of torch")
        return cls(*dtypes)

    def as_record(self) -> dict[str, str]:
        """Names of both dtypes, for provenance."""
        return {key: str(value).removeprefix("torch.") for key, value in self._asdict().items()}

    def stored(self, merged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights as they are stored: rounded where that is in half precision."""
        if self.stored_as.itemsize != HALF:
            return merged
        return {name: tensor.to(self.stored_as) for name, tensor in merged.items()}


class Method(ABC):
    """A way of training a model.

    A run calls ``build``, then ``load`` or ``init_weights``, then ``prepare`` and ``begin``; ``attach`` when there is
    an optimizer, ``before_step`` in every step, and ``merged_state`` to save.

    A new method is a class in one file of this folder and an overlay in ``configs/methods/``.
    """

    merging: Merging | None = None
    """Of a method that merges, after ``prepare``; None for one whose parameters are the base's."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables and provenance."""

    def build(self, config: Config) -> DocumentMask:
        """The model, its weights not yet meaningful."""
        return GPT(config)

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Copy the weights of a base model into ``model``, cast to its dtype.

        Raises:
            ValueError: names or shapes differ; the message gives them.
        """
        load_checked(model, weights)

    @abstractmethod
    def prepare(self, model: nn.Module) -> None:
        """Set ``requires_grad`` of every parameter."""

    def begin(self, model: nn.Module) -> None:  # noqa: B027
        """Remember the start: ``model`` holds the base's weights, already sharded where it is to be.

        A resumed run calls it before the checkpoint's weights are loaded, so that its start is the base, too.
        """

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: B027
        """Bind to the parameters, now on their device, and to the steps of ``optimizer``."""

    def before_step(self) -> None:  # noqa: B027
        """Change the gradients of a whole optimizer step: summed over micro-batches and ranks, not yet clipped."""

    def log_values(self) -> dict[str, float]:
        """Values of the last step to log, by tag."""
        return {}

    def trained_share(self, model: nn.Module) -> float:
        """Share in [0, 1] of the model's parameters that are trained, after ``prepare``."""
        parameters = list(model.parameters())
        return sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)

    def merged_state(self, model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The trained model's weights under the base model's names; ``model`` is not changed.

        Args:
            model: a model that ``build`` made.
            weights: its state dict, gathered where it is sharded; None takes ``model.state_dict()``.

        Returns:
            Name to tensor; a tensor that needs no merging is the given one, not a copy.
        """
        return dict(model.state_dict() if weights is None else weights)

    @torch.no_grad()
    def changes(self, model: nn.Module, start: KeptShards) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What training has changed so far, in the base model's terms, one weight at a time.

        All at once would put two more copies of the model beside it. Each is gathered from its shards: every rank
        reads all of them.

        Args:
            model: a model that ``build`` made.
            start: the trainable parameters as they were at the start, by their names in ``model``.

        Yields:
            Base name, change and start, full tensors on the weight's device. A weight that is not yielded has not
            changed.
        """
        parameters = dict(model.named_parameters())
        for name in start.names:
            parameter = parameters[name]
            before = start.full_tensor(name).to(parameter.device)
            yield name, full_tensor(parameter.detach()) - before, before

    @contextmanager
    def between(self, model: nn.Module, start: KeptShards, share: float) -> Iterator[None]:
        """Within the context the model is start + share * (end - start); after it, the end, bit for bit.

        Args:
            model: a trained model that ``build`` made.
            start: as for ``changes``.
            share: 0 is the start and 1 the end; beyond them works too.
        """
        reshard(model)  # a forward leaves the outermost parameters whole
        end = {name: parameter for name, parameter in model.named_parameters() if name in start.shards}
        # entry by entry, so that each rank needs its own shards only, as ``export --interpolate`` computes it
        shards = {
            name: interpolate(start.shards[name], local_shard(parameter).cpu(), share)
            for name, parameter in end.items()
        }
        with weights_of(model, shards):
            yield


def load_checked(model: nn.Module, weights: dict[str, Tensor], may_miss: str | None = None) -> None:
    """Load ``weights`` into ``model``, and say in one readable error what does not fit.

    Args:
        model: a LitGPT model.
        weights: name to tensor, in base names; LitGPT's modules rename for LoRA and for legacy files.
        may_miss: parameters whose names contain this may be missing from ``weights``.

    Raises:
        ValueError: a shape differs, or a name is missing or unexpected; ``model`` may then be half loaded.
    """
    own = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items()}
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, found {tuple(tensor.shape)}"
        for name, tensor in ((name.replace(".linear.", "."), tensor) for name, tensor in weights.items())
        if name in own and own[name].shape != tensor.shape
    ]
    if shapes:
        raise ValueError(f"weights do not fit the model: {_listed(shapes)}")
    result = model.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if may_miss is None or may_miss not in name]
    problems = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in result.unexpected_keys]
    if problems:
        raise ValueError(f"weights do not fit the model: {_listed(problems)}")


def _listed(problems: list[str], most: int = 5) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
