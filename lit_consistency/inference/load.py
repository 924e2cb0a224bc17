"""A model folder in LitGPT's format in evaluation mode; no Trainer is involved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.model import GPT, check_checkpoint_dir, check_finite, load_weights, model_config
from lit_consistency.model.tying import is_tied, tie, tied_weights

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loaded(NamedTuple):
    """A model in evaluation mode, its tokenizer, and the device that it is on."""

    model: GPT
    tokenizer: Tokenizer
    device: torch.device


def load_model(folder: Path, device: str = "auto", precision: str = "auto") -> Loaded:
    """Load a model.

    Args:
        folder: weights, ``model_config.yaml`` and tokenizer.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` takes the first GPU, or the CPU where there is none.
        precision: ``float32``, ``bfloat16``, ``float16``; ``auto`` keeps that of the file.

    Raises:
        FileNotFoundError: something is missing in the folder.
        ValueError: the weights do not fit the configuration or are not finite, or the device or precision is unknown.
    """
    check_checkpoint_dir(folder)
    return model_of(folder, load_weights(folder), device, precision)


def model_of(folder: Path, weights: dict[str, Tensor], device: str = "auto", precision: str = "auto") -> Loaded:
    """As ``load_model``, with the configuration and tokenizer of a folder and other weights than its own."""
    target = find_device(device)
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected auto, {', '.join(PRECISIONS)}")
    config = model_config(None, folder, {}, None)
    with torch.device("meta"):  # no time and memory for weights that are replaced at once
        model = GPT(config)
    weights = tied_weights(config, weights, folder)
    check_finite(weights, folder)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"model = {folder}: the weights do not fit model_config.yaml ({error})") from None
    if is_tied(config):
        tie(model)  # what is assigned is a parameter of its own under each name
    model.cos, model.sin = model.rope_cache(device=target)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(target, PRECISIONS.get(precision, parameter.dtype))
    return Loaded(model.eval().requires_grad_(False), Tokenizer(folder), target)


def find_device(name: str) -> torch.device:
    """The device of that name; ValueError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device = {name!r}: expected auto, cpu, or one of {torch.cuda.device_count()} GPUs as cuda:0")
    return device
