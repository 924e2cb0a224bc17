from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_consistency.inference.kv_cache import DecodingCache
from lit_consistency.model import GPT
from tests.model.tiny_models import tiny_model

# query groups, parallel residuals, normalized queries, experts, one key for all heads, soft-capping and windows
FAMILIES = {
    "pythia-14m": {},
    "Llama-3.2-1B": {},
    "Qwen3-0.6B": {},
    "OLMo-2-1124-7B": {},
    "Mixtral-8x7B-v0.1": {},
    "SmolLM2-135M": {},
    "falcon-7b": {},
    "Gemma-2-2b": {"sliding_window_size": 7},
    "Gemma-3-1b-it": {"sliding_window_size": 7},
}
LENGTHS = [5, 12, 9]
N_NEW = 6


@torch.no_grad()
def uncached(model: GPT, row: Tensor) -> Tensor:
    return model(row[None])[0]


@pytest.mark.parametrize("n_prefix", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_equal_the_uncached_forward(family: str, n_prefix: int) -> None:
    model = tiny_model(family, **FAMILIES[family]).double()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 90, (len(LENGTHS), max(LENGTHS) + N_NEW), generator=generator)
    rows[:, :n_prefix] = rows[0, :n_prefix]
    lengths = torch.tensor(LENGTHS)
    cache = DecodingCache(model, rows=4, slots=20)
    with torch.no_grad(), cache.attached():
        if n_prefix:
            cache.read_prefix(rows[0, :n_prefix])
        prompts = [row[n_prefix:n] for row, n in zip(rows, LENGTHS, strict=True)]
        tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        steps = [cache.read_prompts(tokens, lengths - n_prefix - 1, 0)]
        for i in range(N_NEW):
            at = lengths - n_prefix + i
            steps.append(cache.read_tokens(rows[torch.arange(3), lengths + i], at, int(at.max()) + 1))
    for i, (row, n) in enumerate(zip(rows, LENGTHS, strict=True)):
        logits = torch.stack([step[i] for step in steps])
        expected = uncached(model, row[: n + N_NEW])[n - 1 :]
        # under soft-capping LitGPT takes the softmax in float32 whatever the model is
        error = 2e-6 if model.config.attention_logit_softcapping else 1e-12
        torch.testing.assert_close(logits, expected, rtol=0, atol=error * float(expected.abs().max()))


def test_rows_can_be_copied_moved_and_given_other_sizes() -> None:
    model, generator = tiny_model("Llama-3.2-1B").double(), torch.Generator().manual_seed(0)
    rows = torch.randint(1, 90, (2, 8), generator=generator)
    cache = DecodingCache(model, rows=2, slots=8)
    with torch.no_grad(), cache.attached():
        cache.read_prompts(rows, torch.tensor([7, 7]), 0)
        cache.resize(4, 12)
        cache.copy_rows(torch.tensor([0, 1]), 2, 8)  # 0 1 0 1
        cache.move(3, 0, 8)  # 1 1 0 1
        new = torch.tensor([3, 3, 3, 3])
        logits = cache.read_tokens(new, torch.tensor([8, 8, 8, 8]), 9)
    expected = torch.stack([uncached(model, torch.cat([row, new[:1]]))[-1] for row in rows])
    torch.testing.assert_close(logits, expected[[1, 1, 0, 1]], rtol=0, atol=1e-12)


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = tiny_model("pythia-14m")
    model.set_kv_cache(batch_size=1)
    before = [(dict(block.attn.__dict__), dict(block.attn._modules)) for block in model.transformer.h]
    cache = DecodingCache(model, rows=1, slots=4)
    with pytest.raises(IndexError), torch.no_grad(), cache.attached():
        cache.read_prompts(torch.tensor([[1000]]), torch.tensor([0]), 0)
    after = [(dict(block.attn.__dict__), dict(block.attn._modules)) for block in model.transformer.h]
    assert before == after
    assert all(layer.keys is None and layer.prefix is None for layer in cache.layers)
