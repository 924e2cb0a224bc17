"""Loss of text, weighted by token.

A mean of batch means depends on how the text was cut into batches, and ``torchmetrics.text.Perplexity`` takes a
float32 softmax and then its logarithm, which gives infinity where the mean cross-entropy is finite. So: sums in
float64, counts in int64, the division last. A precision of the Trainer such as ``bf16-true`` casts whatever lies in
the module, and a bfloat16 sum stops growing once a term is below 1/256 of it; the sums here refuse the cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def nats_per_token(nll_sum: float, n_tokens: float) -> float:
    """Mean negative log-likelihood of a token, in nats; not a number when there is no token."""
    return nll_sum / n_tokens if n_tokens else math.nan


def bits_per_byte(nll_sum: float, n_bytes: float) -> float:
    """Code length of the text in bits per UTF-8 byte: the loss that tokenizers of different vocabularies share.

    Source: Gao et al. 2020, The Pile, arXiv 2101.00027, section 3.1.
    """
    return nll_sum / math.log(2) / n_bytes if n_bytes else math.nan


class TokenLoss(Metric):
    """Nats per supervised token over everything seen, on all ranks; state is a sum and a count.

    ``update`` takes negative log-likelihoods of any shape (zero where no loss is taken) and the number of supervised
    tokens.
    """

    full_state_update = False
    higher_is_better = False
    nll_sum: Tensor
    n_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_tokens", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, n_tokens: Tensor) -> None:
        """Add the summed ``nll`` (nats) of ``n_tokens`` supervised tokens."""
        self.nll_sum += nll.detach().sum(dtype=torch.float64)
        self.n_tokens += n_tokens

    def compute(self) -> Tensor:
        """Nats per token, float64; not a number when nothing was seen."""
        return self.nll_sum / self.n_tokens

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> TokenLoss:
        """Follow the module to another device, never to another precision.

        torchmetrics recognizes ``half()`` and ``bfloat16()`` by name and leaves the states alone, but not
        ``to(dtype)``, by which Lightning casts a module (``HalfPrecision.convert_module``).
        """
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)
        return self
