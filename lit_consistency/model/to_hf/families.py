"""Which model of transformers computes what a LitGPT configuration computes, and its ``config.json``.

The architecture decides: a configuration belongs to a family if it has every one of the family's traits; else it is
refused, with what stands against the nearest families. Given up: what no family of transformers computes, as LitGPT's
YaRN, and the experts in groups of DeepSeek. transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from litgpt.config import Config

from lit_consistency.model.to_hf.settings import (
    falcon,
    gemma,
    gemma_with_windows,
    llama,
    mixtral,
    neox,
    phi,
    phi3,
    qwen3_moe,
    sliding,
    stablelm,
)
from lit_consistency.model.to_hf.traits import LLAMA, traits_of

ANY = object()
"""In place of a trait's value: the family computes them all."""
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
    """

    architecture: str
    model_type: str
    traits: dict[str, Any] = field(default_factory=dict)
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}
    head: str = "lm_head.weight"

    def against(self, config: Config) -> list[str]:
        """The traits of ``config`` that the family does not have, as ``key = value``."""
        traits, wanted = traits_of(config), {**LLAMA, **self.traits}
        wanted = {key: value for key, value in wanted.items() if value is not ANY}
        allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()}
        return [f"{key} = {traits[key]}" for key, values in allowed.items() if traits[key] not in values]


GEMMA_WITH_WINDOWS = {
    **GEMMA,
    "norms": "around",
    "sliding_window": ("some layers", "all layers"),
    "attention_scores_scalar": ANY,
    "attention_logit_softcapping": ANY,
    "final_logit_softcapping": ANY,
}
FAMILIES = (
    Family("LlamaForCausalLM", "llama", {}, llama),
    Family("MistralForCausalLM", "mistral", {"sliding_window": "all layers"}, sliding),
    Family("Qwen2ForCausalLM", "qwen2", {"attn_bias": True, **PLAIN_HEADS}, llama),
    Family("Qwen3ForCausalLM", "qwen3", {"norm_qk": "default"}, llama),
    Family(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {"norm_qk": "default", "mlp": "LLaMAMoE", "experts": "of their own size"},
        qwen3_moe,
    ),
    Family(
        "MixtralForCausalLM",
        "mixtral",
        {"mlp": "LLaMAMoE", "experts": "as large as the MLP", "sliding_window": ("none", "all layers")},
        mixtral,
    ),
    Family(
        "OlmoForCausalLM",
        "olmo",
        {"norm": "LayerNorm without weights", "norm_eps": 1e-5, **PLAIN_HEADS},
        llama,
    ),
    Family("Olmo2ForCausalLM", "olmo2", {"norms": "after", "norm_qk": "olmo2"}, llama),
    Family(
        "StableLmForCausalLM",
        "stablelm",
        {"norm": "LayerNorm", "rotary_percentage": ANY, "rope": "default", **PLAIN_HEADS},
        stablelm,
    ),
    Family(
        "Phi3ForCausalLM",
        "phi3",
        {"fused": True, "rotary_percentage": ANY, "rope": "default", "sliding_window": ("none", "all layers")},
        phi3,
    ),
    Family("GemmaForCausalLM", "gemma", GEMMA, gemma),
    Family("Gemma2ForCausalLM", "gemma2", GEMMA_WITH_WINDOWS, gemma_with_windows),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {**GEMMA_WITH_WINDOWS, "norm_qk": "default", "rope": "local where the window slides"},
        gemma_with_windows,
    ),
    Family(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        {**NEOX, "bias": True, "parallel_residual": ANY, "rotary_percentage": ANY, "queries": "one key each"},
        neox,
        head="embed_out.weight",
    ),
    Family(
        "PhiForCausalLM",
        "phi",
        {**NEOX, "bias": True, "lm_head_bias": True, "shared_attention_norm": True, "rotary_percentage": ANY},
        phi,
    ),
    Family(
        "FalconForCausalLM",
        "falcon",
        {**NEOX, "layout": "falcon of 7b", "shared_attention_norm": True, "queries": "one key for all"},
        falcon,
    ),
    Family("FalconForCausalLM", "falcon", {**NEOX, "layout": "falcon of 40b"}, falcon),
)


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
