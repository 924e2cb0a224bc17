"""Hidden states of every layer, of the last token and as the mean over all tokens of a sequence.

Shapes: S sequences, P places (``place_names``), D n_embd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lit_consistency.inference.head import read_log_probs
from lit_consistency.inference.score import plan_batches
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
    n_places = model.config.n_layer + 2
    pooled = {pool: np.empty((n_places, len(sequences), model.config.n_embd), np.float32) for pool in POOLS}
    for batch in plan_batches([len(tokens) for tokens in sequences], batch_tokens):
        rows = [torch.as_tensor(sequences[i], dtype=torch.int64) for i in batch]
        # padding stands on the right, where no earlier token sees it
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        inside = torch.arange(tokens.size(1), device=device) < lengths[:, None]

        def keep(place: int, states_BTD: Tensor) -> None:
            states = states_BTD.float()
            last = states[torch.arange(len(batch), device=device), lengths - 1]  # noqa: B023 (called in this turn)
            mean = (states * inside[:, :, None]).sum(1) / lengths[:, None]  # noqa: B023
            for pool, values in zip(POOLS, (last, mean), strict=True):
                pooled[pool][place, batch] = values.cpu().numpy()  # noqa: B023

        _forward(model, tokens, keep)
        advance(len(batch) / len(sequences))
    return pooled


def _forward(model: GPT, tokens: Tensor, keep: Callable[[int, Tensor], None]) -> None:
    """One forward without the head; ``keep`` is given the number of a place and its states (B, T, D)."""
    blocks = list(model.transformer.h)

    def reader(place: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: keep(place, output)

    # the embedding is read where the first block takes it, as some families scale it
    handles = [blocks[0].register_forward_pre_hook(lambda module, inputs: keep(0, inputs[0]))]
    handles += [block.register_forward_hook(reader(i + 1)) for i, block in enumerate(blocks)]
    handles.append(model.transformer.ln_f.register_forward_hook(reader(len(blocks) + 1)))
    try:
        # no position is asked for, so that no logit is computed
        read_log_probs(model, tokens, torch.zeros(0, dtype=torch.int64), lambda log_probs, first: None)
    finally:
        for handle in handles:
            handle.remove()
