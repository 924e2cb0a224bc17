"""From directions to polar factors, wherever they lie: of every block U S V^T nearly U V^T, by matrix products alone.

Read from top to bottom: alike parameters are found, their blocks stacked, and every stack goes through Newton-Schulz
iterations, in one of two forms of the same polynomial: ``direct`` iterates on the matrix, ``gram`` on its Gram matrix,
whose products are small where one side is short, and finishes with one product.

A parameter's blocks are rows of it, so that a stack of equal ones is a view; stacks of several parameters are copies.
On a CPU only small blocks are stacked: larger products do not gain from it, and symmetric ones are computed panel by
panel (``products.py``) in matrices. Given up: blocks of different shapes in one stack, padded; blocks of several
parameter groups in one; exactness: after five steps every singular value that was at least 1e-3 of the Frobenius norm
lies in [0.84, 1.13] (quintic: 3e-3, [0.68, 1.21]). In bfloat16 the rounding noise in the null space of a low-rank
matrix is amplified to a third to a half of the result; in float32 it is not.

Source: Amsel et al. 2025, The Polar Express, arXiv 2505.16932, Algorithm 1; Gram form and its restart in half
precision: Dao-AILab 2026, Gram Newton-Schulz, https://github.com/Dao-AILab/gram-newton-schulz.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.groups import Split
from lit_consistency.optimizers.orthogonal.choice import SMALL, Choice, Form
from lit_consistency.optimizers.orthogonal.polynomials import ITERATIONS, Coefficients, Polynomial
from lit_consistency.optimizers.orthogonal.products import FULL_PRECISION, Products, memory_like
from lit_consistency.optimizers.sharding.exchange import (
    BlockFunction,
    DataParallel,
    Exchange,
    Local,
    Piece,
    exchange_of,
)
from lit_consistency.optimizers.sharding.overlap import Arrival, Job, StartedFunction, arrived

# Elements in a stack: on a CPU only small blocks gain from one, elsewhere it bounds the memory of a step.
CPU_LIMIT, LIMIT = 2**20, 2**26
# Norms whose square lies well inside float32.
SMALLEST, LARGEST = 1e-12, 1e12
# A half-precision Gram matrix drifts away from its matrix, so it is formed anew. The Gram source does so after two
# iterations in float16. In bfloat16, measured on spectra over one to five decades, every three keep the largest
# singular value at 1.13, where two make it 1.48; the error is up to 3.5 times that of the direct form, below 0.05.
RESTART_EVERY = 3


# -------------------- parameters


def alike(entries: Sequence[Entry], share_work: bool) -> Iterator[tuple[Exchange, list[Entry]]]:
    """Entries of one global shape, dtype, device and layout, and how the ranks work on them together.

    Args:
        entries: of one parameter group.
        share_work: see ``exchange_of``.

    Yields:
        As many as may lie in a stack; where ranks exchange something as many for each rank as fit into the memory of a
        large stack, so that there are few messages.
    """
    by_layout: defaultdict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        param = entry.param
        layout = (param.device_mesh, param.placements) if isinstance(param, DTensor) else None
        by_layout[param.shape, param.dtype, param.device, layout].append(entry)
    for same in by_layout.values():
        exchange = exchange_of(same[0].name, same[0].param, share_work)
        at_once = exchange.ranks * max(1, LIMIT // max(1, same[0].param.numel()))
        if type(exchange) is Local:
            at_once = _at_once(same[0].target)
        for start in range(0, len(same), at_once):
            yield exchange, same[start : start + at_once]


def map_blocks(
    exchange: Exchange,
    pieces: Sequence[Piece],
    *,
    rows: Sequence[int],
    splits: Sequence[Split | None],
    function: BlockFunction,
    like: Sequence[int],
) -> Job[list[Piece]]:
    """Call a function on stacks of the blocks of whole matrices, of which each rank may hold some or some rows.

    A job that yields while messages are under way, see ``sharding/overlap.py``.

    Args:
        exchange: how the ranks work together.
        pieces: parameters with their companions; see ``Exchange.gather``.
        rows: of each tensor of a piece when whole.
        splits: rows of each block, for each tensor of a piece, or None for one block.
        function: from stacks to stacks.
        like: for each output the input whose shape it has.

    Returns:
        For each piece its outputs: what lies on this rank of each.
    """
    shards = exchange.gather(pieces, rows)
    if exchange.gathers:
        yield
    whole, shared = shards(), exchange.share(function, like)
    # one message for each stack of replicas
    at_once = len(pieces) if isinstance(exchange, DataParallel) or not whole else _at_once(whole[0][0])
    at_once = max(at_once, exchange.sharers)  # or some of HSDP's replicas would have nothing to do
    stacks = (whole[start : start + at_once] for start in range(0, len(whole), at_once))
    begun: Iterable[Arrival[list[list[Tensor]]]] = (_by_blocks(stack, splits, shared, like) for stack in stacks)
    if exchange.sharers > 1:
        begun = list(begun)
        yield
    results = [piece for done in begun for piece in done()]
    rest = exchange.scatter(results, pieces, rows, like)
    if exchange.gathers:
        yield
    return list(rest())


def _at_once(tensor: Tensor) -> int:
    """Number of tensors of this size in a stack."""
    return max(1, (CPU_LIMIT if tensor.device.type == "cpu" else LIMIT) // max(1, tensor.numel()))


# -------------------- blocks


def equal_blocks(tensors: Piece, splits: Sequence[Split | None]) -> list[list[Tensor]]:
    """Views of consecutive blocks of equal shape.

    Args:
        tensors: a parameter and its companions, (rows, columns) each, or all stacks of such.
        splits: rows of each block for each of them, or None for one block; all have the same number of blocks.

    Returns:
        For each run of equal blocks, the views (blocks, rows of a block, columns) of each tensor.
    """
    if tensors[0].ndim == 3:
        if all(split is None for split in splits):
            return [list(tensors)]
        return [run for matrices in zip(*tensors, strict=True) for run in equal_blocks(matrices, splits)]
    sizes = zip(*(split or (tensor.size(0),) for tensor, split in zip(tensors, splits, strict=True)), strict=True)
    runs, starts = [], [0] * len(tensors)
    for rows, same in groupby(sizes):
        count = len(list(same))
        columns = zip(tensors, starts, rows, strict=True)
        runs.append([t.narrow(0, start, count * n).unflatten(0, (count, n)) for t, start, n in columns])
        starts = [start + count * n for start, n in zip(starts, rows, strict=True)]
    return runs


def _by_blocks(
    pieces: Sequence[Piece], splits: Sequence[Split | None], function: StartedFunction, like: Sequence[int]
) -> Arrival[list[list[Tensor]]]:
    """``map_blocks`` where everything lies here: blocks of one shape, of all pieces, are one stack."""
    outputs: list[list[Tensor]] = [[] for _ in pieces]
    by_shape: defaultdict[tuple[torch.Size, ...], list[_Run]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        runs = equal_blocks(piece, splits)
        targets: list[list[Tensor]] = [[]]
        if len(runs) != 1:
            outputs[number] = [torch.empty_like(piece[i]) for i in like]
            targets = equal_blocks(outputs[number], [splits[i] for i in like])
        for inputs, of_run in zip(runs, targets, strict=True):
            by_shape[tuple(tensor.shape[1:] for tensor in inputs)].append(_Run(number, inputs, of_run))
    under_way = []
    for same in by_shape.values():
        stacks = [
            torch.cat(tensors) if len(same) > 1 else tensors[0]
            for tensors in zip(*(r.inputs for r in same), strict=True)
        ]
        # no matrix of a sharded stack may lie here
        results = function(stacks) if stacks[0].numel() else arrived([stacks[i] for i in like])
        under_way.append((same, results))

    def wait() -> list[list[Tensor]]:
        for same, results in under_way:
            counts = [run.inputs[0].size(0) for run in same]
            for run, values in zip(same, zip(*(r.split(counts) for r in results()), strict=True), strict=True):
                for target, value in zip(run.targets, values, strict=False):
                    target.copy_(value)
                if not run.targets:  # all of the piece: no copy
                    outputs[run.piece] = [
                        value.reshape(pieces[run.piece][i].shape) for value, i in zip(values, like, strict=True)
                    ]
        return outputs

    return wait


class _Run(NamedTuple):
    """Equal blocks of one piece: its number, their inputs, and where their outputs go if they are not all of it."""

    piece: int
    inputs: list[Tensor]
    targets: list[Tensor]


# -------------------- Newton-Schulz


def polar_factors(
    stack: Tensor,
    choice: Choice,
    *,
    ns_steps: int,
    ns_coefficients: Coefficients,
    workspace: Workspace,
    scale: float = 1.0,
) -> Tensor:
    """Nearly the polar factor of every block, times a scale: batched on CUDA, large blocks one by one on a CPU.

    Args:
        stack: (batch, rows, columns), only read.
        choice: form and precision.
        ns_steps: number of iterations.
        ns_coefficients: their polynomials.
        workspace: memory for what lies in between, on a CPU; overwritten.
        scale: factor on the result.

    Returns:
        Of the stack's shape, in float32 or float64.
    """
    options: dict[str, Any] = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "form": choice.form}
    options["dtype"] = choice.dtype
    if stack.is_cuda:
        compiled = compiled_newton_schulz()
        if compiled is None:
            return newton_schulz(stack, **options).mul_(scale)
        # one graph for each shape and choice; the limit of 8 would send the others back to Python
        with torch._dynamo.config.patch(recompile_limit=256):
            return compiled(stack, **options).mul_(scale)
    if stack.size(0) > 1 and min(stack.shape[-2:]) <= SMALL:
        return newton_schulz(stack, **options).mul_(scale)
    result = torch.empty_like(stack, dtype=torch.promote_types(stack.dtype, torch.float32))
    for matrix, out in zip(stack, result, strict=True):
        newton_schulz(matrix, workspace=workspace, out=out, scale=scale, **options)
    return result


@functools.cache
def compiled_newton_schulz() -> Callable[..., Tensor] | None:
    """``newton_schulz`` as one graph for each shape, or None where there is no compiler for CUDA.

    No learning rate is among its arguments, so that none makes it compile anew.
    """
    from torch.utils._triton import has_triton

    return torch.compile(newton_schulz, dynamic=False) if has_triton() else None


def newton_schulz(
    matrix: Tensor,
    *,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    form: Form = "direct",
    dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
    out: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    r"""Nearly the polar factor :math:`U V^T` of :math:`M = U S V^T`.

    .. math::
        X_0 = M / \lVert M \rVert_F, \quad A_k = X_k X_k^T, \quad P_k = a_k I + b_k A_k + c_k A_k^2, \quad
        X_{k+1} = P_k X_k

    In the form ``gram`` the matrices of the iteration are functions of :math:`A_0` and commute:
    :math:`A_{k+1} = P_k^2 A_k` and :math:`X_K = P_{K-1} \cdots P_0 X_0`.

    Args:
        matrix: (rows, columns), or (batch, rows, columns); float, only read.
        ns_steps: number of iterations K, at least 1.
        ns_coefficients: which polynomials, a key of ``ITERATIONS``.
        form: ``direct`` or ``gram``.
        dtype: of the iterations; the matrix's own, at least float32, when not given.
        workspace: memory for what lies in between, for one matrix on a CPU; overwritten.
        out: where the result of one matrix on a CPU goes, of its shape, in float32 or float64.
        scale: factor on the result of one matrix on a CPU, which costs nothing in the last product.

    Returns:
        Of the matrix's shape, in float32 or float64: the same for every positive multiple of the matrix, however
        small; zero for a zero matrix; NaN for a matrix that is not finite, and for no other of its batch.
    """
    result_dtype = torch.promote_types(matrix.dtype, torch.float32)
    dtype = dtype or result_dtype
    iteration = ITERATIONS[ns_coefficients]
    if matrix.device.type == "cpu" and matrix.ndim == 2:
        workspace = workspace or Workspace()
        out = torch.empty_like(matrix, dtype=result_dtype) if out is None else out
    wide = matrix.size(-2) <= matrix.size(-1)
    X, target = (matrix, out) if wide else (matrix.mT, None if out is None else out.mT)
    A, inverse_norm = None, 1.0
    if workspace is not None and X.dtype == dtype in FULL_PRECISION:
        # its norm is the root of the Gram matrix's trace, by which the small matrices are divided and not this one
        A = Products(X, workspace).symmetric("a", X, X.mT)
        norm = math.sqrt(max(0.0, float(A.diagonal().sum(dtype=torch.float64)))) * iteration.margin
        A, inverse_norm = (A.div_(norm**2), 1 / norm) if SMALLEST < norm < LARGEST else (None, 1.0)
    if A is None:
        normalized = normalize(matrix, iteration.margin, dtype, workspace)
        X = normalized if wide else normalized.mT
        A = Products(X, workspace).symmetric("a", X, X.mT)
    iterate, in_last = (_gram if form == "gram" else _direct), (scale if dtype == result_dtype else 1.0)
    X = iterate(X, A, iteration.of(ns_steps), Products(X, workspace), inverse_norm, in_last, target)
    if out is None:
        return (X if wide else X.mT).to(result_dtype)
    return out if dtype == result_dtype else out.copy_(X if wide else X.mT).mul_(scale)


def normalize(matrix: Tensor, margin: float, dtype: torch.dtype, workspace: Workspace | None) -> Tensor:
    """Scaled to Frobenius norm 1 / margin, in ``dtype``; no epsilon that a small gradient could fall under."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if workspace is not None:
        # of the rows' norms: one sum of millions of float32 numbers would lose two digits
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=-1))
        # far from where squares of float32 numbers vanish or overflow, one pass will do
        if SMALLEST < float(norm) < LARGEST:
            return torch.div(matrix, norm * margin, out=memory_like("normalized", matrix, dtype, workspace))
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True, dtype=torch.float64) * margin
    norm = norm.masked_fill(norm == 0, 1).masked_fill(~norm.isfinite(), float("nan"))
    # by its square root twice, which float32 can hold for every norm
    root = norm.sqrt().to(matrix.dtype)
    return matrix.div(root).div(root).to(dtype)


def _direct(
    X: Tensor,
    A: Tensor,
    polynomials: list[Polynomial],
    products: Products,
    inverse_norm: float,
    scale: float,
    out: Tensor | None,
) -> Tensor:
    """Iterate on X, whose Gram matrix A is normalized where X itself is times ``inverse_norm``."""
    last = len(polynomials) - 1
    for step, (a, b, c) in enumerate(polynomials):
        if step:
            A = products.symmetric("a", X, X.mT)
        if X.dtype in FULL_PRECISION:
            # b A + c A^2 is a square but for a constant, and a product without a sum reads one matrix less
            half = b / (2 * c)
            A.diagonal(dim1=-2, dim2=-1).add_(half)
            P = products.symmetric("b", A, A, alpha=c)
            P.diagonal(dim1=-2, dim2=-1).add_(a - c * half**2)
            alpha = (1.0 if step else inverse_norm) * (scale if step == last else 1.0)
            X = products.multiply(P, X, alpha=alpha, out=out if step == last else None)
        else:
            # in half precision a on the diagonal would swallow half the digits of the rest
            P = products.symmetric("b", A, A, A, beta=b, alpha=c)
            X = products.multiply(P, X, beta=a)
    return X


def _gram(
    X: Tensor,
    R: Tensor,
    polynomials: list[Polynomial],
    products: Products,
    inverse_norm: float,
    scale: float,
    out: Tensor | None,
) -> Tensor:
    """Iterate on the Gram matrix R, which is normalized where X itself is times ``inverse_norm``."""
    Q, names = None, ("q", "other_q")
    for step, (a, b, c) in enumerate(polynomials):
        last = step == len(polynomials) - 1
        restart = X.dtype not in FULL_PRECISION and (step + 1) % RESTART_EVERY == 0
        P = products.symmetric("q" if Q is None else "p", R, R, R, beta=b, alpha=c)
        if not (last or restart):
            # a is added to the product: on the diagonal of P it costs float32 a digit for small singular values
            T = products.symmetric("t", P, R, R, beta=a)
            R = products.symmetric("a", P, T, T, beta=a)
        if Q is None:
            P.diagonal(dim1=-2, dim2=-1).add_(a)
            Q, names = P, ("other_q", "q")
        else:
            Q, names = products.symmetric(names[0], P, Q, Q, beta=a), names[::-1]
        if restart and not last:
            X = products.multiply(Q, X)
            R, Q = products.symmetric("a", X, X.mT), None
    assert Q is not None
    return products.multiply(Q, X, alpha=inverse_norm * scale, out=out)
