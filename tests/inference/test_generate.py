from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference import decoding
from lit_consistency.inference.decoding import LEAST_PREFIX, common_prefix
from lit_consistency.inference.generate import Generation, generate
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.methods import LoRA
from lit_consistency.model import GPT
from tests.data.tokens.families import llama2_like, llama3_like
from tests.model.tiny_models import tiny_config, tiny_model, tiny_tokenizer
from tests.reference.generation import greedy

CPU = torch.device("cpu")
FAMILIES = ["pythia-14m", "Llama-3.2-1B", "Qwen3-0.6B", "Mixtral-8x7B-v0.1", "Gemma-2-2b", "Gemma-3-1b-it", "falcon-7b"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def make_prompts(n: int, head: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    start = rng.integers(1, 90, head)
    return [np.concatenate([start, rng.integers(1, 90, int(rng.integers(1, longest)))]) for _ in range(n)]


def write(model: nn.Module, prompts: list[np.ndarray], tokenizer: Tokenizer, batch_tokens: int = 120, **options: Any):
    return generate(model, prompts, GenerationOptions(**options), tokenizer, batch_tokens=batch_tokens, device=CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_equal_a_loop_without_cache(family: str, tokenizer: Tokenizer) -> None:
    model, prompts = tiny_model(family), make_prompts(7)
    found = write(model, prompts, tokenizer, max_new_tokens=12)
    assert [samples[0] for samples in found] == [greedy(model, p, 12, tokenizer) for p in prompts]


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("head", [0, LEAST_PREFIX + 3])
def test_neither_the_budget_nor_a_common_beginning_changes_a_text(
    head: int, batch_tokens: int, tokenizer: Tokenizer
) -> None:
    """Stop strings and ends of sequence come up at different steps, so rows leave and others take their places."""
    model, prompts = tiny_model("Llama-3.2-1B", block_size=128), make_prompts(12, head)
    found = write(model, prompts, tokenizer, batch_tokens, max_new_tokens=20, stop=("7", "@", ".G"))
    expected = [greedy(model, p, 20, tokenizer, ("7", "@", ".G")) for p in prompts]
    assert [samples[0] for samples in found] == expected
    assert common_prefix(prompts) == (head if head else 0)


def test_a_text_ends_in_each_of_the_three_ways(tokenizer: Tokenizer) -> None:
    model, prompts = tiny_model("Llama-3.2-1B", block_size=128), make_prompts(12)
    plain = [samples[0] for samples in write(model, prompts, tokenizer, max_new_tokens=30)]
    stop = plain[0].text[3:5]
    found = [samples[0] for samples in write(model, prompts, tokenizer, max_new_tokens=30, stop=(stop,))]
    assert found[0].finished == "stop"
    assert found[0].text == plain[0].text[: plain[0].text.index(stop)]
    assert {generation.finished for generation in plain + found} == {"stop", "eos", "length"}
    for generation in plain:
        assert tokenizer.eos_id not in generation.tokens
        assert (len(generation.tokens) == 30) == (generation.finished == "length")


def scripted(monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
    """Whatever the logits are, the model writes these tokens."""
    script = iter(tokens)
    monkeypatch.setattr(decoding, "next_tokens", lambda *_: torch.tensor([next(script)]))


def test_a_text_ends_where_any_file_or_the_caller_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama3_like(tmp_path)
    tokenizer = Tokenizer(folder)
    model = tiny_model("pythia-14m", vocab_size=tokenizer.vocab_size)
    prompt = [tokenizer.encode("the question").numpy()]
    tokens = tokenizer.encode(" the day<|eot_id|> and the night", bos=False).tolist()
    day = tokens[: tokens.index(tokenizer.token_to_id("<|eot_id|>"))]

    def written(**options: Any) -> Generation:
        scripted(monkeypatch, tokens)
        ends = options.pop("end_tokens", ())
        how = GenerationOptions(max_new_tokens=len(tokens), **options)
        return generate(model, prompt, how, Tokenizer(folder), batch_tokens=100, device=CPU, end_tokens=ends)[0][0]

    assert written() == Generation(" the day and the night", tokens, "length")
    assert written(end_tokens=[tokens[len(day)]]) == Generation(" the day", day, "eos")
    assert written(stop=("<|eot_id|>",)) == Generation(" the day", tokens[: len(day) + 1], "stop")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, tokens[len(day)]]}))
    assert written() == Generation(" the day", day, "eos")


def test_indented_code_keeps_its_indentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(llama2_like(tmp_path))
    model = tiny_model("pythia-14m", vocab_size=tokenizer.vocab_size)
    prompt = tokenizer.encode("def f(x):\n")
    tokens = tokenizer.encode("def f(x):\n    return x").tolist()[len(prompt) :]
    for stop, text, reason in ((), "    return x", "length"), (("turn",), "    re", "stop"):
        scripted(monkeypatch, tokens)
        options = GenerationOptions(max_new_tokens=len(tokens), stop=stop)
        sample = generate(model, [prompt.numpy()], options, tokenizer, batch_tokens=100, device=CPU)[0][0]
        assert (sample.text, sample.finished) == (text, reason)


def test_the_context_ends_a_text(tokenizer: Tokenizer) -> None:
    model = tiny_model("pythia-14m")
    prompts = [np.arange(1, 1 + n) % 90 for n in (64, 63, 60)]
    found = [samples[0] for samples in write(model, prompts, tokenizer, max_new_tokens=50)]
    assert found[0] == Generation("", [], "length")
    assert [len(generation.tokens) for generation in found] == [0, 1, 4]


def test_samples_depend_on_seed_prompt_and_sample_not_on_the_batch(tokenizer: Tokenizer) -> None:
    model, prompts = tiny_model("Llama-3.2-1B", block_size=128), make_prompts(6)
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.9, "n_samples": 5}
    found = [write(model, prompts, tokenizer, batch_tokens, **options) for batch_tokens in (1, 70, 10_000)]
    assert found[0] == found[1] == found[2]
    assert all(len({sample.text for sample in samples}) > 1 for samples in found[0])
    fewer = write(model, prompts, tokenizer, **{**options, "n_samples": 2})
    assert fewer == [samples[:2] for samples in found[0]]
    assert write(model, prompts, tokenizer, **options, seed=1) != found[0]


def test_samples_follow_the_model_s_distribution(tokenizer: Tokenizer) -> None:
    model, prompt = tiny_model("pythia-14m"), np.array([3, 4, 5])
    samples = write(model, [prompt], tokenizer, 10_000, max_new_tokens=1, temperature=1.0, n_samples=4000)[0]
    tokens = [sample.tokens[0] if sample.tokens else tokenizer.eos_id for sample in samples]
    with torch.no_grad():
        p = torch.softmax(model(torch.from_numpy(prompt)[None])[0, -1].double(), -1).numpy()
    counts = np.bincount(tokens, minlength=len(p))
    assert np.all(np.abs(counts - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)) + 1)


def test_greedy_samples_are_computed_once_and_alike(tokenizer: Tokenizer) -> None:
    found = write(tiny_model("pythia-14m"), make_prompts(2), tokenizer, max_new_tokens=3, n_samples=3)
    assert all(len(samples) == 3 and samples[0] == samples[2] for samples in found)


def test_lora_and_a_module_around_the_model(tokenizer: Tokenizer) -> None:
    method = LoRA(r=2)
    model = method.build(tiny_config("Llama-3.2-1B"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    prompts = make_prompts(4)
    found = write(nn.ModuleDict({"gpt": model}), prompts, tokenizer, max_new_tokens=8)
    assert [samples[0] for samples in found] == [greedy(model.eval(), p, 8, tokenizer) for p in prompts]


def test_it_leaves_no_trace(tokenizer: Tokenizer) -> None:
    model = tiny_model("Gemma-3-1b-it").train()
    model.transformer.h[0].eval()

    def state() -> list[object]:
        modules = [(n, m.training, sorted(m.__dict__), sorted(m._modules)) for n, m in model.named_modules()]
        tensors = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
        caches = [block.attn.kv_cache for block in model.transformer.h]
        return [modules, {n: t.tolist() for n, t in tensors.items()}, caches, model.mask_cache, model.max_seq_length]

    before, random_state, numpy_state = state(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    write(model, make_prompts(3), tokenizer, max_new_tokens=5, temperature=1.0)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiled_model_is_not_compiled_again(tokenizer: Tokenizer) -> None:
    model, prompts = tiny_model("pythia-14m"), make_prompts(3)
    expected = write(model, prompts, tokenizer, max_new_tokens=5)
    calls = []
    model.compile(backend=lambda graph, inputs: calls.append(graph) or graph.forward)
    assert write(model, prompts, tokenizer, max_new_tokens=5) == expected
    assert not calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"n_samples": 0}, "n_samples = 0"),
        ({"stop": ("",)}, "stop = "),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        write(tiny_model("pythia-14m"), make_prompts(1), tokenizer, **options)


def test_bad_prompts_and_models_are_named(tokenizer: Tokenizer) -> None:
    model: GPT = tiny_model("pythia-14m")
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens: expected 1 to 64"):
        write(model, [np.array([1]), np.array([], dtype=np.int64)], tokenizer)
    with pytest.raises(ValueError, match="prompt 0 has 65 tokens"):
        write(model, [np.ones(65, dtype=np.int64)], tokenizer)
    with pytest.raises(ValueError, match="model = Linear"):
        write(nn.Linear(1, 1), [np.array([1])], tokenizer)
    assert write(model, [], tokenizer) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_id_that_no_token_has_is_never_written(temperature: float, tmp_path: Path) -> None:
    """Rows of a padded vocabulary, and a gap within it, are the model's likeliest by far."""
    folder = tiny_tokenizer(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {text: i + (i >= 200) for text, i in content["model"]["vocab"].items()}
    content["added_tokens"] = [{**token, "id": token["id"] + (token["id"] >= 200)} for token in content["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(folder)
    without = {200, *range(tokenizer.vocab_size, 320)}
    assert set(tokenizer.ids_without_token(320)) == without
    model = tiny_model("pythia-14m", vocab_size=320, lm_head_bias=True)
    with torch.no_grad():
        model.lm_head.bias.zero_()[list(without)] = 50.0
    found = write(model, make_prompts(5), tokenizer, max_new_tokens=10, temperature=temperature)
    assert not {token for samples in found for token in samples[0].tokens} & without
    assert any(samples[0].tokens for samples in found)
