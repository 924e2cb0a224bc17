"""Hidden states of every layer, of the last token and as the mean over all tokens of a sequence.

Shapes: S sequences, P places (``place_names``), D n_embd, n positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lit_consistency.analysis.core.inputs import batches, feed, residual_streams
from lit_consistency.model import GPT

POOLS = ("last_token", "mean")


def place_names(n_layer: int) -> list[str]:
    """Where states are read: what enters the first block, what leaves every block, and the final norm."""
    return ["embedding", *(f"block {i}" for i in range(n_layer)), "final norm"]


@torch.no_grad()
def pooled_states(
    model: GPT,
    sequences: Sequence[np.ndarray],
    batch_tokens: int,
    device: torch.device,
    advance: Callable[[float], object] = lambda share: None,
) -> dict[str, np.ndarray]:
    """States of some token sequences; a function of each sequence alone.

    Args:
        model: in evaluation mode.
        sequences: each (T,) int64, 1 <= T <= block_size.
        batch_tokens: budget of padded tokens in one forward.
        device: of the model.
        advance: called with the share that is newly done.

    Returns:
        Name of the pool -> (P, S, D) float32 on the CPU.
    """
    # the head reads what the final norm has made
    places = {**residual_streams(model.config.n_layer), "lm_head": model.config.n_layer + 1}
    pooled = {pool: np.empty((len(places), len(sequences), model.config.n_embd), np.float32) for pool in POOLS}
    rows = [torch.as_tensor(tokens, dtype=torch.int64) for tokens in sequences]
    for batch in batches(rows, batch_tokens, device):
        lengths = batch.counts.sum(1)
        ends = lengths.cumsum(0) - 1
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)

        def keep(name: str, states_nD: Tensor) -> None:
            states = states_nD.float()
            sums = states.new_zeros(len(batch.rows), states.size(1)).index_add_(0, owners, states)  # noqa: B023
            for pool, values in zip(POOLS, (states[ends], sums / lengths[:, None]), strict=True):  # noqa: B023
                pooled[pool][places[name], batch.rows] = values.cpu().numpy()  # noqa: B023 (called in this turn)

        feed(model, batch, list(places), keep)
        advance(len(batch.rows) / len(sequences))
    return pooled
