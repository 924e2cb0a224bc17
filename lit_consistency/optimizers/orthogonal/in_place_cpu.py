"""A Muon step of a large matrix that lies whole on a CPU, in few passes: from its gradient to its move, block by block.

The momentum and the direction are computed part by part while they are in the cache, and the direction is written in
the dtype of the iterations; the last product adds to the parameter, which decays in the same call. Nothing of the
matrix's size is made anew. Given up: options that need the update by itself, which take the way of ``muon.py``.

Source: the step of ``muon_step.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.muon_step import momentum_buffer, shape_scale
from lit_consistency.optimizers.orthogonal.choice import SMALL, Choice, key_of
from lit_consistency.optimizers.orthogonal.newton_schulz import ITERATIONS, add_newton_schulz_, newton_schulz
from lit_consistency.optimizers.orthogonal.newton_schulz_cpu import FULL_PRECISION, LARGEST, SMALLEST, chunks_of_rows
from lit_consistency.optimizers.sharding.exchange import Alone
from lit_consistency.optimizers.sharding.stacks import runs


def moves_in_place(options: Mapping[str, Any], entry: Entry, exchange: Alone) -> bool:
    """Whether a matrix takes this way: alone on a CPU, all blocks large, no option that needs the update by itself."""
    if type(exchange) is not Alone or isinstance(entry.param, DTensor) or entry.param.device.type != "cpu":
        return False
    if not options["orthogonalized"] or options["cautious_decay"] or options["normuon_beta2"] is not None:
        return False
    rows = options["split"] or (entry.param.size(-2),)
    return min(*rows, entry.param.size(-1)) > SMALL


def move_in_place(options: Mapping[str, Any], entries: Sequence[Entry], workspace: Workspace) -> None:
    """Move matrices, or stacks of them, and their momentum.

    Args:
        options: hyperparameters of the group, with the momentum of this step and the choices for all block shapes.
        entries: the parameters.
        workspace: overwritten.
    """
    for entry in entries:
        tensors = [entry.target, momentum_buffer(entry), entry.grad]
        for run in runs(tensors, [options["split"]] * 3):
            choice = Choice.parse(options["ns_choices"][key_of(run[0].shape, run[0].device)])
            for target, buffer, grad in zip(*run, strict=True):
                _move_block(options, choice, target, buffer, grad, workspace)


def _move_block(
    options: Mapping[str, Any], choice: Choice, target: Tensor, buffer: Tensor, grad: Tensor, workspace: Workspace
) -> None:
    ahead = options["momentum"] if options["nesterov"] else None
    margin = ITERATIONS[options["ns_coefficients"]].margin
    direction = _direction(
        buffer, grad, choice.dtype, momentum=options["momentum"], ahead=ahead, margin=margin, workspace=workspace
    )
    ns = {"ns_steps": options["ns_steps"], "ns_coefficients": options["ns_coefficients"], "form": choice.form}
    shrink = 1 - options["lr"] * options["weight_decay"]
    alpha = -options["lr"] * shape_scale(options["lr_scale"], *target.shape)
    moved = direction is not None and add_newton_schulz_(
        target, direction, beta=shrink, alpha=alpha, workspace=workspace, **ns
    )
    if not moved:
        # zero, not finite, or of unusual size
        whole = _look_ahead(torch.empty_like(buffer), buffer, grad, ahead)
        target.mul_(shrink).add_(newton_schulz(whole, dtype=choice.dtype, **ns), alpha=alpha)


def _direction(
    buffer: Tensor,
    grad: Tensor,
    dtype: torch.dtype,
    *,
    momentum: float,
    ahead: float | None,
    margin: float,
    workspace: Workspace,
) -> Tensor | None:
    """Update the momentum; its direction, in half precision normalized, or None where the norm is of unusual size."""
    direction = workspace.take("direction", buffer.shape, dtype)
    squares = 0.0
    for part, part_buffer, part_grad in chunks_of_rows(direction, buffer, grad):
        torch.add(part_grad, part_buffer, alpha=momentum, out=part_buffer)
        if dtype in FULL_PRECISION:
            _look_ahead(part, part_buffer, part_grad, ahead)
        else:
            wide = workspace.take("part", part.shape, buffer.dtype)
            _look_ahead(wide, part_buffer, part_grad, ahead)
            squares += float(torch.dot(wide.flatten(), wide.flatten()))
    if dtype in FULL_PRECISION:
        return direction
    norm = math.sqrt(squares) if squares >= 0 else math.nan
    if not SMALLEST < norm < LARGEST:
        return None
    # computed again rather than kept: it reads as much, and takes no memory
    for part, part_buffer, part_grad in chunks_of_rows(direction, buffer, grad):
        wide = workspace.take("part", part.shape, buffer.dtype)
        part.copy_(_look_ahead(wide, part_buffer, part_grad, ahead).div_(norm * margin))
    return direction


def _look_ahead(out: Tensor, buffer: Tensor, grad: Tensor, ahead: float | None) -> Tensor:
    """Write the direction: the buffer, or with Nesterov's momentum ``ahead`` the gradient and so much of the buffer."""
    return out.copy_(buffer) if ahead is None else torch.add(grad, buffer, alpha=ahead, out=out)
