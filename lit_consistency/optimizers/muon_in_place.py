"""A Muon step of a large matrix that lies whole on a CPU, in few passes: from its gradient to its move, block by block.

The momentum and the direction are computed part by part while they are in the cache, and the direction is written in
the dtype of the iterations; the last product adds to the parameter, which decays in the same call. Nothing of the
matrix's size is made anew. Given up: options that need the update by itself, which take the way of ``muon.py``.

Source: the step of ``muon_step.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.base import Entry
from lit_consistency.optimizers.exchange import Alone
from lit_consistency.optimizers.muon_step import momentum_buffer, shape_scale
from lit_consistency.optimizers.newton_schulz import add_newton_schulz_, newton_schulz
from lit_consistency.optimizers.newton_schulz_cpu import chunks_of_rows
from lit_consistency.optimizers.ns_choice import SMALL, Choice, key_of
from lit_consistency.optimizers.stacks import runs
from lit_consistency.optimizers.workspaces import Workspace


def moves_in_place(options: Mapping[str, Any], entry: Entry, exchange: Alone) -> bool:
    """Whether a matrix takes this way: alone on a CPU, all blocks large, no option that needs the update by itself."""
    if type(exchange) is not Alone or isinstance(entry.param, DTensor) or entry.param.device.type != "cpu":
        return False
    if not options["orthogonalized"] or options["cautious_decay"] or options["normuon_beta2"] is not None:
        return False
    rows = options["split"] or (entry.param.size(-2),)
    return min(*rows, entry.param.size(-1)) > SMALL


def move_in_place(options: Mapping[str, Any], entry: Entry, choices: Mapping[str, str], workspace: Workspace) -> None:
    """Move a matrix, or a stack of matrices, and its momentum.

    Args:
        options: hyperparameters of the group, with the momentum of this step.
        entry: the parameter.
        choices: form and precision for each shape of its blocks.
        workspace: overwritten.
    """
    tensors = [entry.target, momentum_buffer(entry), entry.grad]
    for run in runs(tensors, [options["split"]] * 3):
        choice = Choice.parse(choices[key_of(run[0].shape, run[0].device)])
        for target, buffer, grad in zip(*run, strict=True):
            _move_block(options, choice, target, buffer, grad, workspace)


def _move_block(
    options: Mapping[str, Any], choice: Choice, target: Tensor, buffer: Tensor, grad: Tensor, workspace: Workspace
) -> None:
    momentum, nesterov = options["momentum"], options["nesterov"]
    # a tall block lies in memory as it is, and the iterations see it on its side
    direction = workspace.take("direction", target.shape, choice.dtype)
    for part, part_buffer, part_grad in chunks_of_rows(direction, buffer, grad):
        torch.add(part_grad, part_buffer, alpha=momentum, out=part_buffer)
        found = part_buffer
        if nesterov:
            same = part.dtype == buffer.dtype
            found = part if same else workspace.take("part", part.shape, buffer.dtype)
            torch.add(part_grad, part_buffer, alpha=momentum, out=found)
        if found is not part:
            part.copy_(found)
    ns = {"ns_steps": options["ns_steps"], "ns_coefficients": options["ns_coefficients"], "form": choice.form}
    shrink = 1 - options["lr"] * options["weight_decay"]
    alpha = -options["lr"] * shape_scale(options["lr_scale"], *target.shape)
    if not add_newton_schulz_(target, direction, beta=shrink, alpha=alpha, workspace=workspace, **ns):
        # zero, not finite, or of unusual size
        whole = grad.to(buffer.dtype).add(buffer, alpha=momentum) if nesterov else buffer
        target.mul_(shrink).add_(newton_schulz(whole, dtype=choice.dtype, **ns), alpha=alpha)
