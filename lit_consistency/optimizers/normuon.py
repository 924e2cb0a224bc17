"""NorMuon: the rows of an orthogonalized update brought to one size, by a running mean of their squares.

The rows are normalized as in the paper. The size of the block is that of modded-nanogpt: it keeps its Frobenius norm.
The paper gives it the root mean square 0.2, whatever it had: the same with ``lr_scale: match_rms_adamw`` where the
block is orthogonal, and more where a gradient of low rank leaves it short.

Source: Li et al. 2025, NorMuon, arXiv 2510.05491, Algorithm 1; github.com/KellerJordan/modded-nanogpt, train_gpt.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry, local, state_dtype

# NorMuon's epsilon beside the root of the mean square, which has the order of 1 / sqrt(columns)
NORMUON_EPS = 1e-8


def normalize_rows(update: Tensor, row_second_moment: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    r"""Each row divided by the root of the running mean of its square.

    .. math::
        v \leftarrow \beta v + (1 - \beta) \, \text{mean}_{columns}(O^2), \quad
        \hat O = O / (\sqrt{v} + \epsilon), \quad
        O \leftarrow \hat O \lVert O \rVert_F / \lVert \hat O \rVert_F

    Args:
        update: orthogonalized blocks O, (batch, rows, columns); only read.
        row_second_moment: v, (batch, rows, 1); only read.
        beta: decay rate of the running mean.

    Returns:
        The new update and the new v. A zero block stays zero.
    """
    second = row_second_moment.lerp(update.square().mean(-1, keepdim=True), 1 - beta)
    normalized = update / (second.sqrt() + NORMUON_EPS)
    before, after = (t.norm(dim=(-2, -1), keepdim=True) for t in (update, normalized))
    return normalized.mul_(before / after.masked_fill(after == 0, 1)), second


def row_second_moment(entry: Entry) -> Tensor:
    """Local running mean of the square of each row's update, (rows, 1), in the parameter's layout; NorMuon's state."""
    if "row_second_moment" not in entry.state:
        param = entry.param
        shape = (*local(param).shape[:-1], 1)
        zeros = torch.zeros(shape, dtype=state_dtype(param), device=param.device)
        if isinstance(param, DTensor):
            full = torch.empty((*param.shape[:-1], 1), device="meta")
            zeros = DTensor.from_local(
                zeros, param.device_mesh, param.placements, run_check=False, shape=full.shape, stride=full.stride()
            )
        entry.state["row_second_moment"] = zeros
    return local(entry.state["row_second_moment"])
