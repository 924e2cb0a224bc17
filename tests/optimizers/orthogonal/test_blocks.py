"""Blocks of parameters in stacks, where everything lies on one rank; across ranks see test_many_devices.py."""

from __future__ import annotations

import pytest
import torch

from lit_consistency.optimizers.orthogonal import orthogonalizer
from lit_consistency.optimizers.orthogonal.orthogonalizer import equal_blocks, map_blocks
from lit_consistency.optimizers.sharding.exchange import Local
from lit_consistency.optimizers.sharding.overlap import result_of


def test_equal_blocks_are_views_of_consecutive_rows() -> None:
    matrix, companion = torch.arange(24.0).view(8, 3), torch.zeros(8, 1)
    runs = equal_blocks([matrix, companion], [(2, 2, 3, 1), (2, 2, 3, 1)])
    assert [[tuple(t.shape) for t in run] for run in runs] == [
        [(2, 2, 3), (2, 2, 1)],
        [(1, 3, 3), (1, 3, 1)],
        [(1, 1, 3), (1, 1, 1)],
    ]
    for run in runs:
        run[0].zero_()
    assert not matrix.any()


@pytest.mark.parametrize("limit", [1, 60, 2**20])
@pytest.mark.parametrize("split", [None, (2, 2, 2), (3, 1, 2)])
def test_blocks_are_stacked_by_shape_and_come_back_in_place(
    limit: int, split: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonalizer, "CPU_LIMIT", limit)
    pieces = [[torch.randn(6, 5, generator=torch.Generator().manual_seed(i))] for i in range(3)]
    sizes: list[int] = []

    def negated(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(stacks[0].size(0))
        return [-stacks[0]]

    results = result_of(map_blocks(Local(), pieces, rows=[6], splits=[split], function=negated, like=[0]))
    for (result,), (piece,) in zip(results, pieces, strict=True):
        assert torch.equal(result, -piece)
    shapes = {None: 1, (2, 2, 2): 1, (3, 1, 2): 3}[split]
    # all pieces at once, two of 30 elements, or one
    assert len(sizes) == shapes * {1: 3, 60: 2, 2**20: 1}[limit]
    assert sum(sizes) == 3 * len(split or [0])


@pytest.mark.parametrize("split", [None, (4, 2)])
@pytest.mark.parametrize("matrices", [0, 2])
def test_stacks_of_matrices_keep_their_shape(matrices: int, split: tuple[int, ...] | None) -> None:
    """Also those of which no matrix lies here."""
    stack = torch.randn(matrices, 6, 5)
    job = map_blocks(Local(), [[stack]], rows=[6], splits=[split], function=lambda stacks: [stacks[0] * 2], like=[0])
    ((result,),) = result_of(job)
    assert torch.equal(result, stack * 2)
