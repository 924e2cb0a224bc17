"""Embedding and output head as one weight (tied): kept in the configuration, in the model and in its files.

LitGPT's ``Config`` has no field for it, and its commands refuse a ``model_config.yaml`` with keys that they do not
know. It stands where they look at nothing but a name: ``hf_config.tie_word_embeddings``, as transformers calls it.
``overrides.tie_embeddings`` sets it, LitGPT's name of the option of its pretraining.

A tied model has one parameter under two names, so every list of parameters counts it once, and its state dict has both
names, as LitGPT's own files do. A file of weights holds it once: torch writes what two tensors share a single time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from litgpt.config import Config
from torch import Tensor, nn

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
OVERRIDE = "tie_embeddings"
STORED = "tie_word_embeddings"


def is_tied(config: Config) -> bool:
    """Whether the configuration says that embedding and head are one weight."""
    return bool((config.hf_config or {}).get(STORED))


def with_tying(settings: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Arguments of ``Config`` that say whether embedding and head are one weight."""
    return {**settings, "hf_config": {**(settings.get("hf_config") or {}), STORED: tied}}


def tie(model: nn.Module) -> None:
    """Make the embedding's weight that of the head; LoRA's head holds its own in ``.linear``."""
    gpt = cast(Any, model)
    gpt.transformer.wte.weight = getattr(gpt.lm_head, "linear", gpt.lm_head).weight


def tied_weights(config: Config, weights: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """The weights of a tied model with one tensor under both names; those of any other model as they are.

    Args:
        config: of the model.
        weights: under LitGPT's names; one of the two may be missing.
        source: where they come from, for the message.

    Raises:
        ValueError: the model is tied, and the two are not equal.
    """
    present = [name for name in (EMBEDDING, HEAD) if name in weights]
    if not is_tied(config) or not present:
        return weights
    if len(present) == 2 and not same(weights[EMBEDDING], weights[HEAD]):
        raise ValueError(
            f"{source}: {HEAD} and {EMBEDDING} differ, and the configuration says that they are one weight "
            f"(hf_config.{STORED}, or overrides.{OVERRIDE}): expected equal ones, or overrides.{OVERRIDE} = false"
        )
    return {**weights, HEAD: weights[present[0]], EMBEDDING: weights[present[0]]}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or hold the same numbers in the same type."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.device == b.device) or (
        bool(torch.equal(a[:1], b[:1])) and bool(torch.equal(a, b))  # most differ in the first row
    )


def untying(config: Config, weights: Mapping[str, Tensor]) -> str | None:
    """What to say where one weight of the base becomes two that are trained apart; None where nothing does.

    Args:
        config: of the model that is trained.
        weights: of its base.
    """
    if is_tied(config) or not {EMBEDDING, HEAD} <= weights.keys() or not same(weights[EMBEDDING], weights[HEAD]):
        return None
    n_apart = sum(tensor.numel() for tensor in weights.values())
    n_tied = n_apart - weights[HEAD].numel()
    return (
        f"embedding and head of the base are one weight (tied) and are trained apart: {n_tied:,} parameters become "
        f"{n_apart:,}; overrides.{OVERRIDE} = true keeps them one"
    )
