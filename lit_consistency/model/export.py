"""A trained model as a folder that transformers and vLLM load.

What stands in it: ``config.json`` and the weights in shards (model/to_hf/), the tokenizer with its chat template,
``generation_config.json`` with the tokens that end a turn, the model card, the provenance, and texts of the licence.
Weights are read from the memory-mapped file and written block by block: memory holds one shard of them.

Embedding and output matrix that are equal bit for bit are tied in ``config.json`` and written once. Both written and
tied, transformers would load them as two; and of Pythia, Falcon and Phi written once, LitGPT's own conversion misses
the output matrix. ``vocab_size`` is the padded one, the rows that the matrices have. Given up: nothing is
rounded, so a float32 model is exported in float32. transformers itself is not needed.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from lit_consistency.model.checkpoint import load_weights
from lit_consistency.model.configuration import model_config
from lit_consistency.model.tensors import write_tensors
from lit_consistency.model.to_hf import embedding_is_head, hf_config, hf_weights
from lit_consistency.model.tokenizer_files import copy_tokenizer, read_generation_config, read_tokenizer_config
from lit_consistency.records.atomic import new_folder, write_json, write_text
from lit_consistency.records.model_card import model_card
from lit_consistency.records.model_folder import (
    MAX_SHARD_SIZE,
    VOCABULARIES,
    check_checkpoint_dir,
    licence_texts,
)
from lit_consistency.records.provenance import Provenance, read_provenance
from lit_consistency.records.run_folder import RunFolder

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def export_hf(
    checkpoint_dir: Path,
    out_dir: Path,
    overwrite: bool = False,
    turn_ends: Sequence[int] = (),
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write a LitGPT folder as one of transformers; see ``save_hf``.

    Args:
        checkpoint_dir: the model in LitGPT's format.
        out_dir: the new folder.
        overwrite: replace a model that stands at ``out_dir``.
        turn_ends: tokens that end a turn beside the end of a text, as the chat template has them.
        max_shard_size: of a file of weights.

    Raises:
        ValueError: transformers has no exact counterpart that we know, a weight is not finite, ``max_shard_size`` is no
            size, or ``out_dir`` may not be replaced.
        FileNotFoundError: the model is incomplete.
    """
    check_checkpoint_dir(checkpoint_dir, needs_tokenizer=False)
    config = model_config(None, checkpoint_dir, {}, None)
    hf_config(config)  # refuses before gigabytes are read
    weights, provenance = load_weights(checkpoint_dir), read_provenance(checkpoint_dir)
    save_hf(out_dir, weights, config, checkpoint_dir, provenance, overwrite, turn_ends, max_shard_size)


def save_hf(
    out_dir: Path,
    lit_weights: Mapping[str, Tensor],
    config: Config,
    model_dir: Path,
    provenance: Provenance | None,
    overwrite: bool = False,
    turn_ends: Sequence[int] = (),
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write a model that transformers loads.

    Args:
        out_dir: the new folder.
        lit_weights: under LitGPT's names.
        config: the model's configuration.
        model_dir: folder whose tokenizer is copied, if it has one; in the folder of a run, whose record the card tells.
        provenance: where the model comes from, if that is known.
        overwrite: replace a model that stands at ``out_dir``.
        turn_ends: tokens that end a turn beside the end of a text.
        max_shard_size: of a file of weights, as 5GB.

    Raises:
        ValueError: as for ``export_hf``.
    """
    max_bytes, tied = shard_bytes(max_shard_size), embedding_is_head(lit_weights)
    settings = hf_config(config, tied)
    if "Gemma" in config.name and not tied:
        # GemmaForCausalLM of vLLM asserts tie_word_embeddings (commit 02e37cd), and those of Gemma 2 and 3
        warnings.warn(
            "embedding and output matrix differ: transformers loads the model, vLLM takes no Gemma whose two differ",
            stacklevel=2,
        )
    has_tokenizer = any((Path(model_dir) / name).is_file() for name in VOCABULARIES)
    ids = _token_ids(Path(model_dir)) if has_tokenizer else dict.fromkeys(TOKEN_IDS)
    run = RunFolder.of_model(Path(model_dir))
    with new_folder(out_dir, overwrite) as folder:
        if has_tokenizer:
            copy_tokenizer(model_dir, folder)
        write_json(folder / "generation_config.json", _generation_config(Path(model_dir), ids, turn_ends))
        _write_shards(folder, hf_weights(config, lit_weights, tied), max_bytes)
        dtype = str(next(iter(lit_weights.values())).dtype).removeprefix("torch.")
        write_json(folder / "config.json", {**settings, **ids, "dtype": dtype})
        record = run.read_record() if run else {}
        write_text(folder / "README.md", model_card(Path(out_dir).name, config.name, provenance, record))
        if provenance is not None:
            provenance.write(folder)
        for file in licence_files(Path(model_dir), provenance):
            shutil.copyfile(file, folder / file.name)


def licence_files(model_dir: Path, provenance: Provenance | None) -> list[Path]:
    """Texts of the licence in the model's folder; else in the nearest of its bases that stands there and has some."""
    bases = [stage.get("base") for stage in reversed(provenance.stages if provenance else [])]
    for folder in [model_dir, *(Path(base) for base in bases if base)]:
        if files := licence_texts(folder):
            return files
    return []


# -------------------- weights


def shard_bytes(max_shard_size: str) -> int:
    """Bytes of a size as 5GB or 300MB, by powers of 1000 as transformers counts.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?B)", str(max_shard_size).strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"max_shard_size = {max_shard_size!r}: expected a size in B, KB, MB or GB, as 5GB")
    return size


def _write_shards(folder: Path, weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> None:
    """Write ``model.safetensors``, or numbered files with an index where one would be larger than ``max_bytes``.

    A weight that is larger than that has a file of its own.
    """
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in weights:
        if shard and size + tensor.nbytes > max_bytes:
            shards.append(_write_shard(folder, len(shards), shard))
            shard, size = {}, 0
        # a copy: views of one matrix would be written with all of it, and a mapped file be read while it is replaced
        shard[name] = tensor.clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write_shard(folder, len(shards), shard))
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _shard_name(i)).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(folder: Path, i: int, shard: dict[str, Tensor]) -> list[str]:
    write_tensors(folder / _shard_name(i), shard, {"format": "pt"})
    return list(shard)


def _shard_name(i: int) -> str:
    """Of shard ``i`` while it is not known how many there will be."""
    return f"shard-{i}"


# -------------------- tokens

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""All are written, None too: transformers' own defaults name tokens that another vocabulary does not have."""


def _token_ids(tokenizer_dir: Path) -> dict[str, int | None]:
    tokenizer = Tokenizer(tokenizer_dir)
    pad: Any = read_tokenizer_config(tokenizer_dir).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    find = tokenizer.processor.token_to_id if tokenizer.backend == "huggingface" else tokenizer.processor.piece_to_id
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    ids = (bos, eos[0] if isinstance(eos, list) else eos, None if pad is None else find(pad))
    return dict(zip(TOKEN_IDS, ids, strict=True))


def _generation_config(model_dir: Path, ids: Mapping[str, int | None], turn_ends: Sequence[int]) -> dict[str, Any]:
    """What the model's folder says, with every token that ends an answer: of a text, of a turn, and those it names."""
    stated = read_generation_config(model_dir)
    named = stated.get("eos_token_id")
    named = named if isinstance(named, list) else [named]
    ends = [end for end in dict.fromkeys([ids["eos_token_id"], *named, *turn_ends]) if end is not None]
    return {**ids, **stated, "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
