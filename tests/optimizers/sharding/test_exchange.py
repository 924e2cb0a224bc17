from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_consistency.optimizers import Muon
from lit_consistency.optimizers.sharding.exchange import Alone, Replicated, Sharded, exchange_of
from lit_consistency.optimizers.sharding.stacks import by_blocks, runs


@pytest.fixture
def four_ranks() -> None:
    """A process group without processes; the test's own process is rank 0."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)


def placed(placements: Sequence[Placement], mesh: tuple[int, ...] = (4,), ndim: int = 2) -> torch.nn.Parameter:
    whole = torch.zeros((4,) * ndim)
    device_mesh = init_device_mesh("cpu", mesh)
    return torch.nn.Parameter(
        DTensor.from_local(
            whole[:1], device_mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )
    )


@pytest.mark.parametrize("placements", [[Shard(1)], [Partial()], [Shard(0), Shard(1)]])
def test_other_shards_are_refused_by_name(four_ranks: None, placements: list[Placement]) -> None:
    param = placed(placements, (4,) if len(placements) == 1 else (2, 2))
    with pytest.raises(ValueError, match=r"parameter w has the placements .*: expected Shard\(0\)"):
        Muon([{"params": [("w", param)], "role": "hidden", "split": None}])


def test_the_way_of_exchange_follows_the_placement(four_ranks: None) -> None:
    def kind(param: torch.Tensor, share_work: bool = True) -> type[Alone]:
        return type(exchange_of("w", param, share_work))

    plain = torch.nn.Parameter(torch.zeros(4, 4))
    assert kind(plain) is Replicated
    assert kind(plain, share_work=False) is Alone
    assert kind(placed([Shard(0)])) is Sharded
    assert kind(placed([Replicate(), Shard(0)], (2, 2))) is Sharded
    assert kind(placed([Replicate()])) is Alone
    # whole matrices of a stack lie on each rank
    assert kind(placed([Shard(0)], ndim=3)) is Alone


@pytest.mark.parametrize(
    ("placements", "mesh", "ndim", "broadcasts"),
    [
        ([Shard(0)], (4,), 2, 1),
        ([Replicate()], (4,), 2, 1),
        ([Shard(0)], (4,), 3, 1),
        ([Replicate(), Shard(0)], (2, 2), 3, 2),
    ],
)
def test_all_ranks_of_a_mesh_take_the_first_ones_measurement(
    four_ranks: None,
    placements: list[Placement],
    mesh: tuple[int, ...],
    ndim: int,
    broadcasts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replicas that measured each for itself would drift apart."""
    calls = []
    monkeypatch.setattr(dist, "broadcast", lambda value, *_, **__: calls.append(value))
    exchange = exchange_of("w", placed(placements, mesh, ndim), True)
    assert exchange.agree(1, torch.device("cpu")) == 1
    assert len(calls) == broadcasts


def test_without_a_process_group_everything_is_alone() -> None:
    assert type(exchange_of("w", torch.nn.Parameter(torch.zeros(4, 4)), True)) is Alone


def test_runs_are_views_of_consecutive_equal_blocks() -> None:
    matrix, companion = torch.arange(24.0).view(8, 3), torch.zeros(8, 1)
    found = runs([matrix, companion], [(2, 2, 3, 1), (2, 2, 3, 1)])
    assert [[tuple(t.shape) for t in run] for run in found] == [
        [(2, 2, 3), (2, 2, 1)],
        [(1, 3, 3), (1, 3, 1)],
        [(1, 1, 3), (1, 1, 1)],
    ]
    for run in found:
        run[0].zero_()
    assert not matrix.any()


@pytest.mark.parametrize("limit", [1, 40, float("inf")])
@pytest.mark.parametrize("split", [None, (2, 2, 2), (3, 1, 2)])
def test_blocks_are_stacked_by_shape_and_come_back_in_place(limit: float, split: tuple[int, ...] | None) -> None:
    pieces = [[torch.randn(6, 5, generator=torch.Generator().manual_seed(i))] for i in range(3)]
    sizes: list[int] = []

    def negated(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(stacks[0].size(0))
        return [-stacks[0]]

    found = by_blocks(pieces, [split], negated, [0], limit)
    for (result,), (piece,) in zip(found, pieces, strict=True):
        assert torch.equal(result, -piece)
    shapes = {None: 1, (2, 2, 2): 1, (3, 1, 2): 3}[split]
    assert len(sizes) == shapes if limit == float("inf") else len(sizes) >= shapes
    assert sum(sizes) == 3 * len(split or [0])


def test_stacks_of_matrices_keep_their_shape() -> None:
    stack = torch.randn(2, 6, 5)
    for split in (None, (4, 2)):
        ((found,),) = by_blocks([[stack]], [split], lambda stacks: [stacks[0] * 2], [0])
        assert torch.equal(found, stack * 2)
