"""Models on disk, in LitGPT's folder format: weights, ``model_config.yaml``, tokenizer, and the provenance beside them.

A file that came from elsewhere is data, never code: weights are read with ``weights_only=True`` (LitGPT's
``LLM.load`` is not used, it reads without). Folders are written whole or not at all (records/atomic.py); what needs no
tensor to be read, as the hash of the weights, stands in records/model_folder.py.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.prompts import PromptStyle, save_prompt_style
from litgpt.utils import save_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_consistency.model.tensors import is_finite
from lit_consistency.model.to_hf import embedding_is_head, hf_config
from lit_consistency.model.tokenizer_files import copy_tokenizer
from lit_consistency.model.tying import EMBEDDING, HEAD
from lit_consistency.records.atomic import new_folder, write_json
from lit_consistency.records.model_folder import WEIGHTS, weights_path
from lit_consistency.records.provenance import Provenance, verify_weights


def load_weights(checkpoint_dir: Path) -> dict[str, Tensor]:
    """Read the weights of a model folder into memory-mapped CPU tensors; nothing in the file is executed.

    Returns:
        Parameter name to tensor, in the names and dtypes of the file.

    Raises:
        FileNotFoundError: there is no weights file.
        ValueError: the file is damaged, asks to run code, or holds something other than named tensors.
    """
    path = weights_path(checkpoint_dir)
    verify_weights(path)
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, expected tensors only (weights_only); the file is damaged or asks to run code"
        ) from error
    except (RuntimeError, OSError, EOFError, SafetensorError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, expected a whole file of weights ({error})") from error
    if isinstance(weights, dict) and isinstance(weights.get("model"), dict):
        weights = weights["model"]
    if not isinstance(weights, dict) or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: expected a mapping of names to tensors, or one under the key `model`")
    return dict(weights)


def check_finite(weights: Mapping[str, Tensor], source: Path) -> None:
    """ValueError that names the first weight with a value that is not finite: of a training that diverged."""
    for name, tensor in weights.items():
        if not is_finite(tensor):
            kind = "NaN" if tensor.isnan().any() else "infinity"
            raise ValueError(
                f"{weights_path(source)}: {name} holds {kind}; expected finite weights: the training that made them "
                "has diverged, or the file is damaged"
            )


def save_model(
    out_dir: Path,
    state_dict: dict[str, Tensor],
    config: Config,
    tokenizer_dir: Path | None,
    provenance: Provenance,
    prompt_style: str | PromptStyle | None = None,
    overwrite: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a model that ``litgpt generate`` and the next run can load.

    Args:
        out_dir: the new folder.
        state_dict: weights under LitGPT's base names, as ``Method.merged_state`` gives them.
        config: the model's configuration; what a LoRA configuration adds is left out.
        tokenizer_dir: folder whose tokenizer is copied; None for a model without one.
        provenance: where the model comes from.
        prompt_style: LitGPT's prompt style or its name; None takes over the one in ``tokenizer_dir``, if any.
        overwrite: replace a model that stands at ``out_dir``.
        also: writes more files into the folder, before it stands at ``out_dir``.

    Raises:
        ValueError: ``out_dir`` may not be replaced.
        FileNotFoundError: ``tokenizer_dir`` holds no tokenizer.
    """
    with new_folder(out_dir, overwrite) as folder:
        write_weights(folder, state_dict)
        write_model_files(folder, config, tokenizer_dir, prompt_style, tied=embedding_is_head(state_dict))
        if also is not None:
            also(folder)
        provenance.write(folder)


def write_model_files(
    folder: Path,
    config: Config,
    tokenizer_dir: Path | None,
    prompt_style: str | PromptStyle | None = None,
    tied: bool = False,
) -> None:
    """Write what a model folder holds beside its weights and its provenance; see ``save_model`` for the arguments.

    Args:
        folder: where to.
        config: as there.
        tokenizer_dir: as there.
        prompt_style: as there.
        tied: whether the embedding is known to be the output matrix, bit for bit.
    """
    save_config(_base_config(config), folder)
    _write_hf_config(folder, config, tied)
    if tokenizer_dir is not None:
        copy_tokenizer(tokenizer_dir, folder)
        if prompt_style is None and (Path(tokenizer_dir) / "prompt_style.yaml").is_file():
            shutil.copyfile(Path(tokenizer_dir) / "prompt_style.yaml", folder / "prompt_style.yaml")
    if prompt_style is not None:
        save_prompt_style(prompt_style, folder)


def _write_hf_config(folder: Path, config: Config, tied: bool) -> None:
    """Write ``config.json``, without which ``litgpt evaluate`` finds no model in what it converts.

    LitGPT drops the output matrix of Gemma and Phi-4. Where that is not the embedding, the file is left out: an error
    there, and not the scores of another model. Nor is there a file for what transformers does not know.
    """
    dropped = "Gemma" in config.name or config.name.startswith("Phi-4")
    if dropped and not tied:
        return
    with contextlib.suppress(ValueError):
        # each family's own defaults name tokens that this vocabulary may not have
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        write_json(folder / "config.json", {**hf_config(config, tied=dropped), **tokens})


def write_weights(folder: Path, state_dict: dict[str, Tensor]) -> None:
    """Write ``lit_model.pth``: the same tensors give the same bytes, and embedding and head that are equal are one."""
    weights = {name: compact(tensor) for name, tensor in state_dict.items()}
    if embedding_is_head(weights):
        weights[HEAD] = weights[EMBEDDING]  # gathered from shards, or interpolated, each under its own name
    torch.save(weights, folder / WEIGHTS[0])


def _load_pickled(path: Path) -> Any:
    # files from before torch 1.6 are no zip archives and cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def compact(tensor: Tensor) -> Tensor:
    """The tensor on the CPU; a copy where it is a view, as torch.save would write all of what it views."""
    tensor = tensor.detach().cpu()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _base_config(config: Config) -> Config:
    """The configuration without what subclasses add: ``litgpt generate`` refuses keys it does not know."""
    return Config(**{entry.name: getattr(config, entry.name) for entry in fields(Config)})
