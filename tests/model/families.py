"""A tiny model of every family that LitGPT converts from, exported, and read by transformers and by LitGPT."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

from lit_consistency.model import GPT, export_hf, load_weights, save_model
from tests.model.tiny_models import tiny_model, tiny_provenance

WINDOW = {"sliding_window_size": 8}
GROUPS = {"n_query_groups": 2}
EXPERTS = {"n_expert": 4, "n_expert_per_token": 2}
LLAMA3_ROPE = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 32}
TIED = {"tied": True}
FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "GPT-NeoX, Pythia": {
        "pythia": ("pythia-14m", {}),
        "pythia-sequential-tanh": ("pythia-14m", {"parallel_residual": False, "gelu_approximate": "tanh"}),
        "pythia-tied": ("pythia-14m", TIED),
        # a quarter of a head of 8 is one frequency, base to the power of 0: only half of it shows the base
        "pythia-own-rotation": ("pythia-14m", {"rotary_percentage": 0.5, "rope_base": 500}),
    },
    "Llama 2": {
        "llama-2": ("Llama-2-7b-hf", {}),
        "llama-2-condensed": ("Llama-2-7b-hf", {"rope_condense_ratio": 4}),
    },
    "Llama 3": {
        "llama-3.2": ("Llama-3.2-1B", {**GROUPS, **TIED}),
        "llama-3.2-short": ("Llama-3.2-1B", {**GROUPS, "rope_adjustments": LLAMA3_ROPE}),
        "linear-rope": ("Llama-3.2-1B", {"rope_adjustments": {"factor": 4.0}}),
    },
    "SmolLM2": {"smollm2-own-head-size": ("SmolLM2-135M", {"head_size": 16, **TIED})},
    "Falcon 3": {"falcon3": ("Falcon3-1B-Base", GROUPS)},
    "Mistral": {"mistral": ("Mistral-7B-v0.1", {**WINDOW, **GROUPS}), "mistral-0.3": ("Mistral-7B-v0.3", GROUPS)},
    "Mixtral": {"mixtral": ("Mixtral-8x7B-v0.1", GROUPS)},
    "Qwen 2.5": {"qwen2.5": ("Qwen2.5-0.5B", {**GROUPS, **TIED}), "qwq": ("QwQ-32B", GROUPS)},
    "Qwen 3": {"qwen3": ("Qwen3-0.6B", {**GROUPS, "head_size": 16, **TIED}), "qwen3-8b": ("Qwen3-8B", GROUPS)},
    "Qwen 3 MoE": {"qwen3-moe": ("Qwen3-30B-A3B", {**GROUPS, **EXPERTS, "head_size": 16})},
    "Gemma": {
        "gemma": ("Gemma-2b", {"n_query_groups": 1, **TIED}),
        "codegemma": ("CodeGemma-7b-it", {"head_size": 16, **TIED}),
    },
    "Gemma 2": {"gemma-2": ("Gemma-2-2b", {**WINDOW, **GROUPS, **TIED})},
    # the sixth layer of Gemma 3 is the first that sees everything
    "Gemma 3": {
        "gemma-3-1b": ("Gemma-3-1b-it", {**WINDOW, **GROUPS, "n_layer": 7, **TIED}),
        "gemma-3-4b": ("Gemma-3-4b-it", {**WINDOW, **GROUPS, "n_layer": 7, **TIED}),
        "gemma-3-short": ("Gemma-3-1b-it", {**WINDOW, **GROUPS, **TIED}),
    },
    "Phi 1.5, 2": {"phi-1.5": ("phi-1_5", {"n_embd": 64}), "phi-2": ("phi-2", {"n_embd": 80})},
    "Phi 3": {"phi-3": ("Phi-3-mini-4k-instruct", WINDOW), "phi-3.5": ("Phi-3.5-mini-instruct", {})},
    "Phi 4": {
        "phi-4": ("phi-4", GROUPS),
        "phi-4-mini": ("Phi-4-mini-instruct", {**WINDOW, **GROUPS, **TIED}),
        # LitGPT drops this one's output matrix, which is not its embedding
        "phi-4-reasoning": ("Phi-4-reasoning", GROUPS),
    },
    "OLMo": {"olmo": ("OLMo-1B-hf", TIED), "olmo-7b": ("OLMo-7B-hf", {})},
    "OLMo 2": {"olmo-2": ("OLMo-2-1124-7B", {})},
    "Falcon": {"falcon-7b": ("falcon-7b", {"n_query_groups": 1}), "falcon-40b": ("falcon-40b", GROUPS)},
    "StableLM": {"stablelm": ("stablelm-3b-4e1t", {})},
}
CASES = {case: made for cases in FAMILIES.values() for case, made in cases.items()}


def tiny_family(folder: Path, name: str, tied: bool = False, **overrides: Any) -> GPT:
    """A tiny model in LitGPT's format; tied: its output matrix has the embedding's numbers."""
    model = tiny_model(name, **overrides)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)  # logits of about one: 1e-5 is well above their rounding
        model.transformer.wte.weight.mul_(0.2)
        for parameter in model.parameters():
            if parameter.ndim == 1 and "Gemma" in name:
                parameter.sub_(1.0)  # its norms multiply by 1 + weight
        if tied:
            model.lm_head.weight.copy_(model.transformer.wte.weight)
    save_model(folder, model.state_dict(), model.config, None, tiny_provenance(model=name))
    return model


def logits_of_both(model: GPT, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and those of transformers for the exported model, in float32, loaded as a user would."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    tokens = torch.randint(0, 96, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens), theirs(tokens).logits


def read_back(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    """The weights that ``litgpt convert_to_litgpt`` makes of the exported model."""
    # LitGPT takes "Gemma-2b" for a Gemma 2, by its first letters
    name = config.name.replace("Gemma-2b", "Gemma-of-2b")
    # by its name it would find the sizes of the released model
    with mock.patch.object(Config, "from_name", return_value=config), contextlib.redirect_stdout(io.StringIO()):
        convert_hf_checkpoint(folder, model_name=name, debug_mode=True)
    weights = load_weights(folder)
    if json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        # LitGPT copies the embedding in some families alone
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights


def measure_family(folder: Path, family: str) -> dict[str, Any]:
    """Of all tiny models of a family: the largest difference of the logits, and whether they are read back."""
    difference, largest, equal, names = 0.0, 0.0, True, set()
    for case, (name, overrides) in FAMILIES[family].items():
        model = tiny_family(folder / case / "lit", name, **overrides)
        export_hf(folder / case / "lit", folder / case / "hf")
        ours, theirs = logits_of_both(model, folder / case / "hf")
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        back = read_back(folder / case / "hf", model.config)
        equal &= all(torch.equal(back[key], tensor) for key, tensor in model.state_dict().items())
        names.add(model.config.name)
    return {"family": family, "models": sorted(names), "difference": difference, "logits": largest, "equal": equal}
