"""Checks of LitGPT's ``Config`` with errors that name key, value and what is allowed.

LitGPT itself checks by bare assertions, or fails later in a matrix product.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from litgpt.config import Config

AT_LEAST_ONE = (
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "vocab_size",
    "padding_multiple",
    "padded_vocab_size",
    "head_size",
    "n_query_groups",
    "intermediate_size",
    "moe_intermediate_size",
    "sliding_window_size",
    "rope_base",
    "rope_condense_ratio",
)


def check_type(key: str, value: Any, where: str = "overrides.") -> None:
    """Refuse a ``value`` that has not the type that LitGPT's ``Config`` declares for ``key``.

    Raises:
        ValueError: it has another.
    """
    hint = get_type_hints(Config)[key]
    if not _fits(value, hint):
        allowed = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        raise ValueError(f"{where}{key} = {value!r}: expected {allowed}")


def check_sizes(settings: dict[str, Any]) -> None:
    """Refuse a size below 1.

    Raises:
        ValueError: naming the key and its value.
    """
    for key in AT_LEAST_ONE:
        if settings.get(key) is not None and settings[key] < 1:
            raise ValueError(f"overrides.{key} = {settings[key]}: expected at least 1")


def check_config(settings: dict[str, Any]) -> None:
    """Refuse sizes of a configuration that are impossible, alone or together.

    Args:
        settings: arguments of ``Config``; a missing one has LitGPT's default.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    check_sizes(settings)
    n_embd, n_head = settings.get("n_embd", Config.n_embd), settings.get("n_head", Config.n_head)
    head_size, groups = settings.get("head_size"), settings.get("n_query_groups")
    if head_size is None and n_embd % n_head:
        raise ValueError(f"overrides.n_head = {n_head}: expected a divisor of n_embd = {n_embd}, or head_size as well")
    _check_experts(settings)
    if settings.get("latent_attention") is not None:
        return
    _check_rotary(head_size or n_embd // n_head, settings.get("rotary_percentage", Config.rotary_percentage))
    if groups is not None and n_head % groups:
        raise ValueError(f"overrides.n_query_groups = {groups}: expected a divisor of n_head = {n_head}")


def _check_rotary(head_size: int, rotary_percentage: float) -> None:
    if not 0 <= rotary_percentage <= 1:
        raise ValueError(f"overrides.rotary_percentage = {rotary_percentage}: expected 0 <= rotary_percentage <= 1")
    rotated = int(rotary_percentage * head_size)
    if rotated % 2 or (rotated == 0 and rotary_percentage > 0):
        raise ValueError(
            f"overrides.head_size = {head_size}: expected an even number of rotated dimensions, got {rotated}"
            f" with rotary_percentage = {rotary_percentage}; change n_embd, n_head or rotary_percentage"
        )


def _check_experts(settings: dict[str, Any]) -> None:
    n_expert, chosen = settings.get("n_expert", 0), settings.get("n_expert_per_token", 0)
    if settings.get("mlp_class_name") == "LLaMAMoE" and not 1 <= chosen <= n_expert:
        raise ValueError(
            f"overrides.n_expert_per_token = {chosen}: expected 1 <= n_expert_per_token <= n_expert = {n_expert}"
        )


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, *get_args(hint)) for entry in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
