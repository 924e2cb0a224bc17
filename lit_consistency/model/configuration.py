"""From a name and a few overrides to LitGPT's ``Config``.

LitGPT merges overrides into a named configuration as they are, and checks them by bare assertions. Here every
override is checked, and what depends on an overridden size follows it unless it is overridden too:

- ``head_size`` becomes n_embd / n_head (Qwen3 and Gemma fix it), and ``attention_scores_scalar``, where set, that
  head size;
- ``n_query_groups`` keeps the number of heads per group, as far as it divides n_head;
- ``intermediate_size`` and ``moe_intermediate_size`` keep their ratio to n_embd, rounded to a multiple of 8;
- ``padded_vocab_size`` is computed from ``vocab_size``, see ``padding_multiple``.

Rotary settings stay as they are: the frequencies of Llama 3 depend on the length it was pretrained with, not on
block_size.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from litgpt.config import Config, configs, name_to_config

from lit_consistency.model.ranges import check_config, check_sizes, check_type
from lit_consistency.model.tying import OVERRIDE as TIE
from lit_consistency.model.tying import with_tying

OVERRIDES = [entry.name for entry in fields(Config) if entry.name not in ("name", "hf_config")]
FREE_WITH_CHECKPOINT = (
    "block_size",
    "norm_eps",
    "attention_scores_scalar",
    "sliding_window_size",
    "sliding_window_indices",
    "attention_logit_softcapping",
    "final_logit_softcapping",
    "rope_base",
    "rope_condense_ratio",
    "rope_adjustments",
    "rope_local_base_freq",
    "rope_indices",
)
"""Keys that may be overridden for trained weights, because they change no shape."""


def model_config(
    name: str | None,
    checkpoint_dir: Path | None,
    overrides: dict[str, Any],
    vocab_size: int | None,
) -> Config:
    """The configuration of a model from scratch, or of one in a folder.

    Args:
        name: LitGPT's name of the architecture, as ``pythia-14m``, or its name on the hub.
        checkpoint_dir: a model folder with ``model_config.yaml``; exactly one of the two is given.
        overrides: fields of LitGPT's ``Config`` that differ from the named configuration; and ``tie_embeddings``,
            whether embedding and head are one weight (see tying.py).
        vocab_size: tokens of the tokenizer: sets the size of a model from scratch that does not override it, and is
            checked against every other model.

    Raises:
        ValueError: an unknown name or key, a value out of range, or a model with fewer tokens than the tokenizer.
        FileNotFoundError: ``checkpoint_dir`` holds no ``model_config.yaml``.
    """
    if (name is None) == (checkpoint_dir is None):
        raise ValueError(f"name = {name}, checkpoint_dir = {checkpoint_dir}: expected exactly one of the two")
    overrides = dict(overrides)
    tied = overrides.pop(TIE, None)
    if tied not in (None, True, False):
        raise ValueError(f"overrides.{TIE} = {tied!r}: expected bool")
    for key, value in overrides.items():
        if key not in OVERRIDES:
            raise ValueError(f"overrides.{key} = {value!r}: unknown key{_close(key, [*OVERRIDES, TIE])}")
        check_type(key, value)
    settings = _named(name) if name is not None else _stored(Path(str(checkpoint_dir)))
    if tied is not None:
        settings = with_tying(settings, tied)
    before = dict(settings)
    if checkpoint_dir is not None:
        _check_shapes_kept(settings, overrides, checkpoint_dir)
        settings.update(overrides)
    else:
        if vocab_size is not None and not {"vocab_size", "padded_vocab_size"} & overrides.keys():
            overrides = {**overrides, "vocab_size": vocab_size}
        settings.update(overrides)
        check_sizes(settings)
        settings.update(_dependents(before, settings, overrides))
    check_config(settings)
    try:
        config = Config(**settings)
    except AssertionError as error:
        raise ValueError(f"overrides = {overrides}: expected a combination that LitGPT's Config takes") from error
    if vocab_size is not None and config.padded_vocab_size < vocab_size:
        raise ValueError(
            f"vocab_size = {config.padded_vocab_size} of the model: expected at least the tokenizer's {vocab_size}"
        )
    return config


def padding_multiple(vocab_size: int) -> int:
    """The multiple to which the rows of embedding and head are padded: 64 above 1024 tokens, else 8.

    64 is what nanoGPT pads to (50257 to 50304, model.py), 8 the least that tensor cores want of a 16-bit matrix
    (NVIDIA, Matrix Multiplication Background User's Guide, section 3). LitGPT's 512 would leave a vocabulary of 300
    with 41% of rows that are never trained.
    """
    return 64 if vocab_size > 1024 else 8


def _named(name: str) -> dict[str, Any]:
    """A named configuration, copied: LitGPT hands out its own nested dictionaries."""
    hub = {f"{entry['hf_config']['org']}/{entry['hf_config']['name']}": entry for entry in configs}
    by_name = {**{entry["hf_config"]["name"]: entry for entry in configs}, **hub, **name_to_config}
    if name not in by_name:
        raise ValueError(f"name = {name!r}: LitGPT has no such configuration{_close(name, by_name)}")
    return deepcopy(by_name[name])


def _stored(checkpoint_dir: Path) -> dict[str, Any]:
    path = checkpoint_dir / "model_config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint_dir = {checkpoint_dir}: missing model_config.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {error}") from error
    known = {entry.name for entry in fields(Config)}
    unknown = sorted(settings.keys() - known) if isinstance(settings, dict) else [settings]
    if unknown:
        raise ValueError(f"{path}: expected the fields of LitGPT's Config, found {unknown}")
    for key in settings.keys() & set(OVERRIDES):
        check_type(key, settings[key], f"{path}: ")
    return settings


def _check_shapes_kept(settings: dict[str, Any], overrides: dict[str, Any], checkpoint_dir: Path) -> None:
    for key, value in overrides.items():
        if key not in FREE_WITH_CHECKPOINT and settings.get(key) != value:
            raise ValueError(
                f"overrides.{key} = {value!r}: {checkpoint_dir} was trained with {settings.get(key)!r};"
                f" with checkpoint_dir allowed are {', '.join((*FREE_WITH_CHECKPOINT, TIE))}"
            )


def _dependents(before: dict[str, Any], settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Values that follow from overridden sizes and are not overridden themselves.

    Args:
        before: the named configuration.
        settings: the same with the overrides.
        overrides: the overrides alone.
    """
    default = Config(**before)
    n_embd, n_head = settings.get("n_embd", Config.n_embd), settings.get("n_head", Config.n_head)
    follow: dict[str, Any] = {}
    if {"n_embd", "n_head"} & overrides.keys() and "head_size" not in overrides:
        follow["head_size"] = None
    if (n_head != default.n_head) and "n_query_groups" not in overrides:
        follow["n_query_groups"] = _query_groups(n_head, n_head * default.n_query_groups / default.n_head)
    if {"n_embd", "n_head", "head_size"} & overrides.keys() and default.attention_scores_scalar is not None:
        follow["attention_scores_scalar"] = overrides.get("head_size", n_embd // n_head)
    for key in ("intermediate_size", "moe_intermediate_size"):
        # a configuration without its own size takes LitGPT's 4 n_embd
        if before.get(key) is not None and n_embd != default.n_embd:
            follow[key] = max(8, 8 * round(before[key] * n_embd / default.n_embd / 8))
    if "vocab_size" in overrides:
        follow["padded_vocab_size"] = None
        follow["padding_multiple"] = padding_multiple(overrides["vocab_size"])
    return {key: value for key, value in follow.items() if key not in overrides}


def _query_groups(n_head: int, wanted: float) -> int:
    """The greatest divisor of ``n_head`` that is not above ``wanted``, at least 1."""
    return max(groups for groups in range(1, n_head + 1) if n_head % groups == 0 and groups <= max(1.0, wanted))


def _close(key: str, allowed: Iterable[str]) -> str:
    """Up to five close matches as the end of an error message."""
    by_lower = {entry.lower(): entry for entry in allowed}
    matches = difflib.get_close_matches(key.lower(), by_lower, n=5, cutoff=0.5)
    return f"; did you mean {', '.join(by_lower[match] for match in matches)}?" if matches else ""
