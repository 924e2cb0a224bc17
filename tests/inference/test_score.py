from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.kl import forward_kl, log_probabilities
from lit_consistency.inference.score import plan_batches, score_items

V = 7
CPU = torch.device("cpu")


class Bigram(nn.Module):
    """Logits that depend on the current token alone, so that padding and batching must not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def make_items(n: int = 9) -> list[Item]:
    rng = np.random.default_rng(0)
    items = []
    for _ in range(n):
        candidates = []
        for _ in range(rng.integers(1, 4)):
            length = int(rng.integers(2, 12))
            supervised = np.arange(length) >= rng.integers(1, length)
            candidates.append(Candidate(rng.integers(0, V, length), supervised, length))
        items.append(Item(candidates, int(rng.integers(len(candidates)))))
    return items


def by_hand(model: Bigram, candidate: Candidate) -> tuple[float, int, int]:
    """One token after the other, written another way."""
    nll, n, hits = 0.0, 0, 0
    for i in range(1, len(candidate.tokens)):
        if candidate.supervised[i]:
            row = model.table.detach()[int(candidate.tokens[i - 1])].double()
            nll -= float(torch.log(torch.exp(row) / torch.exp(row).sum())[int(candidate.tokens[i])])
            n += 1
            hits += int(row.argmax()) == int(candidate.tokens[i])
    return nll, n, hits


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_scores_equal_a_loop_over_tokens_for_any_budget(batch_tokens: int) -> None:
    model, items = Bigram(), make_items()
    with torch.no_grad():
        scores = score_items(model, items, batch_tokens=batch_tokens, device=CPU)
    expected = [by_hand(model, c) for item in items for c in item.candidates]
    assert scores.nll.tolist() == pytest.approx([e[0] for e in expected], rel=1e-6)
    assert scores.n_tokens.tolist() == [e[1] for e in expected]
    assert scores.n_hits.tolist() == [e[2] for e in expected]
    assert scores.n_candidates.tolist() == [len(item.candidates) for item in items]


def test_batches_keep_the_budget_and_hold_every_row_once() -> None:
    lengths = [3, 9, 1, 7, 7, 2, 30]
    batches = plan_batches(lengths, 16)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= 16


def test_kl_of_a_model_from_itself_is_zero_and_from_another_positive() -> None:
    model, items = Bigram(), make_items()
    with torch.no_grad():
        base = log_probabilities(model, items, n_positions=10, batch_tokens=20, device=CPU)
        model.table[0, 0] += 3.0
        other = log_probabilities(model, items, n_positions=10, batch_tokens=20, device=CPU)
    assert base.shape == (10, V)
    assert forward_kl(base, base) == 0.0
    assert forward_kl(base, other) > 0.0


def test_kl_equals_its_definition_with_impossible_tokens() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]])
    q = torch.tensor([[0.25, 0.5, 0.125, 0.125]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.5)
    assert forward_kl(p.log(), q.log()) == pytest.approx(expected)


def test_positions_do_not_depend_on_the_budget() -> None:
    model, items = Bigram(), make_items()
    with torch.no_grad():
        tables = [log_probabilities(model, items, n_positions=15, batch_tokens=n, device=CPU) for n in (1, 1000)]
    assert torch.equal(tables[0], tables[1])


class LargestFloat32(TorchDispatchMode):
    """Counts the elements of the largest float32 tensor that any operation returns."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.n = max(self.n, out.numel())
        return out


def test_log_probabilities_raise_only_supervised_positions_to_float32() -> None:
    model = Bigram().bfloat16()
    tokens = np.arange(12) % V
    items = [Item([Candidate(tokens, np.arange(12) >= n, 1)], 0) for n in (9, 11)]
    with torch.no_grad(), LargestFloat32() as largest:
        found = log_probabilities(model, items, n_positions=4, batch_tokens=100, device=CPU)
    assert largest.n == 4 * V
    rows = tokens[[8, 9, 10, 10]]
    assert torch.equal(found, torch.log_softmax(model.table.detach()[rows].float(), -1))


class Fussy(Bigram):
    """As LitGPT's models, refuses to be fed nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.size(1) > 0
        return super().forward(tokens)


def test_candidates_without_a_supervised_token_count_nothing() -> None:
    model, items = Fussy(), make_items(3)
    alone = Candidate(np.array([3]), np.array([True]), 1)
    unsupervised = Candidate(np.array([3, 4, 5]), np.zeros(3, dtype=bool), 3)
    with torch.no_grad():
        usual = score_items(model, items, batch_tokens=20, device=CPU)
        more = score_items(model, [Item([alone, unsupervised], 0), *items], batch_tokens=20, device=CPU)
        nothing = score_items(model, [Item([alone], 0)], batch_tokens=20, device=CPU)
        table = log_probabilities(model, [Item([alone], 0), *items], n_positions=3, batch_tokens=1, device=CPU)
    assert (more.nll[:2].tolist(), more.n_tokens[:2].tolist(), more.n_hits[:2].tolist()) == ([0, 0], [0, 0], [0, 0])
    assert torch.equal(more.nll[2:], usual.nll)
    assert nothing.n_tokens.tolist() == [0]
    assert table.shape == (3, V)
