"""Shared beginnings, masks, packed rows and a head in blocks give what one candidate a row gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_consistency.inference.head import Head, Targets, score_targets
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.score import document_model, score_items
from lit_consistency.methods import LoRA
from tests.model.tiny_models import tiny_config, tiny_model
from tests.reference.scores import plain_scores

CPU = torch.device("cpu")
FAMILIES = {
    "pythia-14m": {},
    "Llama-3.2-1B": {"n_query_groups": 2},
    "Qwen3-0.6B": {},
    "OLMo-2-1124-7B": {},
    "Mixtral-8x7B-v0.1": {},
    "SmolLM2-135M": {"final_logit_softcapping": 3.0, "scale_embeddings": True},
    # no mask of ours can be given to these
    "Gemma-2-2b": {"n_query_groups": 2, "sliding_window_size": 8},
    "Gemma-3-1b-it": {"n_query_groups": 2, "sliding_window_size": 8},
}


def few_shot(n: int = 6, head: int = 30, vocabulary: int = 96) -> list[Item]:
    """Questions behind one long common head; answers of one token, equal ones, one that continues another."""
    rng = np.random.default_rng(0)
    shots = rng.integers(0, vocabulary, head)
    items = []
    for i in range(n):
        prompt = np.concatenate([shots, rng.integers(0, vocabulary, 3 + i % 3)])
        answers = [rng.integers(0, vocabulary, k) for k in (1, 1, 4, 5)]
        answers += [answers[2], np.concatenate([answers[2], answers[0]]), np.concatenate([answers[3][:2], answers[0]])]
        items.append(Item([_candidate(prompt, answer) for answer in answers], i % len(answers)))
    return items


def _candidate(prompt: np.ndarray, answer: np.ndarray) -> Candidate:
    tokens = np.concatenate([prompt, answer])
    return Candidate(tokens, np.arange(len(tokens)) >= len(prompt), len(answer))


def texts(n: int = 5) -> list[Item]:
    rng = np.random.default_rng(1)
    found = [rng.integers(0, 96, length) for length in rng.integers(2, 64, n)]
    return [Item([Candidate(t, np.arange(len(t)) > 0, len(t))], 0) for t in found]


def check(model: nn.Module, items: list[Item], batch_tokens: int = 1000, reference: nn.Module | None = None) -> None:
    scores = score_items(model, items, batch_tokens=batch_tokens, device=CPU)
    expected = plain_scores(reference or model, items)
    assert scores.nll.tolist() == pytest.approx([e[0] for e in expected], rel=1e-5, abs=1e-5)
    assert scores.n_tokens.tolist() == [e[1] for e in expected]
    assert scores.n_hits.tolist() == [e[2] for e in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_candidate_a_row(family: str) -> None:
    model = tiny_model(family, **FAMILIES[family]).eval()
    check(model, few_shot() + texts())


@pytest.mark.parametrize("batch_tokens", [1, 50, 120, 10_000])
def test_scores_do_not_depend_on_the_budget(batch_tokens: int) -> None:
    check(tiny_model("pythia-14m").eval(), few_shot() + texts(), batch_tokens)


@pytest.mark.parametrize("head", [False, True])
def test_an_adapted_model_is_scored_with_its_adapters(head: bool) -> None:
    config = tiny_config("Llama-3.2-1B", n_query_groups=2)
    method = LoRA(r=2, head=head)
    model = method.build(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    method.prepare(model)
    check(model.eval(), few_shot())


class Wrapped(LightningModule):
    """As LitLanguageModel holds its model."""

    def __init__(self, gpt: nn.Module) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gpt(tokens)


class Around(nn.Module):
    """As DistributedDataParallel holds its module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_the_model_is_found_in_what_is_around_it() -> None:
    model = tiny_model("pythia-14m").eval()
    around = Around(Wrapped(model))
    assert document_model(around) is model
    assert document_model(nn.Linear(2, 2)) is None
    check(around, few_shot(2), reference=model)


class Elements(TorchDispatchMode):
    """Counts the largest result, and how many tokens were embedded."""

    largest = 0
    fed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.largest = max(self.largest, out.numel())
        if func is torch.ops.aten.embedding.default:
            self.fed += args[1].numel()
        return out


def test_shared_beginnings_are_fed_a_few_times_only() -> None:
    model, items = tiny_model("pythia-14m").eval(), few_shot(6, head=40)
    with Elements() as seen:
        score_items(model, items, batch_tokens=10_000, device=CPU)
    one_a_row = sum(len(c.tokens) - 1 for item in items for c in item.candidates)
    assert seen.fed < one_a_row / 8


def test_answers_of_one_token_are_read_off_the_prompt() -> None:
    model, items = tiny_model("pythia-14m").eval(), few_shot(1)
    item = Item([c for c in items[0].candidates if c.supervised.sum() == 1], 0)
    with Elements() as seen:
        score_items(model, [item], batch_tokens=10_000, device=CPU)
    assert seen.fed == len(item.candidates[0].tokens) - 1


def test_unrelated_texts_stand_alone_and_without_a_mask() -> None:
    model, seen = tiny_model("pythia-14m").eval(), []
    model.transformer.h[0].register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    score_items(model, texts(), batch_tokens=10_000, device=CPU)
    assert seen
    assert all(mask is None for mask in seen)


def test_logits_are_never_there_all_at_once() -> None:
    model, items = tiny_model("pythia-14m", vocab_size=4000).eval(), texts(20)
    n_places = sum(len(item.candidates[0].tokens) - 1 for item in items)
    with Elements() as seen:
        score_items(model, items, batch_tokens=10_000, device=CPU)
    # the embedding itself has 4000 x 32 elements; all logits of the batch have 4000 x n_places
    assert seen.largest <= 768 * 512 < 4000 * n_places / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_blocks", [True, False])
def test_of_equal_logits_only_the_first_is_the_first_choice(in_blocks: bool, dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 1300)
    logits[1, [3, 700, 1200]] = 2.0
    logits[2, [600, 601]] = -1.0
    logits[3, 1299] = 1.0
    of = torch.arange(4).repeat_interleave(6)
    tokens = torch.tensor([0, 3, 601, 700, 1200, 1299]).repeat(4)
    head = Head(1300, lambda rows, start, end: rows[:, start:end].to(dtype), in_blocks)
    nll, hits = score_targets(logits, Targets(torch.arange(4), of, tokens), head)
    assert hits.tolist() == (logits.argmax(-1)[of] == tokens).tolist()
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, -torch.log_softmax(logits, -1)[of, tokens], rtol=1e-6, atol=1e-6)


def test_logits_that_are_not_numbers_are_no_score_and_no_hit() -> None:
    logits = torch.zeros(2, 600)
    logits[0, 5] = torch.nan
    head = Head(600, lambda rows, start, end: rows[:, start:end], True)
    nll, hits = score_targets(logits, Targets(torch.arange(2), torch.tensor([0, 1]), torch.tensor([5, 0])), head)
    assert nll.isnan().tolist() == [True, False]
    assert hits.tolist() == [False, True]


@pytest.mark.parametrize("second", [2, 1101])
def test_impossible_tokens_and_huge_logits_are_exact(second: int) -> None:
    logits = torch.full((1, 1200), -torch.inf)
    logits[0, 1100], logits[0, second] = 1e4, 1e4 - 1
    head = Head(1200, lambda rows, start, end: rows[:, start:end], True)
    places = Targets(torch.tensor([0]), torch.zeros(3, dtype=torch.int64), torch.tensor([second, 1100, 7]))
    nll, hits = score_targets(logits, places, head)
    torch.testing.assert_close(nll, -torch.log_softmax(logits, -1)[0, [second, 1100, 7]])
    assert hits.tolist() == [False, True, False]


def test_a_text_longer_than_the_model_allows_is_refused() -> None:
    tokens = np.arange(70) % 96
    item = Item([Candidate(tokens, np.arange(70) > 0, 1)], 0)
    with pytest.raises(ValueError, match="row of 69 tokens: expected at most block_size = 64"):
        score_items(tiny_model("pythia-14m"), [item], batch_tokens=100, device=CPU)
