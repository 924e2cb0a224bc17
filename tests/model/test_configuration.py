from pathlib import Path

import litgpt.lora
import pytest
import torch
from litgpt.config import name_to_config
from litgpt.utils import save_config

from lit_consistency.model import GPT, model_config, padding_multiple
from tests.model.tiny_models import TINY, tiny_config


def stored(folder: Path, name: str = "pythia-14m") -> Path:
    save_config(tiny_config(name), folder)
    return folder


def test_without_overrides_it_is_litgpts_configuration() -> None:
    for name in ("pythia-160m", "Llama-3.2-1B", "Qwen3-0.6B", "Gemma-2-27b"):
        assert model_config(name, None, {}, None) == litgpt.Config.from_name(name)


def test_names_of_the_hub_are_taken() -> None:
    assert model_config("meta-llama/Llama-3.2-1B", None, {}, None) == litgpt.Config.from_name("Llama-3.2-1B")
    assert model_config("Meta-Llama-3-8B", None, {}, None).name == "Llama-3-8B"


def test_every_named_configuration_shrinks_to_a_model_that_runs() -> None:
    for name in sorted(name_to_config):
        experts = {"n_expert": 4, "n_expert_per_token": 2} if name_to_config[name].get("n_expert") else {}
        config = model_config(name, None, {**TINY, "n_embd": 64, **experts}, None)
        assert (config.head_size, config.n_head % config.n_query_groups) == (16, 0), name
        assert config.padded_vocab_size == 96, name
        with torch.device("meta"):
            model = GPT(config)
        assert sum(parameter.numel() for parameter in model.parameters()) < 500_000, name


def test_the_named_configuration_is_not_changed() -> None:
    before = str(name_to_config["Llama-3.2-1B"])
    config = model_config("Llama-3.2-1B", None, {"n_layer": 2}, None)
    config.rope_adjustments["factor"] = 1.0
    assert str(name_to_config["Llama-3.2-1B"]) == before


FOLLOWS: list[tuple[str, dict, dict]] = [
    ("Qwen3-0.6B", {"n_layer": 2}, {"head_size": 128, "intermediate_size": 3072, "n_query_groups": 8}),
    ("Qwen3-0.6B", {"n_embd": 64, "n_head": 4}, {"head_size": 16, "intermediate_size": 192, "n_query_groups": 2}),
    ("Qwen3-0.6B", {"n_embd": 64, "n_head": 4, "head_size": 32}, {"head_size": 32}),
    ("Llama-3.2-1B", {"n_embd": 64, "n_head": 8}, {"intermediate_size": 256, "n_query_groups": 2}),
    ("Llama-3.2-1B", {"n_embd": 64, "n_head": 2}, {"n_query_groups": 1}),
    ("Llama-3.2-1B", {"n_head": 8, "n_query_groups": 8}, {"n_query_groups": 8, "head_size": 256}),
    ("Llama-2-7b-hf", {"n_embd": 64, "n_head": 4}, {"n_query_groups": 4, "intermediate_size": 176}),
    ("SmolLM2-135M", {"n_embd": 128, "n_head": 4}, {"intermediate_size": 344, "n_query_groups": 1}),
    ("SmolLM2-135M", {"n_embd": 128, "n_head": 4, "intermediate_size": 512}, {"intermediate_size": 512}),
    ("pythia-14m", {"n_embd": 64}, {"intermediate_size": 256, "n_query_groups": 4, "head_size": 16}),
    ("Gemma-2-27b", {"n_embd": 64, "n_head": 4}, {"head_size": 16, "attention_scores_scalar": 16}),
    ("Qwen3-30B-A3B", {"n_embd": 64, "n_head": 4}, {"moe_intermediate_size": 24, "intermediate_size": 192}),
    ("Llama-3.2-1B", {"vocab_size": 300}, {"vocab_size": 300, "padded_vocab_size": 304}),
    ("Llama-3.2-1B", {"vocab_size": 300, "padding_multiple": 128}, {"padded_vocab_size": 384}),
    ("Llama-3.2-1B", {"vocab_size": 300, "padded_vocab_size": 512}, {"padded_vocab_size": 512}),
]


def test_what_depends_on_a_size_follows_it() -> None:
    for name, overrides, expected in FOLLOWS:
        config = model_config(name, None, overrides, None)
        assert {key: getattr(config, key) for key in expected} == expected, (name, overrides)


@pytest.mark.parametrize(
    ("vocab_size", "padded"), [(97, 104), (1024, 1024), (1025, 1088), (4096, 4096), (50257, 50304)]
)
def test_the_tokenizer_decides_the_vocabulary_of_a_new_model(vocab_size: int, padded: int) -> None:
    config = model_config("Llama-3.2-1B", None, {"n_layer": 1}, vocab_size)
    assert (config.vocab_size, config.padded_vocab_size) == (vocab_size, padded)
    assert padded % padding_multiple(vocab_size) == 0


def test_an_overridden_vocabulary_must_hold_the_tokenizer() -> None:
    assert model_config("pythia-14m", None, {"vocab_size": 512}, 300).padded_vocab_size == 512
    assert model_config("pythia-14m", None, {"padded_vocab_size": 512}, 300).padded_vocab_size == 512
    with pytest.raises(ValueError, match="vocab_size = 256 of the model: expected at least the tokenizer's 300"):
        model_config("pythia-14m", None, {"vocab_size": 256}, 300)


def test_a_checkpoint_must_hold_the_tokenizer(tmp_path: Path) -> None:
    assert model_config(None, stored(tmp_path), {}, 96).vocab_size == 96
    with pytest.raises(ValueError, match="vocab_size = 96 of the model: expected at least the tokenizer's 97"):
        model_config(None, stored(tmp_path), {}, 97)


def test_the_configuration_of_a_folder_is_read_back(tmp_path: Path) -> None:
    assert model_config(None, stored(tmp_path, "Qwen3-0.6B"), {}, None) == tiny_config("Qwen3-0.6B")


def test_a_checkpoint_keeps_its_shape_and_takes_the_rest(tmp_path: Path) -> None:
    assert model_config(None, stored(tmp_path), {"block_size": 32, "n_layer": 2}, None).block_size == 32
    with pytest.raises(ValueError, match=r"overrides.n_embd = 64: .* was trained with 32; with checkpoint_dir allowed"):
        model_config(None, stored(tmp_path), {"n_embd": 64}, None)


@pytest.mark.parametrize(("name", "checkpoint_dir"), [(None, None), ("pythia-14m", Path("somewhere"))])
def test_exactly_one_of_name_and_folder(name: str | None, checkpoint_dir: Path | None) -> None:
    with pytest.raises(ValueError, match="expected exactly one of the two"):
        model_config(name, checkpoint_dir, {}, None)


def test_an_unknown_name_shows_close_ones() -> None:
    with pytest.raises(ValueError, match=r"name = 'pythia-14': .*did you mean .*pythia-14m"):
        model_config("pythia-14", None, {}, None)
    with pytest.raises(ValueError, match=r"did you mean .*Llama-3.2-1B"):
        model_config("llama-3.2-1b", None, {}, None)


def test_an_unknown_override_shows_close_ones() -> None:
    with pytest.raises(ValueError, match=r"overrides.n_layers = 3: unknown key; did you mean n_layer"):
        model_config("pythia-14m", None, {"n_layers": 3}, None)


def test_a_folder_without_or_with_a_broken_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing model_config.yaml"):
        model_config(None, tmp_path, {}, None)
    for text in ("n_layer: [", "just text", "n_layers: 3", "n_layer: three"):
        (tmp_path / "model_config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"model_config.yaml: expected|model_config.yaml: n_layer = 'three'"):
            model_config(None, tmp_path, {}, None)
