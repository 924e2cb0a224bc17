"""The families of transformers that LitGPT computes: what a release may leave unsaid, and what LitGPT fixes.

Source: the configuration classes of transformers 4.57 to 5.3; litgpt 0.5.13, litgpt/config.py and
litgpt.scripts.convert_hf_checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from litgpt.config import Config
from litgpt.scripts import convert_hf_checkpoint as litgpt_conversion

Settings = dict[str, Any]
Copy = Callable[..., None]
"""LitGPT's function, given ``state_dict`` and ``hf_weights`` by name."""

LLAMA: Settings = {
    "norm_class_name": "RMSNorm",
    "bias": False,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
    "mlp_class_name": "LLaMAMLP",
}
GEMMA: Settings = {**LLAMA, "mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "scale_embeddings": True}
BETWEEN: Settings = {"post_attention_norm": True, "post_mlp_norm": True}
"""Norms behind attention and MLP."""
GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


def refused(key: str, value: Any, expected: str) -> str:
    """What an error says of a key of ``config.json``."""
    return f"config.json: {key} = {value!r}: expected {expected}"


def _all_in_windows(content: Mapping[str, Any]) -> list[str]:
    return ["sliding_attention"] * content["num_hidden_layers"]


class Family(NamedTuple):
    """A ``model_type`` of transformers.

    Attributes:
        settings: keys of LitGPT's ``Config`` that all its models share.
        defaults: of transformers' class, where they are not those of ``DEFAULTS``.
        only: keys of ``config.json`` of which LitGPT computes these values alone.
        copy: makes LitGPT's conversion function of a configuration.
        name: begins the name of a model whose own does not fit the family.
        fits: whether LitGPT's classes and converters take a name for one of this family.
        more: further keys of LitGPT's ``Config`` that follow from ``config.json``.
        kinds: ``sliding_attention`` or ``full_attention`` for each layer, where ``config.json`` does not say.
    """

    settings: Settings
    defaults: Settings
    only: Mapping[str, Sequence[Any]]
    copy: Callable[[Config], Copy]
    name: str
    fits: Callable[[str], bool]
    more: Callable[[Mapping[str, Any]], Settings] = lambda content: {}
    kinds: Callable[[Mapping[str, Any]], list[str]] = _all_in_windows


DEFAULTS: Settings = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "head_dim": None,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


# -------------------- families


def _copier(copy: Copy, with_config: bool = True) -> Callable[[Config], Copy]:
    """LitGPT's function for the families whose query, key and value come apart; they are joined in one call."""

    def of(config: Config) -> Copy:
        def call(**weights: Any) -> None:
            copy(*([config] if with_config else []), {}, **weights)

        return call

    return of


def _begins(*beginnings: str) -> Callable[[str], bool]:
    return lambda name: name.lower().startswith(beginnings) and "Gemma" not in name and "falcon" not in name


def _is_plain(name: str) -> bool:
    """Whether LitGPT gives a name no meaning of its own: it takes its general classes and converters."""
    special = ("gemma-2", "gemma-3", "phi", "qwen2.5", "qwq", "olmo-2-", "qwen3")
    return not name.lower().startswith(special) and not any(word in name for word in ("Gemma", "OLMo", "falcon"))


def _every_nth_full(key: str, n: int) -> Callable[[Mapping[str, Any]], list[str]]:
    """Kinds of layers of which every n-th sees everything, n by ``key`` where it is given."""

    def kinds(content: Mapping[str, Any]) -> list[str]:
        every = content.get(key) or n
        return [
            "sliding_attention" if (i + 1) % every else "full_attention" for i in range(content["num_hidden_layers"])
        ]

    return kinds


def _last_in_windows(content: Mapping[str, Any]) -> list[str]:
    full = content.get("max_window_layers", 28)
    return ["sliding_attention" if i >= full else "full_attention" for i in range(content["num_hidden_layers"])]


def _gelu(key: str) -> Callable[[Mapping[str, Any]], Settings]:
    return lambda content: {"gelu_approximate": GELU[content[key]]}


def _whole(key: str, value: Any) -> int:
    if value != int(value):
        raise ValueError(refused(key, value, "a whole number"))
    return int(value)


def _gemma_2(content: Mapping[str, Any]) -> Settings:
    return {
        "attention_scores_scalar": _whole("query_pre_attn_scalar", content["query_pre_attn_scalar"]),
        "attention_logit_softcapping": content["attn_logit_softcapping"],
        "final_logit_softcapping": content["final_logit_softcapping"],
    }


def _experts(content: Mapping[str, Any]) -> Settings:
    n_expert = content.get("num_experts") or content["num_local_experts"]
    size = content.get("moe_intermediate_size")
    moe = {"moe_intermediate_size": size} if size is not None else {}
    return {"n_expert": n_expert, "n_expert_per_token": content["num_experts_per_tok"], **moe}


hf_llama = _copier(litgpt_conversion.copy_weights_hf_llama)
SILU = {"hidden_act": ("silu",)}
TANH = {"hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (None, False)}
GEMMA_DEFAULTS: Settings = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
}
QWEN_DEFAULTS: Settings = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
}
FAMILIES: dict[str, Family] = {
    "llama": Family(LLAMA, {"rms_norm_eps": 1e-6}, {**SILU, "mlp_bias": (False,)}, hf_llama, "Llama", _is_plain),
    "mistral": Family(
        LLAMA,
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        SILU,
        hf_llama,
        "Mistral",
        _is_plain,
    ),
    "mixtral": Family(
        {**LLAMA, "mlp_class_name": "LLaMAMoE"},
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        SILU,
        hf_llama,
        "Mixtral",
        _is_plain,
        _experts,
    ),
    "qwen2": Family(
        {**LLAMA, "attn_bias": True},
        QWEN_DEFAULTS,
        SILU,
        _copier(litgpt_conversion.copy_weights_qwen_2_5),
        "Qwen2.5",
        _begins("qwen2.5", "qwq"),
        kinds=_last_in_windows,
    ),
    "qwen3": Family(
        {**LLAMA, "norm_qk": True},
        {**QWEN_DEFAULTS, "head_dim": 128},
        SILU,
        _copier(litgpt_conversion.copy_weights_qwen_3),
        "Qwen3",
        _begins("qwen3"),
        kinds=_last_in_windows,
    ),
    "qwen3_moe": Family(
        {**LLAMA, "norm_qk": True, "mlp_class_name": "LLaMAMoE"},
        {
            **QWEN_DEFAULTS,
            "num_key_value_heads": 4,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        # LitGPT's weights of the chosen experts always add up to 1
        {**SILU, "norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        _copier(litgpt_conversion.copy_weights_qwen_3),
        "Qwen3",
        _begins("qwen3"),
        _experts,
        _last_in_windows,
    ),
    "gemma": Family(
        GEMMA,
        {**GEMMA_DEFAULTS, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"},
        {**TANH, "hidden_activation": ("gelu_pytorch_tanh", None), "hidden_act": ("gelu_pytorch_tanh",)},
        hf_llama,
        "Gemma",
        lambda name: "Gemma" in name and not name.lower().startswith(("gemma-3", "phi", "qwen", "olmo-2-")),
    ),
    "gemma2": Family(
        {**GEMMA, **BETWEEN},
        {
            **GEMMA_DEFAULTS,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        TANH,
        _copier(litgpt_conversion.copy_weights_gemma_2, with_config=False),
        "Gemma-2",
        lambda name: name.startswith("Gemma-2"),
        _gemma_2,
        _every_nth_full("sliding_window_pattern", 2),
    ),
    "gemma3_text": Family(
        {**GEMMA, **BETWEEN, "norm_qk": True},
        {
            **GEMMA_DEFAULTS,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 4096,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        TANH,
        _copier(litgpt_conversion.copy_weights_gemma_3, with_config=False),
        "Gemma-3",
        lambda name: name.startswith("Gemma-3"),
        _gemma_2,
        _every_nth_full("sliding_window_pattern", 6),
    ),
    "phi": Family(
        {"shared_attention_norm": True, "lm_head_bias": True},
        {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
        {"hidden_act": tuple(GELU), "qk_layernorm": (False,)},
        _copier(litgpt_conversion.copy_weights_phi),
        "phi-2",
        lambda name: _begins("phi")(name) and not name.startswith(("Phi-3", "phi-4", "Phi-4")),
        _gelu("hidden_act"),
    ),
    "phi3": Family(
        LLAMA,
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        SILU,
        _copier(litgpt_conversion.copy_weights_phi),
        "Phi-3",
        lambda name: name.startswith(("Phi-3", "phi-4", "Phi-4")) and "Gemma" not in name and "falcon" not in name,
    ),
    "olmo": Family(
        {**LLAMA, "norm_class_name": "LayerNorm"},
        {"layer_norm_eps": 1e-5},  # of OlmoLayerNorm, which has no setting for it
        {**SILU, "clip_qkv": (None,)},
        hf_llama,
        "OLMo",
        lambda name: "OLMo" in name and _is_plain(name.replace("OLMo", "")) and not name.startswith("OLMo-2-"),
    ),
    "olmo2": Family(
        {**LLAMA, **BETWEEN, "norm_1": False, "norm_2": False, "norm_qk": True, "norm_qk_type": "olmo2"},
        {"rms_norm_eps": 1e-5},
        SILU,
        _copier(litgpt_conversion.copy_weights_olmo2),
        "OLMo-2",
        _begins("olmo-2-"),
    ),
    "gpt_neox": Family(
        {"bias": True},
        {"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "attention_bias": True},
        {"hidden_act": tuple(GELU), "attention_bias": (True,)},
        lambda config: partial(litgpt_conversion.copy_weights_gpt_neox, config),
        "GPT-NeoX",
        _is_plain,
        lambda content: {
            **_gelu("hidden_act")(content),
            "parallel_residual": content.get("use_parallel_residual", True),
        },
    ),
    "stablelm": Family(
        {**LLAMA, "norm_class_name": "LayerNorm"},
        {"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5, "max_position_embeddings": 4096},
        {**SILU, "use_qkv_bias": (False,), "qk_layernorm": (False,), "use_parallel_residual": (False,)},
        hf_llama,
        "stablelm",
        _is_plain,
    ),
}
"""``model_type`` -> how LitGPT builds and converts it."""


def _falcon(
    name: str, fits: Callable[[str], bool], more: Callable[[Mapping[str, Any]], Settings], only: Settings
) -> Family:
    return Family(
        {"bias": False, "rotary_percentage": 1.0},
        {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "activation": "gelu"},
        {"alibi": (False,), "bias": (False,), "parallel_attn": (True,), "activation": ("gelu",), **only},
        lambda config: partial(litgpt_conversion.copy_weights_falcon, config),
        name,
        fits,
        lambda content: {
            "intermediate_size": content.get("ffn_hidden_size") or 4 * content["hidden_size"],
            **more(content),
        },
    )


FALCON = _falcon(
    "falcon-7b",
    lambda name: "falcon" in name and "7b" in name and "Gemma" not in name,
    lambda content: {"n_query_groups": 1, "shared_attention_norm": True},
    {"multi_query": (True,)},
)
FALCON_OF_TWO_NORMS = _falcon(
    "falcon-40b",
    lambda name: "falcon" in name and "7b" not in name and ("40b" in name or "180B" in name) and "Gemma" not in name,
    lambda content: {"n_query_groups": content.get("num_kv_heads") or content["num_attention_heads"]},
    {"num_ln_in_parallel_attn": (None, 2)},
)
