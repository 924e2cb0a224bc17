"""A trained model as a folder that transformers loads.

Weights are renamed by LitGPT's own converters; ``config.json`` is written from LitGPT's ``Config``, whose
architecture decides the family, not its name. Given up: families that neither ``LlamaForCausalLM`` nor
``GPTNeoXForCausalLM`` computes exactly are refused. Embedding and head are written apart, as LitGPT trains them;
``vocab_size`` is the padded one. transformers itself is not needed.

Source: the fields of ``LlamaConfig`` and ``GPTNeoXConfig`` of transformers 4.57 to 5.3; the legacy names of the
rotary settings, which all of these versions read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.scripts.convert_lit_checkpoint import copy_weights_gpt_neox, copy_weights_llama
from litgpt.tokenizer import Tokenizer
from safetensors.torch import save_file
from torch import Tensor

from lit_consistency.model.checkpoint import load_weights
from lit_consistency.model.configuration import model_config
from lit_consistency.model.tokenizer_files import copy_tokenizer
from lit_consistency.records.atomic import new_folder, write_json
from lit_consistency.records.model_folder import VOCABULARIES, check_checkpoint_dir
from lit_consistency.records.provenance import Provenance, read_provenance

SHARED: dict[str, Any] = {
    "n_expert": 0,
    "norm_qk": False,
    "norm_1": True,
    "norm_2": True,
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "shared_attention_norm": False,
    "scale_embeddings": False,
    "lm_head_bias": False,
    "rope_interleave": False,
    "sliding_window_size": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_indices": None,
    "latent_attention": None,
}
"""What both families need to be so, by the key of LitGPT's Config."""
NEOX = {"mlp_class_name": "GptNeoxMLP", "norm_class_name": "LayerNorm", "bias": True, "rope_adjustments": None}
LLAMA = {
    "mlp_class_name": "LLaMAMLP",
    "norm_class_name": "RMSNorm",
    "bias": False,
    "attn_bias": False,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
}
HIDDEN_ACT = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def export_hf(checkpoint_dir: Path, out_dir: Path, overwrite: bool = False) -> None:
    """Write ``config.json``, ``model.safetensors``, tokenizer, generation settings and provenance of a LitGPT folder.

    Args:
        checkpoint_dir: the model in LitGPT's format.
        out_dir: the new folder.
        overwrite: replace a model that stands at ``out_dir``.

    Raises:
        ValueError: transformers has no exact counterpart that we know, or ``out_dir`` may not be replaced.
        FileNotFoundError: the model is incomplete.
    """
    check_checkpoint_dir(checkpoint_dir, needs_tokenizer=False)
    config = model_config(None, checkpoint_dir, {}, None)
    hf_config(config)  # refuses before gigabytes are read
    save_hf(out_dir, load_weights(checkpoint_dir), config, checkpoint_dir, read_provenance(checkpoint_dir), overwrite)


def save_hf(
    out_dir: Path,
    lit_weights: dict[str, Tensor],
    config: Config,
    tokenizer_dir: Path,
    provenance: Provenance | None,
    overwrite: bool = False,
) -> None:
    """Write a model that transformers loads.

    Args:
        out_dir: the new folder.
        lit_weights: under LitGPT's names.
        config: the model's configuration.
        tokenizer_dir: folder whose tokenizer is copied, if it has one.
        provenance: where the model comes from, if that is known.
        overwrite: replace a model that stands at ``out_dir``.

    Raises:
        ValueError: as for ``export_hf``.
    """
    settings = hf_config(config)
    weights = dict(hf_weights(config, lit_weights))
    has_tokenizer = any((Path(tokenizer_dir) / name).is_file() for name in VOCABULARIES)
    tokenizer = Tokenizer(tokenizer_dir) if has_tokenizer else None
    ends = {"bos_token_id": getattr(tokenizer, "bos_id", None), "eos_token_id": getattr(tokenizer, "eos_id", None)}
    with new_folder(out_dir, overwrite) as folder:
        write_json(folder / "generation_config.json", ends)
        if has_tokenizer:
            copy_tokenizer(tokenizer_dir, folder)
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        write_json(folder / "config.json", {**settings, **ends, "dtype": dtype})
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if provenance is not None:
            provenance.write(folder)


def hf_config(config: Config) -> dict[str, Any]:
    """The ``config.json`` of the same architecture in transformers.

    Raises:
        ValueError: naming, for each supported family, what stands against it.
    """
    against_neox = _differences(config, {**SHARED, **NEOX})
    if config.n_query_groups != config.n_head or config.head_size * config.n_head != config.n_embd:
        against_neox.append("grouped queries or head_size != n_embd / n_head")
    if config.rope_condense_ratio != 1:
        against_neox.append(f"rope_condense_ratio = {config.rope_condense_ratio}")
    against_llama = _differences(config, {**SHARED, **LLAMA})
    if "Gemma" in config.name:
        against_llama.append("norm of Gemma")
    for against in (against_neox, against_llama):
        if config.attention_scores_scalar not in (None, config.head_size):
            against.append(f"attention_scores_scalar = {config.attention_scores_scalar}")
    if not against_neox:
        return {**_common(config), **_neox(config)}
    if not against_llama:
        return {**_common(config), **_llama(config)}
    raise ValueError(
        f"to = hf: {config.name} is of neither supported family: not llama ({', '.join(against_llama)}),"
        f" not gpt_neox ({', '.join(against_neox)})"
    )


def _differences(config: Config, needed: dict[str, Any]) -> list[str]:
    return [f"{key} = {getattr(config, key)}" for key, value in needed.items() if getattr(config, key) != value]


def _common(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": False,
    }


def _neox(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_act": HIDDEN_ACT[config.gelu_approximate],
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rotary_percentage,
        "rotary_emb_base": config.rope_base,
    }


def _llama(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": float(config.rope_base),
        "rope_scaling": _rope_scaling(config),
    }


def _rope_scaling(config: Config) -> dict[str, Any] | None:
    adjustments = config.rope_adjustments
    if config.rope_condense_ratio != 1 and adjustments is None:
        return {"rope_type": "linear", "factor": float(config.rope_condense_ratio)}
    if adjustments is None:
        return None
    if config.rope_condense_ratio == 1 and adjustments.keys() == {"factor"}:
        return {"rope_type": "linear", "factor": float(adjustments["factor"])}
    if config.rope_condense_ratio == 1 and "low_freq_factor" in adjustments and "beta_fast" not in adjustments:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        original = adjustments["original_max_seq_len"]
        scaling = {name: float(adjustments[name]) for name in names}
        return {"rope_type": "llama3", **scaling, "original_max_position_embeddings": original}
    raise ValueError(
        f"rope_adjustments = {adjustments}: expected llama3 or linear scaling, the others are not exported"
    )


def hf_weights(config: Config, lit_weights: Mapping[str, Tensor], tied: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight with its name in transformers, each with its own memory, as safetensors wants it.

    Args:
        config: of the model.
        lit_weights: under LitGPT's names, rows as LitGPT orders them.
        tied: leave out the output matrix.
    """
    weights: dict[str, Tensor] = {}
    copy_weights = copy_weights_llama if config.mlp_class_name == "LLaMAMLP" else copy_weights_gpt_neox
    copy_weights(
        config, weights, {name: t for name, t in lit_weights.items() if not (tied and name == "lm_head.weight")}
    )
    for name, tensor in weights.items():
        yield name, tensor.clone(memory_format=torch.contiguous_format)
