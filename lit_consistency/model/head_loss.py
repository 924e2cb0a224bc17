"""A loss of the head's logits that never holds them all: some rows at a time, with the gradient taken in the forward.

Of a small model with a large vocabulary the logits are most of the memory, and giving and taking their pages is a
third of a step on a CPU. Here the logits of some rows are made in one buffer, reduced to a number each, overwritten
by their gradient, multiplied into the gradients of states and head, and forgotten. The arithmetic is that of the plain
loss: three products of states, head and logits. Given up: a second derivative, and a loss that is not a sum over rows.

Shapes: R rows (positions that are asked about), D width, V padded vocabulary.
Source: the idea of a gradient in the forward is of Liger Kernel, Hsu et al. 2024, arXiv 2410.10989, section 3.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from litgpt.lora import LoRALinear
from litgpt.model import do_softcapping
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lit_consistency.model.gpt import DocumentMask
from lit_consistency.model.loss import token_nll

ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits at a time: on a CPU so many that a micro-batch of one row is one part (each part is a pass over the head's
gradient) and no more, as its products are at full speed by then; on a GPU enough to fill it."""

HALF = (torch.float16, torch.bfloat16)


def plain_head(gpt: DocumentMask) -> nn.Linear | None:
    """The head where it is one matrix and perhaps a bias; None where its module must be called.

    A head that is a unit of FSDP2 of its own is whole only within its own call.
    """
    module = gpt.lm_head
    linear = module.linear if isinstance(module, LoRALinear) and module.r == 0 else module
    return linear if type(linear) is nn.Linear and not isinstance(linear.weight, DTensor) else None


class Reduction(ABC):
    """From the logits of a row to one number, whose sum over rows is the loss."""

    @abstractmethod
    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """The rows' numbers, with gradient to the logits.

        Args:
            logits: (R, V) float32 or float64, of some rows.
            rows: which of all.

        Returns:
            (R,).
        """

    def value_and_gradient(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The rows' numbers (R,), and the gradient (R, V) of their sum, for which ``logits`` may be overwritten."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = self.values(leaf, rows)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


class TokenNLL(Reduction):
    """Negative log-likelihood of one token a row: logsumexp(logits[r]) - logits[r, targets[r]].

    Args:
        targets: (R,) int64.
    """

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """Plain cross entropy."""
        return token_nll(logits[None], self.targets[None, rows])[0]

    def value_and_gradient(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """softmax(logits) - onehot(target), in place."""
        targets = self.targets[rows, None]
        most = logits.amax(-1)
        chosen = logits.gather(-1, targets)[:, 0]
        total = logits.sub_(most[:, None]).exp_().sum(-1)
        probabilities = logits.mul_(total.reciprocal()[:, None])
        return total.log_() + (most - chosen), probabilities.scatter_add_(
            -1, targets, -torch.ones_like(chosen)[:, None]
        )


def logits_by_parts(states: Tensor, gpt: DocumentMask, elements: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after the others, and their logits (R, V), in float32 or float64; without gradient.

    Args:
        states: (R, D), what the head reads, for a caller within the model's own call.
        gpt: the model.
        elements: logits at a time, which the next ones may overwrite; None: ``ELEMENTS`` of the device.
    """
    head, cap, n_vocab = plain_head(gpt), gpt.config.final_logit_softcapping, gpt.config.padded_vocab_size
    assert n_vocab is not None
    parts = row_parts(len(states), n_vocab, elements or _elements(states))
    # fresh memory for every part would cost a page fault every 4 KiB, a sixth of the time
    in_place = head is not None and states.is_cpu and not torch.is_autocast_enabled("cpu") and len(parts) > 0
    buffer = states.new_empty(parts[0].stop, n_vocab) if in_place else states
    for rows in parts:
        with torch.no_grad():
            if head is None or not in_place:
                logits = gpt.lm_head(states[rows])
            else:
                logits = torch.mm(states[rows], head.weight.t(), out=buffer[: rows.stop - rows.start])
                if head.bias is not None:
                    logits += head.bias
            logits = _capped(_raised(logits), cap)
        yield rows, logits


def linear_loss(
    states: Tensor, gpt: DocumentMask, reduction: Reduction, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Scale * sum of a reduction of the head's logits, for a caller within the model's own call.

    Args:
        states: (R, D), what the head reads, of the rows that are asked about; R may be 0.
        gpt: the model, whose head and soft-capping are used.
        reduction: from the logits of a row to a number.
        scale: factor of the sum, without gradient; in float64 where it is a tensor, or it is rounded before.

    Returns:
        The scaled sum (), with gradient to states and head; and the numbers (R,), without.
    """
    head, cap = plain_head(gpt), gpt.config.final_logit_softcapping
    if not isinstance(scale, Tensor):  # filled in on the device, where a copied number would make the program wait
        scale = torch.full((), scale, dtype=torch.float64, device=states.device)
    scale = scale.to(states.device, torch.float64)
    if head is not None:
        return _LinearLoss.apply(states, head.weight, head.bias, reduction, cap, scale)
    n_vocab = gpt.config.padded_vocab_size
    assert n_vocab is not None

    def values(states: Tensor, rows: slice) -> Tensor:
        return reduction.values(_capped(_raised(gpt.lm_head(states)), cap), rows)

    parts = [checkpoint(values, states[rows], rows, use_reentrant=False) for rows in _parts(states, n_vocab)]
    if not parts:
        return gpt.lm_head(states).sum() * 0.0, states.new_empty(0)
    numbers = torch.cat(parts)
    return numbers.sum() * scale.to(numbers.dtype), numbers.detach()


class _LinearLoss(torch.autograd.Function):
    """The sum, whose gradients are known when it is."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reduction: Reduction,
        cap: float | None,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(kind, enabled=False):
            s, w = states.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            precise = torch.promote_types(dtype, torch.float32)
            d_states = torch.empty_like(states) if wants_states else None
            d_weight = _Sum(weight.dtype, precise)
            d_bias = _Sum(weight.dtype, precise)
            numbers = [states.new_empty(0, dtype=precise)]
            parts = _parts(states, len(weight))
            buffer = _buffer(parts, len(weight), s)
            for rows in parts:
                part = s[rows]
                logits = torch.mm(part, w.t(), out=buffer[: len(part)])
                if b is not None:
                    logits += b
                capped = _capped(_raised(logits), cap)
                bent = None if cap is None else 1 - (capped / cap) ** 2
                values, gradient = reduction.value_and_gradient(capped, rows)
                numbers.append(values)
                if bent is not None:
                    gradient = gradient * bent
                if wants_bias:
                    d_bias.add(gradient.sum(0) * scale.to(precise))
                gradient = gradient.to(dtype)
                # the factor goes with the narrow matrices, not with the logits
                if d_states is not None:
                    d_states[rows] = torch.mm(gradient, w).mul_(scale)
                if wants_weight:
                    d_weight.add_product(gradient.t(), part * scale)
            nll = torch.cat(numbers)
        ctx.gradients = (
            d_states,
            d_weight.value(weight) if wants_weight else None,
            d_bias.value(bias) if wants_bias else None,
        )
        ctx.mark_non_differentiable(nll)
        return nll.sum() * scale.to(nll.dtype), nll

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        factor, gradients = outputs[0], ctx.gradients
        ctx.gradients = None
        # on a CPU looking costs nothing, and a product by 1 a pass over the head
        if not (factor.is_cpu and factor.item() == 1):
            gradients = tuple(None if gradient is None else gradient.mul_(factor) for gradient in gradients)
        return (*gradients, None, None, None)


class _Sum:
    """A gradient over parts: of several in half precision in float32, rounded once at the end."""

    def __init__(self, dtype: torch.dtype, precise: torch.dtype) -> None:
        self.dtype = dtype
        self.precise = precise
        self.total: Tensor | None = None

    def add(self, term: Tensor) -> None:
        self.total = term.to(self.precise) if self.total is None else self.total.add_(term)

    def add_product(self, a: Tensor, b: Tensor) -> None:
        if self.total is not None and self.total.dtype == a.dtype:
            self.total.addmm_(a, b)
        else:
            self.add(torch.mm(a, b))

    def value(self, like: Tensor | None) -> Tensor:
        assert like is not None
        return torch.zeros_like(like) if self.total is None else self.total.to(like.dtype)


def _elements(states: Tensor) -> int:
    return ELEMENTS.get(states.device.type, ELEMENTS["cuda"])


def _parts(states: Tensor, n_vocab: int) -> list[slice]:
    return row_parts(len(states), n_vocab, _elements(states))


def row_parts(n_rows: int, n_vocab: int, elements: int) -> list[slice]:
    """Rows in parts of so many logits, or fewer; these are alike, rather than a small one at the end."""
    most = max(elements // n_vocab, 1)
    size = -(-n_rows // max(-(-n_rows // most), 1))
    return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, max(size, 1))]


_BUFFERS: dict[torch.dtype, Tensor] = {}


def _buffer(parts: list[slice], n_vocab: int, like: Tensor) -> Tensor:
    """Memory for the logits of the largest part: on a CPU the same in every step, as fresh pages cost more than use."""
    n_rows = parts[0].stop if parts else 0
    if not like.is_cpu:
        return like.new_empty(n_rows, n_vocab)
    kept = _BUFFERS.get(like.dtype)
    if kept is None or kept.numel() < n_rows * n_vocab:
        kept = _BUFFERS[like.dtype] = like.new_empty(n_rows * n_vocab)
    return kept[: n_rows * n_vocab].view(n_rows, n_vocab)


def _raised(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in HALF else logits


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else do_softcapping(logits, cap)
