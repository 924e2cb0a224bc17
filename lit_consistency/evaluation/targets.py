"""Scores of chosen tokens at chosen places, without the logits of all places at once.

For a model of 14M parameters with 50k tokens the head is most of the arithmetic, and its logits are most of the
memory. Here the head is applied only where something is asked, a chunk at a time, and each chunk is reduced to two
numbers per question before the next one is computed. Given up: no gradient flows.

nll[q] = logsumexp_v(logits[p, v]) - logits[p, tokens[q]] with p = of[q].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from litgpt.model import do_softcapping
from torch import Tensor

from lit_consistency.model import DocumentMask

# logits of one chunk, in elements: 32 MiB of float32 stay in a CPU's cache; a GPU wants many rows to one product
CHUNK = {"cpu": 1 << 23}
CHUNK_ELSEWHERE = 1 << 27


class Targets(NamedTuple):
    """What is asked of a batch (B, T); all three on the CPU.

    Args:
        places: (P,) int64, the places asked about, as indices into the flattened batch B x T.
        of: (Q,) int64, ascending: for every question the index of its place among ``places``.
        tokens: (Q,) int64, the token whose score is asked for.
    """

    places: Tensor
    of: Tensor
    tokens: Tensor


class Tree(NamedTuple):
    """Rows whose tokens see their ancestors only.

    Args:
        positions: (B, T) int64, rotary positions; all below block_size, however long the row is.
        mask: (B, 1, T, T) bool, true where the token of the third axis attends to that of the fourth.
    """

    positions: Tensor
    mask: Tensor


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
    found: list[tuple[Tensor, Tensor]] = []

    def body(gpt: DocumentMask) -> Tensor:
        states = _states(gpt, tokens, tree).flatten(0, 1)
        found.append(score_targets(states, targets, lambda x: _logits(gpt, x), gpt.config.padded_vocab_size))
        return found[0][0]

    # the scores do not leave by the forward's return, which FSDP2 may cast to bfloat16
    gpt(tokens, body=body)
    return found[0]


def _states(gpt: DocumentMask, tokens: Tensor, tree: Tree | None) -> Tensor:
    """What the head reads, (B, T, n_embd)."""
    if tree is None and tokens.size(1) > gpt.max_seq_length:
        raise ValueError(f"row of {tokens.size(1)} tokens: expected at most block_size = {gpt.max_seq_length}")
    place = slice(tokens.size(1)) if tree is None else tree.positions
    cos, sin = (table[place] if tree else table[place][None] for table in (gpt.cos, gpt.sin))
    x = gpt.transformer.wte(tokens)
    if gpt.config.scale_embeddings:
        x = x * torch.tensor(gpt.config.n_embd**0.5, dtype=x.dtype)
    for i, block in enumerate(gpt.transformer.h):
        layer = ... if gpt.config.rope_indices is None else (..., gpt.config.rope_indices[i])
        x = block(x, cos[layer], sin[layer], tree.mask if tree else None)
    return gpt.transformer.ln_f(x)


def _logits(gpt: DocumentMask, states: Tensor) -> Tensor:
    logits = gpt.lm_head(states)
    cap = gpt.config.final_logit_softcapping
    return logits if cap is None else do_softcapping(logits, cap)


@torch.no_grad()
def score_targets(
    states: Tensor, targets: Targets, head: Callable[[Tensor], Tensor], n_vocab: int
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every asked token, and whether it is the first choice.

    Args:
        states: (N, D), what the head reads, one row a place of the batch.
        targets: what is asked.
        head: maps (P, D) to logits (P, V), freshly made: they are overwritten.
        n_vocab: V.

    Returns:
        (Q,) float32 in nats (float64 for float64 logits), and (Q,) bool: whether ``argmax`` of the logits is the token.
    """
    device = states.device
    step = max(CHUNK.get(device.type, CHUNK_ELSEWHERE) // n_vocab, 1)
    edges = torch.searchsorted(targets.of, torch.arange(0, len(targets.places) + step, step)).tolist()
    found: list[tuple[Tensor, Tensor]] = []
    for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        places = targets.places[i * step : (i + 1) * step].to(device)
        of = (targets.of[start:end] - i * step).to(device)
        found.append(_score_chunk(head(states[places]), of, targets.tokens[start:end].to(device)))
    nll, hits = zip(*found, strict=True)
    return torch.cat(nll), torch.cat(hits)


def _score_chunk(logits: Tensor, of: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As ``torch.logsumexp`` and ``argmax``, in place and with half the passes over the logits."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    chosen = logits[of, tokens]
    most = logits.amax(-1, keepdim=True)
    hits = chosen == most[of, 0]
    # of equal logits the first one is chosen; only where the token is among the greatest can that matter
    ties = hits.nonzero()[:, 0]
    hits[ties] = logits[of[ties]].max(-1).indices == tokens[ties]
    log_sum = logits.sub_(most).exp_().sum(-1).log_() + most[:, 0]
    return log_sum[of] - chosen, hits
