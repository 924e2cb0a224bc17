"""Adapters as a folder that PEFT loads: LoRA, rsLoRA and DoRA, exactly.

PEFT adapts the linear layers of transformers' model, which splits or fuses other matrices than LitGPT's, and orders the
rows of fused ones otherwise. LitGPT's own converters know how: they only move rows. So the factors B, with a column for
each rank of each adapted block of a layer, go through them as weights do, and with them a marker of which rows belong
to which block. A module of transformers then takes, of its rows, the columns whose markers it has. Where it fuses
several blocks (GPT-NeoX's query, key and value) its rank is the sum of theirs, and ``alpha_pattern`` keeps the scale. A
row of DoRA that is not adapted has the size that it has in the base.

Given up: mixtures of experts, of which transformers keeps all experts in one tensor. PEFT itself is not needed.

Source: PEFT 0.21, ``LoraConfig``, and ``get_peft_model_state_dict`` for the names of tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear, LoRAQKVLinear
from torch import Tensor, nn

from lit_consistency.methods.adapters import Adapters, base_of, layers_of, read_adapters
from lit_consistency.methods.dora import MAGNITUDE, factors_of, qkv_rows, row_norms
from lit_consistency.model import copy_tokenizer, load_weights
from lit_consistency.model.tensors import write_tensors
from lit_consistency.model.to_hf.weights import hf_weights
from lit_consistency.records.atomic import new_folder, write_json
from lit_consistency.records.provenance import read_provenance

PREFIX = "base_model.model."
"""Of every tensor, before the name of a module in transformers' model."""
EMBEDDING, HEAD = "transformer.wte", "lm_head"


class Block(NamedTuple):
    """An adapted block of a matrix: all of it, or query, key or value of the fused one."""

    first: int  # its first row in the matrix
    A: Tensor  # (r, in)
    B: Tensor  # (rows, r)
    magnitude: Tensor | None  # (rows,), of DoRA only


class Target(NamedTuple):
    """What adapts a module of transformers' model, as PEFT has it."""

    A: Tensor  # (rank, in)
    B: Tensor  # (out, rank)
    magnitude: Tensor | None  # (out,), of DoRA only


def export_peft(
    adapters_dir: Path,
    out_dir: Path,
    base: Path | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> str | None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` of a run's adapters, tokenizer and provenance.

    Args:
        adapters_dir: as a LoRA run has written it.
        out_dir: the new folder.
        base: the base in LitGPT's format, if not where the run had it; DoRA asks for sizes of its rows.
        base_model: what ``adapter_config.json`` names as the base, a folder of transformers' or a name on the hub; None
            takes the name from which the base was downloaded, if it has not been trained since.
        overwrite: replace a model that stands at ``out_dir``.

    Returns:
        What ``adapter_config.json`` names as the base; None where nothing is known.

    Raises:
        ValueError: transformers has no counterpart of the architecture that we know, or it has experts; or as for
            ``read_adapters`` and ``base_of``.
        FileNotFoundError: the adapters are incomplete, or their base is missing.
    """
    adapters = read_adapters(adapters_dir)
    base = base_of(adapters_dir, adapters, base)
    model = layers_of(adapters_dir, adapters)
    config = cast(Config, model.config)
    if config.n_expert:
        raise ValueError(f"to = peft: n_expert = {config.n_expert}: expected a model without experts; use --to hf")
    base_model = base_model or _downloaded_from(base, config)
    targets, others = hf_targets(model, adapters, load_weights(base))
    tensors: dict[str, Tensor] = {}
    for name, target in targets.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": target.A, f"{PREFIX}{name}.lora_B.weight": target.B}
        if target.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = target.magnitude
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with new_folder(out_dir, overwrite) as folder:
        copy_tokenizer(adapters_dir, folder)
        write_json(folder / "adapter_config.json", _adapter_config(adapters, targets, others, base_model))
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        if (provenance := read_provenance(adapters_dir)) is not None:
            provenance.write(folder)
    return base_model


def hf_targets(
    model: nn.Module, adapters: Adapters, base: Mapping[str, Tensor]
) -> tuple[dict[str, Target], frozenset[str]]:
    """What adapts the modules of transformers' model, and the names of its matrices that are not adapted.

    Args:
        model: of ``layers_of``.
        adapters: their factors.
        base: weights of the base, of which DoRA takes the sizes of rows that are not adapted.

    Raises:
        ValueError: transformers has no such model, or its modules are not LitGPT's matrices with rows moved.
    """
    config, r = cast(Config, model.config), adapters.method.options["lora_r"]
    dtype = next(iter(adapters.factors.values())).dtype
    targets: dict[str, Target] = {}
    others: set[str] = set()
    for layers in _by_transformer_block(model):
        blocks = [(path, block) for path, layer in layers.items() for block in _blocks(layer, path, adapters)]
        factors, markers, sizes = (
            {path: torch.zeros(layer.linear.out_features, n, dtype=dtype) for path, layer in layers.items()}
            for n in (r * len(blocks), len(blocks), 1)
        )
        if adapters.method.dora:
            sizes = {path: row_norms(base[f"{path}.weight"].to(dtype))[:, None] for path in layers}
        for i, (path, block) in enumerate(blocks):
            rows = slice(block.first, block.first + len(block.B))
            factors[path][rows, i * r : (i + 1) * r] = block.B
            markers[path][rows, i] = 1
            if block.magnitude is not None:
                sizes[path][rows, 0] = block.magnitude
        B, marked, magnitude = (_renamed(config, tensors) for tensors in (factors, markers, sizes))
        if sum(int(marker.sum()) for marker in marked.values()) != sum(len(block.B) for _, block in blocks):
            raise ValueError(f"to = peft: transformers' model of {config.name} lacks rows of {', '.join(layers)}")
        for name, marker in marked.items():
            own = marker.any(0).nonzero().flatten().tolist()
            if not own:
                others.add(name)
                continue
            columns = [column for i in own for column in range(i * r, (i + 1) * r)]
            A = torch.cat([blocks[i][1].A for i in own])
            targets[name] = Target(A, B[name][:, columns], magnitude[name][:, 0] if adapters.method.dora else None)
    return targets, frozenset(others)


def _by_transformer_block(model: nn.Module) -> list[dict[str, LoRALinear]]:
    """Path -> matrix, adapted or not, of every transformer block, and of the output head."""
    groups: dict[str, dict[str, LoRALinear]] = {}
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            of = re.match(r"transformer\.h\.\d+|lm_head", path)
            groups.setdefault(of[0] if of else path, {})[path] = module
    return list(groups.values())


def _blocks(layer: LoRALinear, path: str, adapters: Adapters) -> list[Block]:
    """The adapted blocks of a matrix; none where it has no adapters."""
    factors = factors_of(path, adapters.factors)
    if not factors:
        return []
    A, B, magnitude = factors["lora_A"], factors["lora_B"], factors.get(MAGNITUDE)
    if not isinstance(layer, LoRAQKVLinear):
        return [Block(0, A, B, magnitude)]
    sizes = qkv_rows(layer)
    firsts = [sum(sizes[:i]) for i, enabled in enumerate(layer.enable_lora) if enabled]
    magnitudes = [None] * len(firsts) if magnitude is None else magnitude.split(layer.qkv_shapes)
    return list(map(Block, firsts, A.split(layer.r), B.split(layer.qkv_shapes), magnitudes))


def _renamed(config: Config, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of LitGPT's layers, of any width, as modules of transformers' model have them."""
    # the converters look for both, and what they make of a single row of zeros is adapted by nothing
    first = next(iter(matrices.values()))
    beside = first.new_zeros(1, first.size(1))
    weights = {f"{path}.weight": matrix for path, matrix in {EMBEDDING: beside, HEAD: beside, **matrices}.items()}
    return {name.removesuffix(".weight"): tensor for name, tensor in hf_weights(config, weights, tied=False)}


def _adapter_config(
    adapters: Adapters, targets: Mapping[str, Target], others: frozenset[str], base_model: str | None
) -> dict[str, Any]:
    """PEFT's ``LoraConfig``, with a pattern for the modules that fuse several blocks."""
    options = adapters.method.arguments
    r, alpha = options["r"], options["alpha"]
    ranks = {_last(name): len(target.A) for name, target in targets.items() if len(target.A) != r}
    # alpha / r, or alpha / sqrt(r), stays what it was
    alphas = {name: alpha * (math.sqrt(rank / r) if options["rslora"] else rank / r) for name, rank in ranks.items()}
    short = {_last(name) for name in targets}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": options["dropout"],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": options["rslora"],
        "use_dora": options["dora"],
        "target_modules": sorted(targets if short & {_last(name) for name in others} else short),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _downloaded_from(base: Path, config: Config) -> str | None:
    """The base's name on the hub, where it is as it was downloaded; None where it was trained or nothing is known."""
    provenance = read_provenance(base)
    if provenance is not None:
        return (getattr(provenance, "source", None) or {}).get("repo")
    names = config.hf_config or {}
    return f"{names['org']}/{names['name']}" if {"org", "name"} <= names.keys() else None
