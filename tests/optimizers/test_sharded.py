"""Sharded parameters, on the ranks of a process group that sends nothing: AdamW and SGD need no communication."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_consistency.optimizers import SGD, AdamW, parameter_groups
from tests.optimizers.models import small_gpt

ROWS, COLUMNS, RANKS = 5, 6, 4  # of 5 rows, 4 ranks hold 2, 2, 1 and none


@pytest.fixture(params=range(RANKS), ids=lambda rank: f"rank{rank}")
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=RANKS)
    yield request.param
    dist.destroy_process_group()


def shard(full: Tensor, rank: int) -> Tensor:
    return full[2 * rank : 2 * rank + 2].clone()


def sharded(full: Tensor, rank: int) -> DTensor:
    mesh = init_device_mesh("cpu", (RANKS,))
    return DTensor.from_local(
        shard(full, rank), mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride()
    )


@pytest.mark.parametrize("low_precision", ["master", "nearest"])
@pytest.mark.parametrize("cls", [AdamW, SGD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shard_moves_as_its_rows_do(rank: int, cls: Any, dtype: torch.dtype, low_precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    full, *grads = (torch.randn(ROWS, COLUMNS, generator=generator).to(dtype) for _ in range(4))
    whole, part = nn.Parameter(full.clone()), nn.Parameter(sharded(full, rank))
    for parameter in (whole, part):
        optimizer = cls([("w", parameter)], lr=0.1, weight_decay=0.1, low_precision=low_precision)
        for grad in grads:
            parameter.grad = grad if parameter is whole else sharded(grad, rank)
            optimizer.step()
    assert torch.equal(part.to_local(), shard(whole.detach(), rank))
    state = {key: value for key, value in optimizer.state[part].items() if key != "step"}
    assert ("master" in state) == (dtype == torch.bfloat16 and low_precision == "master")
    for key, value in state.items():
        assert isinstance(value, DTensor), key
        assert (value.shape, value.dtype, value.placements) == (full.shape, torch.float32, part.placements), key


def test_a_shard_rounds_by_chance_within_one_gap(rank: int) -> None:
    part = nn.Parameter(sharded(torch.ones(ROWS, COLUMNS).bfloat16(), rank))
    optimizer = SGD([("w", part)], lr=2.0**-10, momentum=0.0, low_precision="stochastic")
    for _ in range(8):
        part.grad = sharded(torch.ones(ROWS, COLUMNS).bfloat16(), rank)
        optimizer.step()
    found = part.to_local().float()
    assert bool((found <= 1).all())
    assert rank == 3 or bool((found < 1).any())
    assert bool((found * 256 % 1 == 0).all())


def test_masters_of_a_shard_take_up_what_others_write(rank: int) -> None:
    part = nn.Parameter(sharded(torch.ones(ROWS, COLUMNS).bfloat16(), rank))
    optimizer = SGD([("w", part)], lr=2e-5, momentum=0.0)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            part.mul_(factor)
        part.grad = sharded(torch.ones(ROWS, COLUMNS).bfloat16(), rank)
        optimizer.step()
    master = optimizer.state[part]["master"].to_local()
    torch.testing.assert_close(master, torch.full_like(master, 3 - 2e-5), rtol=0, atol=1e-6)


def test_a_shard_that_is_not_finite_is_refused_where_it_lies(rank: int) -> None:
    part = nn.Parameter(sharded(torch.ones(ROWS, COLUMNS), rank))
    optimizer = AdamW([("w", part)])
    part.grad = sharded(torch.ones(ROWS, COLUMNS), rank)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"].to_local().view(-1)[:1] = float("nan")
    if rank == 3:  # it holds nothing
        optimizer.load_state_dict(saved)
        return
    with pytest.raises(ValueError, match="exp_avg of w has 1 of"):
        optimizer.load_state_dict(saved)


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def on_a_mesh(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            sharded = isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements) if sharded else grad
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("low_precision", ["master", "stochastic"])
def test_a_distributed_checkpoint_of_shards_continues_without_them_bit_for_bit(low_precision: str) -> None:
    def build(model: nn.Module) -> AdamW:
        return AdamW(parameter_groups(model), lr=1e-3, low_precision=low_precision)

    model = on_a_mesh(small_gpt("pythia-14m").bfloat16())
    optimizer = build(model)
    steps(model, optimizer, range(3))
    options = StateDictOptions(full_state_dict=True)
    weights = {name: value.clone() for name, value in get_model_state_dict(model, options=options).items()}
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    expected = steps(model, optimizer, range(3, 5))
    plain = small_gpt("pythia-14m").bfloat16()
    resumed = build(plain)
    plain.load_state_dict(weights)
    set_optimizer_state_dict(plain, resumed, state, options=options)
    assert {value.dtype for s in resumed.state.values() for value in s.values()} == {torch.float32}
    found = steps(plain, resumed, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
