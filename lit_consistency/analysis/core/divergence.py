"""How the predictions of two models differ at every scored position of a text: both divergences, and first choices.

The divergences are those of inference/kl.py, which keeps what the base predicts at fixed positions; here nothing is
kept beyond one batch, so that a text may be of any length and all its positions count. Both models read a batch, the
base first; a batch is small enough for ``ELEMENTS`` of its log-probabilities (one long row may hold more).

Shapes: P positions, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_consistency.analysis.core.analysis import Advance
from lit_consistency.inference.head import ELEMENTS, read_log_probs
from lit_consistency.inference.kl import kl_per_position
from lit_consistency.inference.score import Candidate, document_model, pad, plan_batches
from lit_consistency.model import IGNORE


class Divergences(NamedTuple):
    """All scored positions, row after row; each (P,), on the CPU.

    Attributes:
        rows: int64, the row of the text.
        columns: int64, the last token that the models see there.
        targets: int64, the true next token.
        forward: float64, KL(base || model) in nats.
        reverse: float64, KL(model || base).
        base_top: int64, the base's most probable token.
        model_top: int64, the model's.
        base_top_log_prob: float64, the base's, of its own.
        model_top_log_prob: float64, the model's, of its own.
        base_log_prob: float64, the base's, of the true token.
        model_log_prob: float64, the model's, of the true token.
    """

    rows: Tensor
    columns: Tensor
    targets: Tensor
    forward: Tensor
    reverse: Tensor
    base_top: Tensor
    model_top: Tensor
    base_top_log_prob: Tensor
    model_top_log_prob: Tensor
    base_log_prob: Tensor
    model_log_prob: Tensor


def divergences(
    base: nn.Module,
    model: nn.Module,
    rows: Sequence[Candidate],
    *,
    n_vocab: int,
    batch_tokens: int,
    device: torch.device,
    advance: Advance,
) -> Divergences:
    """Compare two models on a text.

    Args:
        base: in evaluation mode.
        model: likewise, of the same vocabulary.
        rows: tokens (T,) and targets (T,), -100 where nothing is compared.
        n_vocab: V.
        batch_tokens: budget of padded tokens in one forward.
        device: where both are.
        advance: told the share of all batches.
    """
    scored = [i for i, (_, targets) in enumerate(rows) if bool((targets != IGNORE).any())]
    at_once = max(min(batch_tokens, ELEMENTS // n_vocab), 1)
    batches = [[scored[i] for i in batch] for batch in plan_batches([len(rows[i][0]) for i in scored], at_once)]
    parts = []
    for batch in batches:
        tokens, targets = pad([rows[i] for i in batch], device)
        parts.append((*_places(batch, targets.cpu()), *_compare(base, model, tokens, targets)))
        advance(1 / len(batches))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    # row after row, whichever batch they were in
    order = (joined[0] * (int(joined[1].max()) + 1) + joined[1]).argsort()
    return Divergences(*(column[order] for column in joined))


def _places(batch: Sequence[int], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and targets of the scored positions of a batch, in the order of its flattened positions."""
    members, columns = (targets != IGNORE).nonzero(as_tuple=True)
    return torch.tensor(batch)[members], columns, targets[members, columns]


def _compare(base: nn.Module, model: nn.Module, tokens: Tensor, targets: Tensor) -> list[Tensor]:
    """The other columns of ``Divergences`` for one batch."""
    indices = (targets != IGNORE).flatten().nonzero()[:, 0]
    wanted = targets.flatten()[indices]
    kept: dict[int, Tensor] = {}
    found: list[tuple[Tensor, ...]] = []

    def keep(log_probs: Tensor, first: int) -> None:
        kept[first] = log_probs

    def compare(log_probs: Tensor, first: int) -> None:
        of_base = kept.pop(first)
        true = wanted[first : first + len(log_probs), None]
        base_top, model_top = of_base.max(-1), log_probs.max(-1)
        found.append((
            kl_per_position(of_base, log_probs), kl_per_position(log_probs, of_base),
            base_top.indices, model_top.indices, base_top.values.double(), model_top.values.double(),
            of_base.gather(1, true)[:, 0].double(), log_probs.gather(1, true)[:, 0].double(),
        ))  # fmt: skip

    read_log_probs(document_model(base) or base, tokens, indices.cpu(), keep)
    read_log_probs(document_model(model) or model, tokens, indices.cpu(), compare)
    return [torch.cat(column).cpu() for column in zip(*found, strict=True)]


def share_of_largest(values: Tensor, share: float) -> float:
    """How much of the sum of (P,) values the largest ``share`` of them hold, at least one; NaN where the sum is 0."""
    n = max(round(share * len(values)), 1)
    total = float(values.sum())
    return float(values.sort(descending=True).values[:n].sum()) / total if total > 0 else float("nan")
