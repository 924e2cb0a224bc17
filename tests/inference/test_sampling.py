from __future__ import annotations

import numpy as np
import torch

from lit_consistency.inference import sampling
from lit_consistency.inference.sampling import next_tokens, uniform_numbers


def by_hand(logits: list[float], u: float, temperature: float, top_p: float) -> int:
    """Nucleus and inverse by a loop over the tokens, in float64."""
    weights = [np.exp((x - max(logits)) / temperature) for x in logits]
    p = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(p)), key=lambda i: -p[i]) if top_p < 1 else list(range(len(p)))
    kept: list[int] = []
    for i in order:
        kept.append(i)
        if top_p < 1 and sum(p[j] for j in kept) >= top_p:
            break
    target, passed = u * sum(p[i] for i in kept), 0.0
    for i in kept:
        passed += p[i]
        if passed > target:
            return i
    return kept[-1]


def test_draws_equal_a_loop_over_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.9), (2.0, 0.5), (1.0, 0.01)):
        logits = torch.randn(64, 37, generator=generator) * 3
        uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
        found = next_tokens(logits, uniforms, temperature, top_p).tolist()
        rows = zip(logits.tolist(), uniforms.tolist(), strict=True)
        assert found == [by_hand(row, u, temperature, top_p) for row, u in rows]


def test_a_nucleus_wider_than_the_first_look_is_found_all_the_same(monkeypatch) -> None:
    logits, uniforms = torch.zeros(3, 90), torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    logits += torch.linspace(0, 0.1, 90)
    whole = next_tokens(logits, uniforms, 1.0, 0.95)
    monkeypatch.setattr(sampling, "N_LIKELIEST", 4)
    assert torch.equal(next_tokens(logits, uniforms, 1.0, 0.95), whole)


def test_the_greatest_uniform_number_draws_a_possible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    greatest = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert next_tokens(logits, greatest, 1.0, 1.0).tolist() == [1]


def test_greedy_takes_the_first_of_the_greatest() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert next_tokens(logits, None, 0.0, 1.0).tolist() == [1, 0]
    assert next_tokens(logits.bfloat16(), None, 0.0, 1.0).tolist() == [1, 0]


def test_uniform_numbers_are_a_function_of_seed_prompt_and_sample() -> None:
    first = uniform_numbers(0, 1, 2, 10)
    assert np.array_equal(first, uniform_numbers(0, 1, 2, 10))
    assert np.array_equal(first[:4], uniform_numbers(0, 1, 2, 4))
    others = [uniform_numbers(*key, 10) for key in ((1, 1, 2), (0, 2, 1), (0, 2, 2), (0, 1, 3))]
    assert not any(np.array_equal(first, other) for other in others)
