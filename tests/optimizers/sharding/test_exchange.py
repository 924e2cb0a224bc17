from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_consistency.optimizers import Muon
from lit_consistency.optimizers.sharding.exchange import DataParallel, Exchange, Local, RowSharded, exchange_of


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
    def kind(param: torch.Tensor, share_work: bool = True) -> type[Exchange]:
        return type(exchange_of("w", param, share_work))

    plain = torch.nn.Parameter(torch.zeros(4, 4))
    assert kind(plain) is DataParallel
    assert kind(plain, share_work=False) is Local
    assert kind(placed([Shard(0)])) is RowSharded
    assert kind(placed([Replicate()])) is DataParallel
    assert kind(placed([Replicate()]), share_work=False) is Local
    # whole matrices of a stack lie on each rank
    assert kind(placed([Shard(0)], ndim=3)) is Local


def test_replicas_of_shards_share_what_they_own(four_ranks: None) -> None:
    param = placed([Replicate(), Shard(0)], (2, 2))
    for share_work, sharers in ((True, 2), (False, 1)):
        exchange = exchange_of("w", param, share_work)
        assert isinstance(exchange, RowSharded)
        assert (exchange.world, exchange.sharers) == (2, sharers)
        stack = exchange_of("w", placed([Replicate(), Shard(0)], (2, 2), ndim=3), share_work)
        assert (type(stack), stack.sharers) == (DataParallel if share_work else Local, sharers)
    one_shard = exchange_of("w", placed([Replicate(), Shard(0)], (4, 1)), True)
    assert (type(one_shard), one_shard.sharers) == (DataParallel, 4)


def test_without_a_process_group_everything_is_local() -> None:
    assert type(exchange_of("w", torch.nn.Parameter(torch.zeros(4, 4)), True)) is Local
