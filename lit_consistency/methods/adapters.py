"""Adapters on disk: what a LoRA run has learned, a few megabytes beside the base, and the merging onto that base.

A folder of adapters holds ``adapters.safetensors`` (the factors, under LitGPT's names, in the dtype in which they were
trained), ``adapters.yaml`` (the method that reads them, and the base with the hash of its weights), and what a model
folder holds beside its weights: configuration, tokenizer, prompt style, ``provenance.yaml``. Merged, it is the model
that the run itself writes, bit for bit. Given up: a base that was drawn and never stood on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_consistency.methods.base import Merging
from lit_consistency.methods.dora import adapted_layers, adapted_weight, factors_of
from lit_consistency.methods.lora import LoRA
from lit_consistency.model import load_weights, model_config, write_weights
from lit_consistency.model.tensors import write_tensors
from lit_consistency.records.atomic import new_folder, write_text
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.model_folder import ADAPTERS, check_checkpoint_dir, weights_hash
from lit_consistency.records.provenance import read_provenance

COMMAND = "python -m lit_consistency export"
TENSORS = "adapters.safetensors"
KEYS = ("method", "base", "base_hash", "adapters_hash", "merging")


class Adapters(NamedTuple):
    """Adapters read from a folder.

    Args:
        method: that trained them.
        factors: under LitGPT's names, as ``transformer.h.0.attn.qkv.lora_A``.
        base: the folder onto which they are merged, as the run named it.
        base_hash: SHA-256 of its weights file.
        merging: precision of the sum, and of what is stored.
    """

    method: LoRA
    factors: dict[str, Tensor]
    base: Path
    base_hash: str
    merging: Merging


def is_adapters(folder: Path) -> bool:
    """Whether a folder holds adapters."""
    return (Path(folder) / ADAPTERS).is_file()


def write_adapters(folder: Path, method: LoRA, factors: Mapping[str, Tensor], base: Path, base_hash: str) -> None:
    """Write adapters into a folder.

    Args:
        folder: that exists.
        method: that trained them, after ``prepare``.
        factors: under LitGPT's names, full tensors.
        base: folder of the model onto which they are merged.
        base_hash: SHA-256 of its weights file.
    """
    assert method.merging is not None
    write_tensors(folder / TENSORS, {name: tensor.contiguous() for name, tensor in factors.items()})
    content = {
        "method": method.arguments,
        "base": str(base),
        "base_hash": base_hash,
        "adapters_hash": sha256(folder / TENSORS),
        "merging": method.merging.as_record(),
    }
    write_text(folder / ADAPTERS, yaml.safe_dump(content, sort_keys=False))


def read_adapters(folder: Path) -> Adapters:
    """Read a folder of adapters; nothing in it is executed.

    Raises:
        ValueError: a file is damaged, or not of this kind.
        FileNotFoundError: there is none.
    """
    path, tensors = Path(folder) / ADAPTERS, Path(folder) / TENSORS
    if not tensors.is_file():
        raise FileNotFoundError(f"{folder}: missing {TENSORS}; expected a folder of adapters, as RUN/adapters")
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML ({error})") from None
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: expected a mapping with the keys {', '.join(KEYS)}; missing {', '.join(missing)}")
    if (found := sha256(tensors)) != content["adapters_hash"]:
        raise ValueError(
            f"{tensors}: SHA-256 {found}, expected {content['adapters_hash']} of {ADAPTERS}; it is damaged"
        )
    try:
        method = LoRA(**content["method"])
        factors = load_file(tensors)
    except (TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be read as adapters ({error})") from None
    merging = Merging.of_record(content["merging"])
    return Adapters(method, factors, Path(content["base"]), content["base_hash"], merging)


def base_of(folder: Path, adapters: Adapters, base: Path | None = None) -> Path:
    """The base of adapters, after a look at its hash.

    Args:
        folder: of the adapters, for messages.
        adapters: its content.
        base: where the base is, if not where the run had it.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: it is another model.
    """
    place = base or adapters.base
    elsewhere = f"if it is elsewhere: {COMMAND} --checkpoint_dir {folder} --with BASE --to litgpt --out_dir OUT"
    try:
        check_checkpoint_dir(place, needs_tokenizer=False, option="with" if base else "base")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: its base is missing ({error}); expected the model with weights of SHA-256 "
            f"{adapters.base_hash}; {elsewhere}"
        ) from None
    if (found := weights_hash(place)) != adapters.base_hash:
        raise ValueError(
            f"{folder}: was trained on weights of SHA-256 {adapters.base_hash}, {place} has {found}: "
            f"expected the base; {elsewhere}"
        )
    return place


def merge_adapters(folder: Path, out_dir: Path, base: Path | None = None, overwrite: bool = False) -> None:
    """Write the model that adapters make of their base: what the run itself writes as its model.

    Args:
        folder: of the adapters.
        out_dir: the new folder, in LitGPT's format.
        base: the folder of the base, if not where the run had it.
        overwrite: replace a model that stands at ``out_dir``.

    Raises:
        FileNotFoundError: the base is missing.
        ValueError: a file is damaged, the base is another one, or ``out_dir`` may not be replaced.
    """
    weights = merged_weights(folder, base)
    with new_folder(out_dir, overwrite) as unfinished:
        beside = [path for path in Path(folder).iterdir() if path.is_file() and path.name not in (ADAPTERS, TENSORS)]
        for path in beside:
            if not path.name.startswith("."):
                shutil.copyfile(path, unfinished / path.name)
        write_weights(unfinished, weights)
        if (provenance := read_provenance(folder)) is not None:
            provenance.write(unfinished)  # which vouches for these weights, and not for the adapters


@torch.no_grad()
def merged_weights(folder: Path, base: Path | None = None) -> dict[str, Tensor]:
    """The weights that adapters make of their base, under its names; see ``merge_adapters``."""
    adapters = read_adapters(folder)
    base = base_of(folder, adapters, base)
    model, of_base = layers_of(folder, adapters), load_weights(base)
    expected = {name.replace(".linear.", "."): tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in {**of_base, **adapters.factors}.items()}
    if differing := sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name)):
        shapes = [
            f"{name}: expected {tuple(expected.get(name, ())) or 'none'}, found {tuple(found.get(name, ())) or 'none'}"
            for name in differing[:5]
        ]
        raise ValueError(f"{folder}: its adapters, its method and {base} do not fit: {'; '.join(shapes)}")
    layers, stored_as = dict(adapted_layers(model)), adapters.merging.stored_as
    # one at a time, in the dtype of the training, which computed with the weights as it had rounded them
    trained = next(iter(adapters.factors.values())).dtype
    merged = {}
    for name, weight in of_base.items():
        layer = layers.get(path := name.removesuffix(".weight"))
        weight = weight.to(trained)
        if layer is not None and path != name:
            weight = adapted_weight(layer, weight, factors_of(path, adapters.factors)).to(trained)
        merged[name] = weight.to(stored_as)
    return merged


def layers_of(folder: Path, adapters: Adapters) -> nn.Module:
    """The model with its adapted layers, without memory for tensors: their settings are what is asked for."""
    with torch.device("meta"):
        return adapters.method.build(model_config(None, Path(folder), {}, None))
