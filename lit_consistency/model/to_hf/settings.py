"""What stands in ``config.json`` of each family beside the sizes that all have.

Source: the configuration classes of transformers 4.57 to 5.3. Rotary settings have their legacy names, which all of
these versions and vLLM read.
"""

from __future__ import annotations

from typing import Any

from litgpt.config import Config

from lit_consistency.model.to_hf.traits import falcon_layout, sliding_window

ACTIVATIONS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def neox(config: Config) -> dict[str, Any]:
    """GPT-NeoX, with its own names for the rotary settings."""
    return {
        "hidden_act": ACTIVATIONS[config.gelu_approximate],
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rotary_percentage,
        "rotary_emb_base": config.rope_base,
    }


def falcon(config: Config) -> dict[str, Any]:
    """Falcon, of both layouts."""
    new = falcon_layout(config) == "falcon of 40b"
    return {
        "activation": ACTIVATIONS[config.gelu_approximate],
        "ffn_hidden_size": config.intermediate_size,
        "layer_norm_epsilon": config.norm_eps,
        "rope_theta": float(config.rope_base),
        "new_decoder_architecture": new,
        "num_kv_heads": config.n_query_groups,
        "num_ln_in_parallel_attn": 2 if new else None,
        "multi_query": not new,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
    }


def phi(config: Config) -> dict[str, Any]:
    """Phi 1.5 and 2."""
    return {
        **_rotated_heads(config),
        "hidden_act": ACTIVATIONS[config.gelu_approximate],
        "layer_norm_eps": config.norm_eps,
        "partial_rotary_factor": config.rotary_percentage,
        "qk_layernorm": False,
    }


def _rotated_heads(config: Config) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.n_query_groups,
        "rope_theta": float(config.rope_base),
        **_rope_scaling(config),
    }


def _rope_scaling(config: Config) -> dict[str, Any]:
    adjustments = config.rope_adjustments
    if not adjustments and config.rope_condense_ratio == 1:
        return {}
    if not adjustments or adjustments.keys() == {"factor"}:
        factor = adjustments["factor"] if adjustments else config.rope_condense_ratio
        return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    scaling = {name: float(adjustments[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    original = adjustments["original_max_seq_len"]
    return {"rope_scaling": {"rope_type": "llama3", **scaling, "original_max_position_embeddings": original}}


def llama(config: Config) -> dict[str, Any]:
    """Llama, and all that differ from it in traits alone."""
    return {
        **_rotated_heads(config),
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "head_dim": config.head_size,
        "attention_bias": False,
        "mlp_bias": False,
    }


def sliding(config: Config) -> dict[str, Any]:
    """Llama with a sliding window in all layers."""
    slides = sliding_window(config) != "none"
    return {**llama(config), "sliding_window": config.sliding_window_size if slides else None}


def phi3(config: Config) -> dict[str, Any]:
    """Phi 3 and 4."""
    return {
        **sliding(config),
        "partial_rotary_factor": config.rotary_percentage,
        "original_max_position_embeddings": config.block_size,
    }


def stablelm(config: Config) -> dict[str, Any]:
    """StableLM."""
    return {
        **_rotated_heads(config),
        "hidden_act": "silu",
        "layer_norm_eps": config.norm_eps,
        "partial_rotary_factor": config.rotary_percentage,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
        "qk_layernorm": False,
    }


def mixtral(config: Config) -> dict[str, Any]:
    """Mixtral."""
    experts = {"num_local_experts": config.n_expert, "num_experts_per_tok": config.n_expert_per_token}
    return {**sliding(config), **experts}


def qwen3_moe(config: Config) -> dict[str, Any]:
    """Qwen 3 with experts."""
    return {
        **llama(config),
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        # LitGPT takes the softmax over the chosen experts, which is what norm_topk_prob makes of one over all
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def gemma(config: Config) -> dict[str, Any]:
    """Gemma."""
    activation = ACTIVATIONS[config.gelu_approximate]
    # the name of the key has changed between versions
    return {**llama(config), "hidden_act": activation, "hidden_activation": activation}


def gemma_with_windows(config: Config) -> dict[str, Any]:
    """Gemma 2 and 3."""
    slides = (config.sliding_window_indices or [])[: config.n_layer]
    # transformers' default attention, sdpa, leaves the cap out without a word; attn_implementation given in code wins
    eager = {"_attn_implementation": "eager"} if config.attention_logit_softcapping is not None else {}
    local = {} if config.rope_local_base_freq is None else {"rope_local_base_freq": float(config.rope_local_base_freq)}
    return {
        **gemma(config),
        **local,
        **eager,
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window": config.sliding_window_size,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
