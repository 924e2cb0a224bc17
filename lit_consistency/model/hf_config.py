"""Which model of transformers computes what a LitGPT configuration computes, and its ``config.json``.

The architecture decides, and where LitGPT itself goes by the name (Gemma's norms, OLMo's norms without weights, the
fused matrices of Phi-3 and Phi-4, the three layouts of Falcon), the name too. A configuration belongs to a family if
it has every one of the family's traits; else it is refused, with what stands against the nearest family.

Given up: what no family of transformers computes, as YaRN with LitGPT's scaling of the scores, and the experts in
groups of DeepSeek. transformers itself is not needed.

Source: the configuration classes of transformers 4.57 to 5.3; rotary settings have their legacy names, which all of
these versions and vLLM read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from litgpt.config import Config

ANY = object()
"""In place of a trait's value: the family computes them all."""
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
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
PLAIN_HEADS = {"head_size": "n_embd / n_head"}
NEOX = {"mlp": "GptNeoxMLP", "norm": "LayerNorm", "parallel_residual": True, "rope": "default", **PLAIN_HEADS}
GEMMA = {"mlp": "GemmaMLP", "norm": "RMSNorm of Gemma", "scale_embeddings": True, "rope": "default"}


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models in transformers.

    Args:
        architecture: the class in transformers.
        model_type: its name in ``config.json``.
        traits: what a configuration of LitGPT needs to have, where it differs from ``LLAMA``.
        settings: what stands in ``config.json`` beside the sizes.
        head: name of the output matrix in transformers.
        ties_on_import: whether LitGPT, reading a model without an output matrix, takes the embedding for it. Phi-4 is
            known by its name, see ``can_tie``.
    """

    architecture: str
    model_type: str
    traits: dict[str, Any] = field(default_factory=dict)
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}
    head: str = "lm_head.weight"
    ties_on_import: bool = True

    def against(self, config: Config) -> list[str]:
        """The traits of ``config`` that the family does not have, as ``key = value``."""
        traits, wanted = _traits(config), {**LLAMA, **self.traits}
        wanted = {key: value for key, value in wanted.items() if value is not ANY}
        allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()}
        return [f"{key} = {traits[key]}" for key, values in allowed.items() if traits[key] not in values]


def can_tie(config: Config) -> bool:
    """Whether LitGPT can read the model back if its output matrix, being the embedding, is written once."""
    # litgpt/scripts/convert_hf_checkpoint.py, copy_weights_phi, asks for the name
    family = next((family for family in FAMILIES if not family.against(config)), None)
    return family is not None and (family.ties_on_import or config.name.startswith("Phi-4"))


def family_of(config: Config) -> Family:
    """The family that computes what ``config`` describes.

    Raises:
        ValueError: there is none; the message names the nearest ones and what stands against them.
    """
    against = {family: family.against(config) for family in FAMILIES}
    fewest = min(map(len, against.values()))
    nearest = {family: differences for family, differences in against.items() if len(differences) == fewest}
    if fewest == 0:
        return next(iter(nearest))
    stand = "; ".join(
        f"against {family.model_type}: {', '.join(differences)}" for family, differences in nearest.items()
    )
    raise ValueError(f"to = hf: {config.name} is computed by no family of transformers that is known here; {stand}")


def hf_config(config: Config, tied: bool = False) -> dict[str, Any]:
    """The ``config.json`` of the same architecture in transformers, without the ids of tokens and the dtype.

    Args:
        config: of the model.
        tied: whether the embedding is the output matrix too.

    Raises:
        ValueError: no family computes it.
    """
    family = family_of(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": tied,
        **family.settings(config),
    }


# -------------------- traits of a configuration


def _traits(config: Config) -> dict[str, Any]:
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
        "sliding_window": _sliding_window(config),
        "rope": _rope(config),
        "attention_scores_scalar": config.attention_scores_scalar if scaled else None,
        "attn_bias": config.attn_bias and not config.bias,
        "experts": _experts(config),
        "head_size": "n_embd / n_head" if config.head_size * config.n_head == config.n_embd else config.head_size,
        "queries": "one key each" if config.n_query_groups == config.n_head else "grouped",
        "fused": config.name.lower().startswith(("phi-3", "phi-4")),
        "layout": _falcon_layout(config),
    }


def _norm(config: Config) -> str:
    # litgpt/config.py, Config.norm_class, goes by the name
    if config.norm_class_name == "RMSNorm":
        return "RMSNorm of Gemma" if "Gemma" in config.name else "RMSNorm"
    return "LayerNorm without weights" if "OLMo" in config.name else "LayerNorm"


def _sliding_window(config: Config) -> str:
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


def _falcon_layout(config: Config) -> str | None:
    # litgpt/scripts/convert_lit_checkpoint.py, copy_weights_falcon, goes by the name
    if "falcon" not in config.name:
        return None
    if "7b" in config.name:
        return "falcon of 7b"
    return "falcon of 40b" if "40b" in config.name or "180B" in config.name else "falcon of unknown size"


# -------------------- settings by family


def _neox(config: Config) -> dict[str, Any]:
    return {
        "hidden_act": ACTIVATIONS[config.gelu_approximate],
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rotary_percentage,
        "rotary_emb_base": config.rope_base,
    }


def _falcon(config: Config) -> dict[str, Any]:
    new = _falcon_layout(config) == "falcon of 40b"
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


def _phi(config: Config) -> dict[str, Any]:
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


def _llama(config: Config) -> dict[str, Any]:
    return {
        **_rotated_heads(config),
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "head_dim": config.head_size,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _sliding(config: Config) -> dict[str, Any]:
    slides = _sliding_window(config) != "none"
    return {**_llama(config), "sliding_window": config.sliding_window_size if slides else None}


def _phi3(config: Config) -> dict[str, Any]:
    return {
        **_sliding(config),
        "partial_rotary_factor": config.rotary_percentage,
        "original_max_position_embeddings": config.block_size,
    }


def _stablelm(config: Config) -> dict[str, Any]:
    return {
        **_rotated_heads(config),
        "hidden_act": "silu",
        "layer_norm_eps": config.norm_eps,
        "partial_rotary_factor": config.rotary_percentage,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
        "qk_layernorm": False,
    }


def _mixtral(config: Config) -> dict[str, Any]:
    experts = {"num_local_experts": config.n_expert, "num_experts_per_tok": config.n_expert_per_token}
    return {**_sliding(config), **experts}


def _qwen3_moe(config: Config) -> dict[str, Any]:
    return {
        **_llama(config),
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        # LitGPT takes the softmax over the chosen experts, which is what norm_topk_prob makes of one over all
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma(config: Config) -> dict[str, Any]:
    activation = ACTIVATIONS[config.gelu_approximate]
    # the name of the key has changed between versions
    return {**_llama(config), "hidden_act": activation, "hidden_activation": activation}


def _gemma_with_windows(config: Config) -> dict[str, Any]:
    slides = (config.sliding_window_indices or [])[: config.n_layer]
    # transformers' default attention, sdpa, leaves the cap out without a word; attn_implementation given in code wins
    eager = {"_attn_implementation": "eager"} if config.attention_logit_softcapping is not None else {}
    local = {} if config.rope_local_base_freq is None else {"rope_local_base_freq": float(config.rope_local_base_freq)}
    return {
        **_gemma(config),
        **local,
        **eager,
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window": config.sliding_window_size,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


_WINDOWS = {
    **GEMMA,
    "norms": "around",
    "sliding_window": ("some layers", "all layers"),
    "attention_scores_scalar": ANY,
    "attention_logit_softcapping": ANY,
    "final_logit_softcapping": ANY,
}
FAMILIES = (
    Family("LlamaForCausalLM", "llama", {}, _llama),
    Family("MistralForCausalLM", "mistral", {"sliding_window": "all layers"}, _sliding),
    Family("Qwen2ForCausalLM", "qwen2", {"attn_bias": True, **PLAIN_HEADS}, _llama),
    Family("Qwen3ForCausalLM", "qwen3", {"norm_qk": "default"}, _llama),
    Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {"norm_qk": "default", "mlp": "LLaMAMoE", "experts": "of their own size"},
        _qwen3_moe,
    ),
    Family(
        "MixtralForCausalLM",
        "mixtral",
        {"mlp": "LLaMAMoE", "experts": "as large as the MLP", "sliding_window": ("none", "all layers")},
        _mixtral,
    ),
    Family("OlmoForCausalLM", "olmo", {"norm": "LayerNorm without weights", "norm_eps": 1e-5, **PLAIN_HEADS}, _llama),
    Family("Olmo2ForCausalLM", "olmo2", {"norms": "after", "norm_qk": "olmo2"}, _llama),
    Family(
        "StableLmForCausalLM",
        "stablelm",
        {"norm": "LayerNorm", "rotary_percentage": ANY, "rope": "default", **PLAIN_HEADS},
        _stablelm,
    ),
    Family(
        "Phi3ForCausalLM",
        "phi3",
        {"fused": True, "rotary_percentage": ANY, "rope": "default", "sliding_window": ("none", "all layers")},
        _phi3,
        ties_on_import=False,
    ),
    Family("GemmaForCausalLM", "gemma", GEMMA, _gemma),
    Family("Gemma2ForCausalLM", "gemma2", _WINDOWS, _gemma_with_windows),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {**_WINDOWS, "norm_qk": "default", "rope": "local where the window slides"},
        _gemma_with_windows,
    ),
    Family(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        {**NEOX, "bias": True, "parallel_residual": ANY, "rotary_percentage": ANY, "queries": "one key each"},
        _neox,
        head="embed_out.weight",
        ties_on_import=False,
    ),
    Family(
        "PhiForCausalLM",
        "phi",
        {**NEOX, "bias": True, "lm_head_bias": True, "shared_attention_norm": True, "rotary_percentage": ANY},
        _phi,
        ties_on_import=False,
    ),
    Family(
        "FalconForCausalLM",
        "falcon",
        {**NEOX, "layout": "falcon of 7b", "shared_attention_norm": True, "queries": ANY},
        _falcon,
        ties_on_import=False,
    ),
    Family("FalconForCausalLM", "falcon", {**NEOX, "layout": "falcon of 40b"}, _falcon, ties_on_import=False),
)
