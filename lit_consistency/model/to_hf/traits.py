"""What distinguishes architectures of LitGPT's ``Config``, as values that a family of transformers has or has not.

Where LitGPT itself goes by the name (Gemma's norms, OLMo's norms without weights, the fused matrices of Phi-3 and
Phi-4, the layouts of Falcon), the name decides here too.
"""

from __future__ import annotations

from typing import Any

from litgpt.config import Config

LLAMA: dict[str, Any] = {
    "mlp": "LLaMAMLP",
    "norm": "RMSNorm",
    "rope": ("default", "linear", "llama3"),
    "rotary_percentage": 1.0,
    "bias": False,
    "attn_bias": False,
    "lm_head_bias": False,
    "parallel_residual": False,
    "shared_attention_norm": False,
    "norms": "before",
    "norm_qk": None,
    "sliding_window": "none",
    "scale_embeddings": False,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_interleave": False,
    "latent_attention": None,
    "experts": "none",
    "fused": False,
    "layout": None,
}
"""The traits of Llama; a family names those in which it differs. A tuple allows several values."""


def traits_of(config: Config) -> dict[str, Any]:
    """The value of every trait."""
    norms = (config.norm_1, config.norm_2, config.post_attention_norm, config.post_mlp_norm)
    places = {
        (True, True, False, False): "before",
        (True, True, True, True): "around",
        (False, False, True, True): "after",
    }
    scaled = config.attention_scores_scalar not in (None, config.head_size)
    return {
        **{key: getattr(config, key) for key in LLAMA if hasattr(config, key)},
        "mlp": config.mlp_class_name,
        "norm": _norm(config),
        "norms": places.get(norms, "elsewhere"),
        "norm_qk": config.norm_qk_type if config.norm_qk else None,
        "norm_eps": config.norm_eps,
        "sliding_window": sliding_window(config),
        "rope": _rope(config),
        "attention_scores_scalar": config.attention_scores_scalar if scaled else None,
        "attn_bias": config.attn_bias and not config.bias,
        "experts": _experts(config),
        "head_size": "n_embd / n_head" if config.head_size * config.n_head == config.n_embd else config.head_size,
        "queries": _queries(config),
        "fused": config.name.lower().startswith(("phi-3", "phi-4")),
        "layout": falcon_layout(config),
    }


def _queries(config: Config) -> str:
    if config.n_query_groups == 1:
        return "one key for all"
    return "one key each" if config.n_query_groups == config.n_head else "grouped"


def _norm(config: Config) -> str:
    # Config.norm_class of litgpt 0.5.13 goes by the name
    if config.norm_class_name == "RMSNorm":
        return "RMSNorm of Gemma" if "Gemma" in config.name else "RMSNorm"
    return "LayerNorm without weights" if "OLMo" in config.name else "LayerNorm"


def sliding_window(config: Config) -> str:
    """In which layers attention sees a window alone."""
    indices = config.sliding_window_indices if config.sliding_window_size is not None else None
    if not indices or not any(indices[: config.n_layer]):
        return "none"
    return "all layers" if all(indices[: config.n_layer]) else "some layers"


def _rope(config: Config) -> str:
    adjustments, condensed = config.rope_adjustments, config.rope_condense_ratio != 1
    if config.rope_local_base_freq is not None:
        local = config.rope_indices == config.sliding_window_indices and not condensed
        return "local where the window slides" if local and (adjustments or {}).keys() <= {"factor"} else "local"
    if not adjustments:
        return "linear" if condensed else "default"
    if condensed:
        return f"adjusted and condensed by {config.rope_condense_ratio}"
    if adjustments.keys() == {"factor"}:
        return "linear"
    llama3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
    return "llama3" if adjustments.keys() == llama3 else f"adjusted by {sorted(adjustments)}"


def _experts(config: Config) -> str:
    if not config.n_expert:
        return "none"
    if config.n_expert_groups or config.n_shared_expert or config.first_k_dense_replace:
        return "grouped or shared"
    if config.routed_scaling_factor != 1.0:
        return f"scaled by {config.routed_scaling_factor}"
    return "of their own size" if config.moe_intermediate_size else "as large as the MLP"


def falcon_layout(config: Config) -> str | None:
    """Which of the layouts that LitGPT knows; None for what is no Falcon."""
    # copy_weights_falcon of litgpt 0.5.13 goes by the name
    if "falcon" not in config.name:
        return None
    if "7b" in config.name:
        return "falcon of 7b"
    return "falcon of 40b" if "40b" in config.name or "180B" in config.name else "falcon of unknown size"
