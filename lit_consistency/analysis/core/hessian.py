r"""The mean loss of a text as a function of chosen parameters: value, gradient, and products with its curvature.

With the summed loss of N scored tokens, logits z_t and softmax p_t of token t, J_t the derivative of z_t by the
parameters,

.. math::
    L(w) = \frac{1}{N} \sum_t -\log p_t[y_t], \quad H = \nabla^2 L, \quad
    G = \frac{1}{N} \sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t,

H v is the derivative of g(w)^T v for a fixed v (Pearlmutter 1994, Fast Exact Multiplication by the Hessian, Neural
Computation 6(1)). G, the generalised Gauss-Newton matrix (Schraudolph 2002, Neural Computation 14(7)), is H without
the curvature of the network itself and never negative; J v is the derivative by u of (J^T u)^T v, so that it too
needs backward passes alone. Forward mode gives the same (4e-7 in float32) and was 1.3 to 1.7 times slower on a CPU.

Nothing is sampled: batches are summed in float64 and divided by N once. Attention runs in its plain form
(``SDPBackend.MATH``), as the flash kernels have no second derivative. The model itself is not changed: the forward is
called with other values for its parameters. Given up: memory, as the graph of one batch holds all logits and all
attention weights; float64 in families with RMSNorm, which LitGPT computes in float32.

Shapes: n chosen parameters, k vectors, B rows of T tokens, V vocabulary, R scored tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_consistency.analysis.core.analysis import Advance
from lit_consistency.inference.score import CPU_BATCH_TOKENS, Candidate, pad, plan_batches
from lit_consistency.model import IGNORE


class TextLoss:
    """Nats per scored token over a vector of n parameters.

    Args:
        model: in evaluation mode; it is left as it is.
        names: of the chosen parameters; the others stay.
        rows: tokens (T,) and targets (T,) with -100 where nothing is scored.
        batch_tokens: budget of padded tokens in one forward.
        dtype: all is computed in it; sums are float64.

    Attributes:
        point: (n,) the model's own values of the chosen parameters, in the order of the names.
        n_scored: N.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], rows: Sequence[Candidate], batch_tokens: int, dtype: torch.dtype
    ) -> None:
        self.model, self.names, self.dtype = model, list(names), dtype
        self.rows = [row for row in rows if bool((row[1] != IGNORE).any())]
        self.n_scored = sum(int((targets != IGNORE).sum()) for _, targets in self.rows)
        parameters = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
        self.device = parameters[self.names[0]].device
        self.shapes = [parameters[name].shape for name in self.names]
        self.point = torch.cat([parameters[name].flatten() for name in self.names])
        self._fixed = {name: value for name, value in parameters.items() if name not in set(self.names)}
        at_once = min(batch_tokens, CPU_BATCH_TOKENS) if self.device.type == "cpu" else batch_tokens
        self._batches = plan_batches([len(tokens) for tokens, _ in self.rows], at_once)

    # -------------------- value and gradient

    @torch.no_grad()
    def value(self, point: Tensor | None = None) -> float:
        """L at (n,) other values, or at the model's own."""
        weights = self._split(self.point if point is None else point)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for tokens, targets in self._read():
            logits, wanted = self._logits(weights, tokens, targets)
            total += F.cross_entropy(logits, wanted, reduction="none").double().sum()
        return float(total) / self.n_scored

    def gradient(self) -> Tensor:
        """(n,) float64, of L at the model's own values."""
        total = torch.zeros(len(self.point), dtype=torch.float64, device=self.device)
        for tokens, targets in self._read():
            weights = self._leaves()
            logits, wanted = self._logits(weights, tokens, targets)
            nll = F.cross_entropy(logits, wanted, reduction="sum")
            total += _flat(torch.autograd.grad(nll, weights, allow_unused=True, materialize_grads=True))
        return total / self.n_scored

    # -------------------- products

    def hessian(self, vectors: Tensor, advance: Advance) -> Tensor:
        """(k, n) float64, H times each of (k, n) vectors; ``advance`` is told the share of all batches."""

        def of_batch(tokens: Tensor, targets: Tensor) -> Iterator[Tensor]:
            weights = self._leaves()
            logits, wanted = self._logits(weights, tokens, targets)
            nll = F.cross_entropy(logits, wanted, reduction="sum")
            gradient = torch.autograd.grad(nll, weights, create_graph=True, allow_unused=True, materialize_grads=True)
            for vector in vectors:
                yield _derivative(_inner(gradient, self._split(vector)), weights)

        return self._accumulate(of_batch, vectors, advance)

    def gauss_newton(self, vectors: Tensor, advance: Advance) -> Tensor:
        """(k, n) float64, G times each of (k, n) vectors; otherwise as ``hessian``."""

        def of_batch(tokens: Tensor, targets: Tensor) -> Iterator[Tensor]:
            weights = self._leaves()
            logits, _ = self._logits(weights, tokens, targets)
            probabilities = logits.detach().softmax(-1)
            # linear in ``outer``, so that its value does not matter
            outer = torch.zeros_like(logits, requires_grad=True)
            pulled = torch.autograd.grad(
                logits, weights, outer, create_graph=True, allow_unused=True, materialize_grads=True
            )
            for vector in vectors:
                (change,) = torch.autograd.grad(_inner(pulled, self._split(vector)), outer, retain_graph=True)
                weighted = probabilities * change
                weighted = weighted - probabilities * weighted.sum(-1, keepdim=True)
                yield _derivative(_inner([logits], [weighted]), weights)

        return self._accumulate(of_batch, vectors, advance)

    def _accumulate(
        self, of_batch: Callable[[Tensor, Tensor], Iterator[Tensor]], vectors: Tensor, advance: Advance
    ) -> Tensor:
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        for tokens, targets in self._read():
            for row, summed in zip(total, of_batch(tokens, targets), strict=True):
                row += summed
            advance(1 / len(self._batches))
        return total / self.n_scored

    # -------------------- forward

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            yield pad([self.rows[i] for i in batch], self.device)

    def _logits(self, weights: Sequence[Tensor], tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(R, V) logits of the scored tokens of a batch, and (R,) their targets."""
        values = self._fixed | dict(zip(self.names, weights, strict=True))
        with sdpa_kernel(SDPBackend.MATH):
            logits = cast(Tensor, functional_call(self.model, values, (tokens,)))
        scored = targets != IGNORE
        return logits[scored], targets[scored]

    def _split(self, vector: Tensor) -> list[Tensor]:
        """(n,) as one tensor for each name."""
        pieces = vector.to(self.device, self.dtype).split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def _leaves(self) -> list[Tensor]:
        return [piece.detach().requires_grad_() for piece in self._split(self.point)]


class Quadratic(NamedTuple):
    r"""L along an update u, from the point of a loss, as its derivatives there have it.

    L(w + t u) = L(w) + t g^T u + t^2 / 2 u^T H u, with H or G.

    Attributes:
        start: L(w).
        first_order: g^T u.
        hessian: u^T H u.
        gauss_newton: u^T G u.
        squared_norm: u^T u.
    """

    start: float
    first_order: float
    hessian: float
    gauss_newton: float
    squared_norm: float

    def rise(self, t: float, curvature: float) -> float:
        """L(w + t u) - L(w) for one of the two forms."""
        return t * self.first_order + t**2 * curvature / 2


def quadratic_along(loss: TextLoss, update: Tensor, advance: Advance) -> Quadratic:
    """The quadratic model of a loss along an update (n,), at the loss's own point; two products and a gradient."""
    update = update.double()
    forms = [
        float(update @ products(update[None], lambda share: advance(share / 2))[0])
        for products in (loss.hessian, loss.gauss_newton)
    ]
    return Quadratic(loss.value(), float(loss.gradient() @ update), forms[0], forms[1], float(update @ update))


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def _derivative(scalar: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Of a number by the weights, flat; its graph stays for the next one."""
    return _flat(torch.autograd.grad(scalar, weights, retain_graph=True, allow_unused=True, materialize_grads=True))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def sample_rows(rows: Sequence[Candidate], max_tokens: int, seed: int) -> list[Candidate]:
    """Whole rows drawn by the seed until they have ``max_tokens`` scored tokens, in their order; 0: all.

    A function of the arguments alone: a base and all models trained from it are asked on the same rows.
    """
    if max_tokens == 0:
        return list(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    taken, n_taken = [], 0
    for i in order:
        if n_taken >= max_tokens:
            break
        taken.append(i)
        n_taken += int((rows[i][1] != IGNORE).sum())
    return [rows[i] for i in sorted(taken)]
