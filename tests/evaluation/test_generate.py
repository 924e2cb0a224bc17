from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_consistency.data.tokenizer import Tokenizer
from lit_consistency.evaluation.generate import generate
from lit_consistency.evaluation.task import GenerationOptions
from tests.model.tiny_models import tiny_model, tiny_tokenizer
from tests.reference.generation import greedy

CPU = torch.device("cpu")
FAMILIES = [
    "pythia-14m",
    "Llama-3.2-1B",
    "Qwen3-0.6B",
    "OLMo-2-1124-7B",
    "Mixtral-8x7B-v0.1",
    "SmolLM2-135M",
    "Gemma-2-2b",
    "Gemma-3-1b-it",
    "falcon-7b",
    "phi-1_5",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def prompts_of(n: int, vocab: int = 90, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab, int(rng.integers(1, longest))) for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_a_loop_without_cache(family: str, tokenizer: Tokenizer) -> None:
    model, prompts = tiny_model(family), prompts_of(7)
    found = generate(model, prompts, GenerationOptions(max_new_tokens=15), tokenizer, batch_tokens=120, device=CPU)
    assert [samples[0] for samples in found] == [greedy(model, p, 15, tokenizer) for p in prompts]
