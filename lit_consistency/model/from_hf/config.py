"""From the ``config.json`` of transformers to LitGPT's ``Config``, family by family.

The architecture is read from the file, never from a name: a finetuned model in a folder of any name is built as it was.
A name matters only where LitGPT's classes go by it (Gemma's norm, OLMo's, its converters), and there one is given that
fits. Every key of ``config.json`` that changes what is computed is used, or has the one value that LitGPT computes, or
is refused by its name; a key that is missing has the value of transformers' class, of which a release may write only
what differs. Given up: what LitGPT does not compute exactly, as rotary angles by YaRN (litgpt 0.5.13 turns its ramp
around), longrope and dynamic scaling.

Source: the configuration classes of transformers 4.57 to 5.3; litgpt 0.5.13, litgpt/config.py and
litgpt.scripts.convert_hf_checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litgpt.config import Config, configs

from lit_consistency.model.from_hf.families import (
    DEFAULTS,
    FALCON,
    FALCON_OF_TWO_NORMS,
    FAMILIES,
    Copy,
    Family,
    Settings,
    refused,
)
from lit_consistency.model.tying import with_tying


def litgpt_config(content: Mapping[str, Any], name: str, organization: str | None = None) -> tuple[Config, Copy]:
    """LitGPT's configuration of a model of transformers, and LitGPT's function that renames its weights.

    Args:
        content: of ``config.json``.
        name: of the model, as its folder's or its repository's.
        organization: of the repository on the hub.

    Raises:
        ValueError: LitGPT has no such family, a key is missing, or one has a value that LitGPT does not compute.
    """
    content = _text_model(content)
    family = _family(content)
    content = {**DEFAULTS, **family.defaults, **content}
    for key, allowed in {"quantization_config": (None,), "attention_bias": (False,), **family.only}.items():
        value = content.get(key, allowed[0])
        if value not in allowed:
            raise ValueError(refused(key, value, f"{' or '.join(map(repr, allowed))}, which is what LitGPT computes"))
    settings = {
        "name": _name(name, family),
        "hf_config": {"org": organization, "name": name} if organization else {"name": name},
        **family.settings,
        **_sizes(content),
        **_rotary(content),
        **_windows(content, family),
        **family.more(content),
    }
    try:
        config = Config(**with_tying(settings, bool(content["tie_word_embeddings"])))
    except AssertionError:
        heads = {key: settings[key] for key in ("n_embd", "n_head", "n_query_groups", "head_size")}
        raise ValueError(
            f"config.json: {heads}: expected n_query_groups to divide n_head, as LitGPT builds it"
        ) from None
    return config, family.copy(config)


def _text_model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that sees pictures too, the part that reads and writes text."""
    if content.get("model_type") != "gemma3" or "text_config" not in content:
        return content
    tied = content.get("tie_word_embeddings", True)
    return {**content["text_config"], "model_type": "gemma3_text", "tie_word_embeddings": tied}


def _family(content: Mapping[str, Any]) -> Family:
    kind = content.get("model_type")
    if kind == "falcon":
        return FALCON_OF_TWO_NORMS if content.get("new_decoder_architecture") else FALCON
    if kind not in FAMILIES:
        raise ValueError(refused("model_type", kind, f"one of {', '.join(sorted([*FAMILIES, 'falcon', 'gemma3']))}"))
    return FAMILIES[kind]


def _name(name: str, family: Family) -> str:
    """The name itself, LitGPT's name of the same release, or one that LitGPT takes for this family."""
    released = {entry["hf_config"]["name"]: entry["name"] for entry in configs}
    for candidate in (released.get(name, name), f"{family.name}-{name}", family.name):
        if family.fits(candidate):
            return candidate
    raise AssertionError(f"{family.name} does not fit its own family")


def _sizes(content: Mapping[str, Any]) -> Settings:
    def needed(*keys: str) -> Any:
        found = next((content[key] for key in keys if content.get(key) is not None), None)
        if found is None:
            raise ValueError(refused(keys[0], None, "a value; the file is no complete configuration"))
        return found

    n_embd, n_head = needed("hidden_size"), needed("num_attention_heads")
    return {
        "n_layer": needed("num_hidden_layers"),
        "n_embd": n_embd,
        "n_head": n_head,
        "n_query_groups": content["num_key_value_heads"] or n_head,
        "head_size": content["head_dim"] or n_embd // n_head,
        **({} if content["model_type"] == "falcon" else {"intermediate_size": needed("intermediate_size")}),
        "block_size": needed("max_position_embeddings"),
        "vocab_size": needed("vocab_size"),
        "padded_vocab_size": needed("vocab_size"),
        "norm_eps": needed("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    }


def _rotary(content: Mapping[str, Any]) -> Settings:
    """Rotary settings, as transformers 5 writes them (``rope_parameters``) or as 4 does."""
    rope = dict(content.get("rope_parameters") or {})
    settings: Settings = {}
    if "full_attention" in rope:  # by kind of layer
        settings["rope_local_base_freq"] = float(rope["sliding_attention"]["rope_theta"])
        if rope["sliding_attention"].get("rope_type", "default") != "default":
            raise ValueError(
                refused("rope_parameters.sliding_attention", rope["sliding_attention"], "rope_type default")
            )
        rope = dict(rope["full_attention"])
    elif "rope_local_base_freq" in content:
        settings["rope_local_base_freq"] = float(content["rope_local_base_freq"])
    scaling = rope or dict(content.get("rope_scaling") or {})
    base = rope.get("rope_theta", content.get("rotary_emb_base", content["rope_theta"]))
    if base != int(base):
        raise ValueError(refused("rope_theta", base, "a whole number"))
    share = rope.get("partial_rotary_factor", content.get("rotary_pct", content["partial_rotary_factor"]))
    return {
        **settings,
        "rope_base": int(base),
        "rotary_percentage": float(share),
        "rope_adjustments": _adjustments(scaling, content),
    }


def _adjustments(scaling: Mapping[str, Any], content: Mapping[str, Any]) -> Settings | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind == "linear":
        return {"factor": float(scaling["factor"])}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        original = scaling.get("original_max_position_embeddings", content["max_position_embeddings"])
        return {**{name: float(scaling[name]) for name in names}, "original_max_seq_len": int(original)}
    raise ValueError(refused("rope_scaling", dict(scaling), "none, linear or llama3, which are what LitGPT computes"))


def _windows(content: Mapping[str, Any], family: Family) -> Settings:
    """Which layers see a window only; a window no smaller than the context is none, and none allows packing."""
    size = content["sliding_window"]
    if content.get("use_sliding_window") is False:
        size = None
    kinds = content.get("layer_types") or family.kinds(content)
    if unknown := sorted(set(kinds) - {"sliding_attention", "full_attention"}):
        raise ValueError(refused("layer_types", unknown, "full_attention or sliding_attention"))
    indices = [int(kind == "sliding_attention") for kind in kinds]
    settings: Settings = {}
    if size is not None and size < content["max_position_embeddings"] and any(indices):
        settings = {"sliding_window_size": size, "sliding_window_indices": indices}
    # rotary angles go by the kind of layer whether or not the window is reached
    return {**settings, **({"rope_indices": indices} if content["model_type"] == "gemma3_text" else {})}
