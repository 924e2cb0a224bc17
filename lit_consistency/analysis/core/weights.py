"""Weights changed in place and put back: every analysis that moves a model leaves it as it was, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_consistency.analysis.core.model_files import ModelFiles


@contextmanager
def weights_put_back(model: nn.Module, names: Collection[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Lend a model's weights to whoever changes them in place; whatever happens within, they are put back.

    Args:
        model: whose parameters are changed in place.
        names: of the parameters that will be changed; None: all. Their copies lie on the model's device.

    Yields:
        Name -> copy of the parameter, only to be read.
    """
    parameters = {name: p for name, p in model.named_parameters() if names is None or name in names}
    # copies rather than the file's weights: what is put back is what was there, whoever has written it
    originals = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield originals
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(originals[name])


def write_mixture(model: nn.Module, files: Sequence[ModelFiles], shares: Sequence[float]) -> None:
    r"""Write :math:`\sum_i s_i W_i` into a model, one weight after the other, so that no second model is in memory.

    The sum is taken in float64 and rounded once, to the dtype of the model's own weights: with one share of 1 and the
    others 0 the model is that one, bit for bit.

    Args:
        model: of the same shapes; its weights are overwritten, see ``weights_put_back``.
        files: models on disk.
        shares: one for each.
    """
    wanted = [(of.reader(), share) for of, share in zip(files, shares, strict=True) if share]
    for name, parameter in model.named_parameters():
        # of bfloat16 models too: at t = -2 a sum in their own dtype would be off by more than the update
        total = torch.zeros_like(parameter, dtype=torch.float64)
        for read, share in wanted:
            total.add_(read(name).to(parameter.device, torch.float64), alpha=share)
        parameter.data.copy_(total)


def move(
    moved: Sequence[Tensor], before: Sequence[Tensor], directions: Sequence[Tensor], sizes: Sequence[float]
) -> float:
    """Write W + size D of every matrix in place; returns the norm of what changed over that of the matrices.

    Args:
        moved: views of a model's weights, which are overwritten.
        before: what they were.
        directions: of Frobenius norm 1.
        sizes: of the perturbations in the Frobenius norm.
    """
    changed, whole = 0.0, 0.0
    for target, weight, direction, size in zip(moved, before, directions, sizes, strict=True):
        wide = torch.promote_types(weight.dtype, torch.float32)
        target.copy_(torch.add(weight.to(wide), direction.to(wide), alpha=size))
        changed += float((target.double() - weight.double()).square().sum())
        whole += float(weight.double().square().sum())
    return math.sqrt(changed / whole) if whole > 0 else math.nan
