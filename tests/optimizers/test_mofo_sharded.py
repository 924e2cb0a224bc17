"""MoFO's thresholds are those of whole blocks, however the rows are sharded: gloo processes, float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_consistency.optimizers import MoFO
from lit_consistency.optimizers.sharding.layout import layout_of

# rows that no number of ranks divides, fewer rows than ranks, a split, more coordinates than a sample, a stack
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "qkv": ((90, 64), (50, 20, 20)),
    "wide": ((3, 701), None),
    "large": ((101, 64), None),
    "stack": ((3, 30, 50), None),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "exact": {"selection": "exact"},
    "random": {"filter": "random", "selection": "exact"},
    "complement": {"filter": "complement"},
    "exact complement": {"filter": "complement", "selection": "exact"},
    "adam_update": {"filter": "adam_update"},
    "held": {"refresh_every": 2},
}
STEPS = 4


class Matrices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, (shape, _) in SHAPES.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))


def gradient(name: str, step: int) -> Tensor:
    shape, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(100 * step + len(name))
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    # ties, and rows without a gradient, cross the borders between ranks
    return (
        grad.mul(2).round()
        if name == "wide"
        else grad * (torch.arange(shape[0]) % 3 > 0).view(-1, *[1] * (len(shape) - 1))
    )


def train(model: Matrices, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float], list[int]]:
    """The parameters after some steps, the shares, and the number of collectives of each step."""
    calls = [0]

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return function(*args, **kwargs)

        return call

    kept = dist.all_gather_into_tensor, dist.all_reduce
    parameters = dict(model.named_parameters())
    groups = [{"params": [(n, parameters[n])], "role": "hidden", "split": split} for n, (_, split) in SHAPES.items()]
    merged = [groups[0], {"params": [(n, parameters[n]) for n in list(SHAPES)[1:]], "role": "head", "split": None}]
    optimizer = MoFO(merged, lr=0.05, sample_size=1024, compile="never", weight_decay=0.1, **options)
    numbers = []
    dist.all_gather_into_tensor, dist.all_reduce = counted(kept[0]), counted(kept[1])
    try:
        for step in range(STEPS):
            for name, parameter in parameters.items():
                grad = gradient(name, step)
                if isinstance(parameter, DTensor):
                    grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
                parameter.grad = grad
            calls[0] = 0
            optimizer.step()
            numbers.append(calls[0])
    finally:
        dist.all_gather_into_tensor, dist.all_reduce = kept
    full = {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in parameters.items()}
    return full, optimizer.last_selected() | {f"{r} moved": s for r, s in optimizer.last_density().items()}, numbers


def worker(rank: int, mesh_shape: tuple[int, ...], path: str) -> None:
    torch.set_num_threads(1)
    world = mesh_shape[0] * (mesh_shape[1] if len(mesh_shape) > 1 else 1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    try:
        names = ("replicate", "shard")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        found = {}
        for name, options in VARIANTS.items():
            model = Matrices()
            fully_shard(model, mesh=mesh)
            found[name] = train(model, options)
        if rank == 0:
            torch.save(found, f"{path}/found.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "mesh_shape", [(2,), pytest.param((4,), marks=pytest.mark.slow), pytest.param((2, 2), marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_shards_move_as_the_whole(mesh_shape: tuple[int, ...], tmp_path: Path) -> None:
    ranks = mesh_shape[0] * (mesh_shape[1] if len(mesh_shape) > 1 else 1)
    mp.spawn(worker, args=(mesh_shape, str(tmp_path)), nprocs=ranks)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, options in VARIANTS.items():
        full, shares, _ = train(Matrices(), options)
        torch.testing.assert_close(found[name][0], full, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert found[name][1] == pytest.approx(shares), name
    # for each of the two groups, not for each of the four matrices: a gather; or 6 digits of float64, and the ties
    assert found["sampled"][2] == [2] * STEPS
    assert found["exact"][2] == [2 * 7] * STEPS
    assert found["held"][2] == [2, 0, 2, 0]


def test_other_placements_are_refused_by_name(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1))
    columns = distribute_tensor(torch.zeros(4, 6), mesh, [Replicate(), Shard(1)])
    with pytest.raises(ValueError, match=r"mlp.weight has placement S.*1.*: expected Shard\(dim=0\) or Replicate"):
        layout_of("mlp.weight", columns)
    rows = distribute_tensor(torch.zeros(4, 6), mesh, [Replicate(), Shard(0)])
    assert layout_of("mlp.weight", rows) == ((0, 24), 0, None)


def test_one_process_needs_no_collective() -> None:
    assert train(Matrices(), {})[2] == [0] * STEPS
