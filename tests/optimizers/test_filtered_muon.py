from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_consistency.optimizers import FilteredMuon, Muon
from lit_consistency.optimizers.orthogonal.orthogonalizer import newton_schulz
from tests.optimizers.models import follow, one_matrix, random_grads
from tests.reference.optimizers import largest_by_sort

STAGES = pytest.mark.parametrize("filter_stage", ["momentum", "update"])
SPLIT = (6, 4, 2)


@STAGES
def test_fraction_one_is_muon(filter_stage: Any) -> None:
    grads = random_grads((12, 8), 3)
    ours, groups = one_matrix(12, 8, split=SPLIT)
    theirs, their_groups = one_matrix(12, 8, split=SPLIT)
    found = follow(FilteredMuon(groups, fraction=1.0, filter_stage=filter_stage), ours, grads)
    assert torch.equal(found, follow(Muon(their_groups), theirs, grads))


@STAGES
def test_each_block_keeps_its_largest_momentum(filter_stage: Any) -> None:
    (grad,) = random_grads((12, 8), 1)
    parameter, groups = one_matrix(12, 8, split=SPLIT)
    start = parameter.detach().clone()
    optimizer = FilteredMuon(groups, fraction=0.25, filter_stage=filter_stage, lr=1.0, lr_scale="spectral")
    moved = start - follow(optimizer, parameter, [grad])
    for found, block in zip(moved.split(SPLIT), grad.split(SPLIT), strict=True):
        mask = largest_by_sort(block.abs(), block.numel() // 4)
        scale = (block.shape[0] / block.shape[1]) ** 0.5
        if filter_stage == "momentum":
            torch.testing.assert_close(found, newton_schulz(block * mask) * scale, rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(found, newton_schulz(block) * mask * scale, rtol=0, atol=1e-10)


def test_at_least_one_coordinate_moves() -> None:
    parameter, groups = one_matrix(6, 5)
    start = parameter.detach().clone()
    found = follow(FilteredMuon(groups, fraction=1e-6, filter_stage="update"), parameter, random_grads((6, 5), 1))
    assert int((found != start).sum()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction = 0.0: expected 0 < fraction <= 1"),
        ({"filter_stage": "after"}, "filter_stage = 'after': expected one of momentum, update"),
    ],
)
def test_errors_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilteredMuon(one_matrix(2, 3)[1], **options)
