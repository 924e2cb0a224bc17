"""Scores of chosen tokens at chosen positions, without the logits of all positions at once.

For a model of 14M parameters with 50k tokens the head is most of the arithmetic, and its logits are most of the
memory. Here the head is applied only where something is asked, a block at a time, and each block is reduced to a few
numbers per row before the next one is computed. Given up: no gradient flows.

nll[q] = logsumexp_v(logits[p, v]) - logits[p, tokens[q]] with p = of[q].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from litgpt.model import do_softcapping
from torch import Tensor, nn

from lit_consistency.model import DocumentMask, Spans, plain_head
from lit_consistency.model.head_loss import logits_by_parts, row_parts

ELEMENTS = 1 << 27
"""Logits at a time where they come whole. On a CPU 768 rows by 512 columns stay in its cache, twice as fast."""


class Head(NamedTuple):
    """A head that gives its logits a block of columns at a time.

    Args:
        n_vocab: V.
        columns: maps states (R, D), start and end to logits (R, end - start), which are overwritten.
        in_blocks: whether a block costs only its share of the whole.
    """

    n_vocab: int
    columns: Callable[[Tensor, int, int], Tensor]
    in_blocks: bool


class Targets(NamedTuple):
    """What is asked of a batch (B, T); all three on the CPU.

    Args:
        indices: (P,) int64, the positions asked about, as indices into the flattened batch B x T.
        of: (Q,) int64, ascending: for every question its position's number among ``indices``.
        tokens: (Q,) int64, the token whose score is asked for.
    """

    indices: Tensor
    of: Tensor
    tokens: Tensor


class Tree(NamedTuple):
    """Rows whose tokens see their ancestors only.

    Args:
        positions: (B, T) int64, rotary positions; all below block_size, however long the row is.
        mask: (B, 1, T, T) bool, true where the token of the third axis attends to that of the fourth; or spans.
    """

    positions: Tensor
    mask: Tensor | Spans


@torch.no_grad()
def score_batch(gpt: DocumentMask, tokens: Tensor, targets: Targets, tree: Tree | None) -> tuple[Tensor, Tensor]:
    """One forward of LitGPT's model with the head where it is asked for.

    Args:
        gpt: the model, perhaps sharded: its own call is made.
        tokens: (B, T) int64.
        targets: what is asked of them.
        tree: None for rows that count from 0 and see all that stands before.

    Returns:
        As ``score_targets``.
    """
    scores: list[tuple[Tensor, Tensor]] = []

    def body(gpt: DocumentMask) -> Tensor:
        states = gpt.states(tokens, *(tree or ())).flatten(0, 1)
        scores.append(score_targets(states, targets, _head(gpt)))
        return scores[0][0]

    # the scores do not leave by the forward's return, which FSDP2 may cast to bfloat16
    gpt(tokens, body=body)
    return scores[0]


@torch.no_grad()
def read_log_probs(
    model: nn.Module,
    tokens: Tensor,
    indices: Tensor,
    consume: Callable[[Tensor, int], None],
    tree: Tree | None = None,
) -> None:
    """Whole distributions at chosen positions, some at a time; LitGPT's head is applied there only.

    Args:
        model: a LitGPT model of this package, perhaps sharded; or any that maps tokens (B, T) to logits (B, T, V).
        tokens: (B, T) int64.
        indices: (P,) int64 on the CPU, positions as indices into the flattened batch B x T.
        consume: is given log-probabilities (R, V) float32 (float64 for float64 logits) of the next positions, and how
            many came before.
        tree: as of ``score_batch``; read by this package's models only.
    """

    def read(logits: Tensor, first: int) -> None:
        precise = torch.promote_types(logits.dtype, torch.float32)
        consume(torch.log_softmax(logits, dim=-1, dtype=precise), first)

    def body(gpt: DocumentMask) -> Tensor:
        states = gpt.states(tokens, *(tree or ())).flatten(0, 1)
        # within the call, as a sharded head is whole only there
        for rows, logits in logits_by_parts(states[indices.to(states.device)], gpt, ELEMENTS):
            read(logits, rows.start)
        return states

    if isinstance(model, DocumentMask):
        model(tokens, body=body)
        return
    every = model(tokens).flatten(0, 1)
    for rows in row_parts(len(indices), every.size(-1), ELEMENTS):
        read(every[indices[rows].to(every.device)], rows.start)


def _head(gpt: DocumentMask) -> Head:
    """The model's head: blocks of its weight where that is a plain one, else the module with all columns at once."""
    module, cap, n_vocab = gpt.lm_head, gpt.config.final_logit_softcapping, gpt.config.padded_vocab_size
    linear = plain_head(gpt)

    buffer = torch.empty(0)

    def columns(states: Tensor, start: int, end: int) -> Tensor:
        nonlocal buffer
        if linear is None:
            logits = module(states)[:, start:end]
        elif not states.is_cpu or torch.is_autocast_enabled("cpu"):
            logits = F.linear(states, linear.weight[start:end], None if linear.bias is None else linear.bias[start:end])
        else:
            # fresh memory for every block would cost a page fault every 4 KiB, a sixth of the time
            n = len(states) * (end - start)
            if buffer.numel() < n or buffer.dtype != states.dtype:
                buffer = states.new_empty(n)
            logits = buffer[:n].view(len(states), end - start)
            torch.mm(states, linear.weight[start:end].t(), out=logits)
            if linear.bias is not None:
                logits += linear.bias[start:end]
        return logits if cap is None else do_softcapping(logits, cap)

    assert n_vocab is not None
    return Head(n_vocab, columns, in_blocks=linear is not None)


@torch.no_grad()
def score_targets(states: Tensor, targets: Targets, head: Head) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every asked token, and whether it is the first choice.

    Args:
        states: (N, D), what the head reads, one row a position of the batch.
        targets: what is asked.
        head: columns of the logits, by request.

    Returns:
        (Q,) float32 in nats (float64 for float64 logits), and (Q,) bool: whether ``argmax`` of the logits is the token.
    """
    if not len(targets.indices):
        precise = torch.promote_types(states.dtype, torch.float32)
        return states.new_empty(0, dtype=precise), torch.empty(0, dtype=torch.bool, device=states.device)
    n_rows, n_columns = (768, 512) if head.in_blocks and states.is_cpu else (max(ELEMENTS // head.n_vocab, 1), 0)
    n_parts = -(-len(targets.indices) // n_rows)
    n_rows = -(-len(targets.indices) // n_parts)  # alike, rather than a small one at the end
    edges = torch.searchsorted(targets.of, torch.arange(0, len(targets.indices) + n_rows, n_rows)).tolist()
    scores = []
    for i, (start, end) in enumerate(pairwise(edges)):
        indices = targets.indices[i * n_rows : (i + 1) * n_rows].to(states.device)
        of, tokens = targets.of[start:end] - i * n_rows, targets.tokens[start:end]
        scores.append(_score_rows(states[indices], of, tokens, head, n_columns or head.n_vocab))
    nll, hits = zip(*scores, strict=True)
    return torch.cat(nll), torch.cat(hits)


def _score_rows(states: Tensor, of: Tensor, tokens: Tensor, head: Head, n_columns: int) -> tuple[Tensor, Tensor]:
    """One pass over the vocabulary: the greatest logit so far, and the sum of exponentials relative to it."""
    tokens, order = tokens.sort()
    edges = torch.searchsorted(tokens, torch.arange(0, head.n_vocab + n_columns, n_columns)).tolist()
    blocks = (tokens // n_columns).to(states.device)
    of, columns = of[order].to(states.device), (tokens % n_columns).to(states.device)
    chosen, firsts, tops = [], [], []
    # not minus infinity, from which nothing can be subtracted
    most = torch.tensor(torch.finfo(torch.float32).min, device=states.device)
    total = torch.zeros((), device=states.device)
    for i, (start, end) in enumerate(pairwise(edges)):
        logits = head.columns(states, i * n_columns, min((i + 1) * n_columns, head.n_vocab))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        tops.append(logits.amax(-1))
        if start < end:
            rows = of[start:end]
            chosen.append(logits[rows, columns[start:end]])
            first = chosen[-1] == tops[-1][rows]
            # of equal logits argmax takes the first: to be looked up only where the token is among the greatest
            ties = first.nonzero()[:, 0]
            first[ties] = logits[rows[ties]].argmax(-1) == columns[start:end][ties]
            firsts.append(first)
        before, most = most, torch.maximum(most, tops[-1])
        total = total * (before - most).exp() + logits.sub_(most[:, None]).exp_().sum(-1)
    values = torch.cat(chosen)
    hits = torch.cat(firsts) & (blocks == torch.stack(tops).argmax(0)[of])
    back = order.argsort().to(states.device)
    return (total.log()[of] + (most[of] - values))[back], hits[back]
