"""Distance of the model's predictions from the base's, in nats: KL(base || model) and KL(model || base).

Shenfeld, Pari & Agrawal, "RL's Razor" (arXiv 2509.04259), find that the forward KL on the new task predicts forgetting
better than any distance between weights. Forward, the base's likely tokens count, and what the model has ruled out is
dear; in reverse, what the model has come to say and the base did not. The full distributions are compared at the
supervised positions, not only the target's probability. Given up: text that the model itself writes; both divergences
are taken along the right answers.

``KLToBase`` keeps what the base predicts in float32, as it was computed, and never holds more of the model's
predictions than some positions of a batch. Where all positions are more than its memory holds, it takes as many as
fit, spread evenly over all items, and ``n_available`` says how many there are.

Shapes: P positions, V vocabulary, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_consistency.inference.head import read_log_probs
from lit_consistency.inference.items import Item
from lit_consistency.inference.score import document_model, pad, plan_batches, shift
from lit_consistency.model import IGNORE

MEMORY = 1 << 30
"""Bytes of main memory that the base's predictions may take, on all ranks together: 5,368 positions of 50k tokens."""
AT_ONCE = 1 << 19
"""Probabilities that are compared at a time on a CPU: they stay in its cache, three times as fast as 2,668 x 50k."""
GOLDEN = (5**0.5 - 1) / 2


class Positions(NamedTuple):
    """Supervised positions of the right answers of some items.

    Attributes:
        rows: of each item that has some, tokens (T,) and targets (T,), -100 where nothing is compared.
        items: (P,) int64, the item of each position, in the order of the rows.
        n_available: how many there are to choose from.
    """

    rows: list[tuple[Tensor, Tensor]]
    items: Tensor
    n_available: int


class KLTerms(NamedTuple):
    """Divergences in nats at every position, the same on every rank.

    Attributes:
        forward: (P,) float64, KL(base || model).
        reverse: (P,) float64, KL(model || base).
        items: (P,) int64, the item of each position: positions of one item are not independent.
    """

    forward: Tensor
    reverse: Tensor
    items: Tensor

    def by_item(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every item with a position: sums of both (I,) float64, and number of positions (I,) int64."""
        present, members, counts = self.items.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(2, len(present), dtype=torch.float64)
        sums.index_add_(1, members, torch.stack([self.forward, self.reverse]))
        return sums[0], sums[1], counts


class KLToBase:
    """Divergence of a model from its base at fixed positions.

    Args:
        items: what the distributions are compared along: their right answers.
        n_vocab: V, of the base.
        n_positions: how many positions are taken; None takes all that ``memory`` holds.
        memory: bytes of the base's predictions, ``4 * P * V``, on all ranks together.
        batch_tokens: budget of padded tokens in one forward.
        device: where the models are.

    Attributes:
        n_positions: P, how many are taken.
        n_available: how many there are.

    Raises:
        ValueError: ``n_positions`` is below 1.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        n_vocab: int,
        n_positions: int | None = None,
        memory: int = MEMORY,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        if n_positions is not None and n_positions < 1:
            raise ValueError(f"n_positions = {n_positions}: expected at least 1, or null for all that fit")
        most = max(memory // (4 * n_vocab), 1) if n_positions is None else n_positions
        self.positions = choose_positions(items, most)
        self.device = device
        self.batches = plan_batches([len(tokens) for tokens, _ in self.positions.rows], batch_tokens)
        self.n_positions, self.n_available = len(self.positions.items), self.positions.n_available
        counts = torch.tensor([int((targets != IGNORE).sum()) for _, targets in self.positions.rows], dtype=torch.int64)
        self._ends = counts.cumsum(0).tolist()
        # (batch, number of its positions that came before) -> log-probabilities of the next ones
        self._base: dict[tuple[int, int], Tensor] = {}

    def read_base(self, model: nn.Module) -> None:
        """Keep what the base predicts; the caller has put it into evaluation mode."""
        self._base = {}

        def keep(batch: int, log_probs: Tensor, first: int) -> None:
            self._base[batch, first] = log_probs.cpu()

        self._read(model, keep)

    def terms(self, model: nn.Module) -> KLTerms:
        """Compare a model with the base.

        Args:
            model: in evaluation mode, with the base's vocabulary.

        Raises:
            ValueError: it has another vocabulary; a base that does not know a token has no probability for it.
        """
        sums = torch.zeros(2, self.n_positions, dtype=torch.float64)

        def compare(batch: int, log_probs: Tensor, first: int) -> None:
            base = self._base[batch, first].to(log_probs.device)
            _check_shapes(base, log_probs)
            at = self._members(batch)[first : first + len(log_probs)]
            sums[0, at] = kl_per_position(base, log_probs).cpu()
            sums[1, at] = kl_per_position(log_probs, base).cpu()

        self._read(model, compare)
        if dist.is_initialized() and dist.get_world_size() > 1:
            shared = sums.to(self.device)  # collectives need the model's device
            dist.all_reduce(shared)
            sums = shared.cpu()
        return KLTerms(sums[0], sums[1], self.positions.items)

    def terms_of_base(self) -> KLTerms:
        """What ``terms`` gives of the base itself, whose terms are all exactly zero; no forward is made."""
        forward, reverse = torch.zeros(2, self.n_positions, dtype=torch.float64)
        return KLTerms(forward, reverse, self.positions.items)

    @torch.no_grad()
    def _read(self, model: nn.Module, consume: Callable[[int, Tensor, int], None]) -> None:
        """Forward this rank's batches; an idle rank repeats its last one, as a sharded model needs all ranks."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for i in range(-(-len(self.batches) // world_size)):
            mine = i * world_size + rank
            batch = min(mine, len(self.batches) - 1)
            tokens, targets = pad([self.positions.rows[row] for row in self.batches[batch]], self.device)
            indices = (targets != IGNORE).flatten().nonzero()[:, 0].cpu()
            wanted = mine < len(self.batches)
            read_log_probs(
                document_model(model) or model,
                tokens,
                indices,
                functools.partial(consume, batch) if wanted else lambda log_probs, first: None,
            )

    def _members(self, batch: int) -> Tensor:
        """Indices of the batch's positions among all."""
        starts = [0, *self._ends]
        return torch.cat([torch.arange(starts[row], self._ends[row]) for row in self.batches[batch]])


def choose_positions(items: Sequence[Item], n_positions: int | None = None) -> Positions:
    """Supervised positions of the right answers, spread evenly over all items; a function of the arguments alone.

    All positions, item after item, are cut into as many stretches as there are positions to choose, and one of each is
    taken. Which one of its stretch follows the multiples of the golden ratio: a fixed step would take the same token
    of every item where all items have one length.

    Args:
        items: in the order in which they are counted.
        n_positions: at most so many; None takes all.
    """
    answers = [item.candidates[item.gold] for item in items]
    # token i + 1 is predicted at position i: the first one never is
    at = [np.flatnonzero(answer.supervised[1:]) for answer in answers]
    counts = torch.tensor([len(places) for places in at], dtype=torch.int64)
    n_available = int(counts.sum())
    n = n_available if n_positions is None else min(n_positions, n_available)
    edges = torch.arange(n + 1) * n_available // max(n, 1)
    offsets = (torch.arange(n, dtype=torch.float64) * GOLDEN) % 1.0 * edges.diff()
    chosen = torch.zeros(n_available, dtype=torch.bool)
    chosen[edges[:-1] + offsets.long()] = True
    rows, owners = [], []
    starts = [0, *counts.cumsum(0).tolist()]
    taken = chosen.numpy()
    for i, (answer, places) in enumerate(zip(answers, at, strict=True)):
        places = places[taken[starts[i] : starts[i + 1]]]
        if len(places):
            n_fed = int(places[-1]) + 1  # what comes behind is not needed
            tokens = np.asarray(answer.tokens, dtype=np.int64)
            targets = np.full(n_fed, IGNORE, dtype=np.int64)
            targets[places] = tokens[places + 1]
            rows.append((torch.from_numpy(tokens[:n_fed].copy()), torch.from_numpy(targets)))
            owners += [i] * len(places)
    return Positions(rows, torch.tensor(owners, dtype=torch.int64), n_available)


def log_probabilities(
    forward: Callable[[Tensor], Tensor],
    items: Sequence[Item],
    *,
    n_positions: int,
    batch_tokens: int,
    device: torch.device,
) -> Tensor:
    """Log-probabilities (P, V) float32, on the CPU, at the first ``n_positions`` positions of the right answers.

    Args:
        forward: maps tokens (B, T) to logits (B, T, V).
        items: the task; items are taken in order until there are enough positions.
        n_positions: how many distributions to keep; memory is ``4 * n_positions * V`` bytes.
        batch_tokens: budget of padded tokens in one forward.
        device: where the model is.
    """
    rows = list(_until(items, n_positions))
    of_row: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in plan_batches([len(tokens) for tokens, _ in rows], batch_tokens):
        tokens, targets = pad([rows[i] for i in batch], device)
        taken = targets != IGNORE
        # chosen first: a float32 copy of all logits would be the largest tensor of the evaluation
        log_probs = torch.log_softmax(forward(tokens)[taken].float(), dim=-1)
        for row, table in zip(batch, log_probs.split(taken.sum(-1).tolist()), strict=True):
            of_row[row] = table.cpu()
    return torch.cat(of_row)[:n_positions]


def kl_per_position(p: Tensor, q: Tensor) -> Tensor:
    r"""(P,) float64, KL(p || q) in nats.

    .. math::
        \sum_{v=1}^{V} p_v (\log p_v - \log q_v)

    Args:
        p: (P, V) log-probabilities; minus infinity where a token is impossible.
        q: (P, V') log-probabilities with V' >= V; what q gives to tokens beyond V is lost to it.
    """
    n_rows = max(AT_ONCE // p.size(1), 1) if p.is_cpu else max(len(p), 1)
    sums = []
    for p_rows, q_rows in zip(p.split(n_rows), q[:, : p.size(1)].split(n_rows), strict=True):
        terms = torch.where(p_rows > -torch.inf, p_rows.exp() * (p_rows - q_rows), 0.0)
        sums.append(terms.sum(-1, dtype=torch.float64))
    return torch.cat(sums)


def forward_kl(base: Tensor, model: Tensor) -> float:
    """Mean of KL(base || model) over positions, in nats, from log-probabilities as ``kl_per_position`` takes them."""
    return float(kl_per_position(base, model).mean())


def reverse_kl(base: Tensor, model: Tensor) -> float:
    """Mean of KL(model || base) over positions, in nats; infinite where the model says what the base rules out.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(base, model)
    return forward_kl(model, base)


def _check_shapes(base: Tensor, model: Tensor) -> None:
    """ValueError where they differ: a base that does not know a token has no probability for it."""
    if base.shape != model.shape:
        raise ValueError(f"model has shape {list(model.shape)}: expected that of the base, {list(base.shape)}")


def _until(items: Sequence[Item], n_positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    n_taken = 0
    for item in items:
        if n_taken >= n_positions:
            return
        answer = item.candidates[item.gold]
        tokens, targets = shift(answer.tokens, answer.supervised)
        n_supervised = int((targets != IGNORE).sum())
        if n_supervised:  # nothing to compare otherwise, and perhaps not even a token to feed
            n_taken += n_supervised
            yield tokens, targets
