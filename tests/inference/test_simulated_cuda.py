"""Scores and texts of a model on CUDA are those of the CPU; see ``tests/simulated_cuda.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import generate
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.inference.score import score_sequences
from tests.model.tiny_models import tiny_model, tiny_tokenizer
from tests.simulated_cuda import simulated_cuda, to_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FAMILIES = ["pythia-14m", "Llama-3.2-1B"]


def sequences(n: int) -> list[np.ndarray]:
    """Some of which begin alike."""
    rng = np.random.default_rng(0)
    start = rng.integers(1, 90, 9)
    return [np.concatenate([start[: 3 * (i % 4)], rng.integers(1, 90, int(rng.integers(4, 12)))]) for i in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_cpu(family: str) -> None:
    asked = [(tokens, np.arange(len(tokens)) >= 2) for tokens in sequences(9)]
    with torch.no_grad():
        expected = score_sequences(tiny_model(family), asked, batch_tokens=100, device=CPU)
        with simulated_cuda():
            found = score_sequences(to_cuda(tiny_model(family)), asked, batch_tokens=100, device=CUDA)
    torch.testing.assert_close(found.nll, expected.nll, rtol=1e-5, atol=1e-5)
    assert (found.n_hits == expected.n_hits).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "n_samples": 3}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_the_cpu(family: str, options: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = Tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    how = GenerationOptions(max_new_tokens=10, stop=("7",), **options)
    expected = generate(tiny_model(family), sequences(7), how, tokenizer, batch_tokens=120, device=CPU)
    with simulated_cuda():
        model = to_cuda(tiny_model(family))
        found = generate(model, sequences(7), how, tokenizer, batch_tokens=120, device=CUDA)
    assert found == expected
