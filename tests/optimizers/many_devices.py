"""A small world that every optimizer is run in on one process, on DDP's replicas and on FSDP2's and HSDP's shards.

Gradients are random, of full rank and the same everywhere; ``OPTIMIZERS`` is the table to add a row to.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litgpt.lora
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from litgpt import GPT, Config
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_consistency.optimizers import AdamW, FilteredMuon, MoFO, Muon, parameter_groups
from tests.optimizers.models import SIZES

STEPS = 3
COLLECTIVES = ("all_to_all_single", "all_gather_single", "all_gather_into_tensor", "all_reduce", "broadcast")
# name -> class, options, qkv, whether LoRA is trained
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any], Any, bool]] = {
    "adamw": (AdamW, {"weight_decay": 0.1}, "split", False),
    "adamw lora": (AdamW, {"weight_decay": 0.1}, "split", True),
    "mofo": (MoFO, {"weight_decay": 0.1, "fraction": 0.2, "selection": "exact"}, "split", False),
    "mofo lora": (MoFO, {"selection": "exact"}, "split", True),
    "muon": (Muon, {"weight_decay": 0.1}, "split", False),
    "muon unshared": (Muon, {"weight_decay": 0.1, "share_work": False}, "split", False),
    "muon head": (Muon, {"cautious_decay": True, "weight_decay": 0.1}, "head", False),
    "muon normuon": (Muon, {"normuon": True, "momentum_warmup_steps": 2}, "split", False),
    "muon lora": (Muon, {"lr_scale": "spectral"}, "split", True),
    "muon paired": (Muon, {"adapters": "paired", "weight_decay": 0.1}, "split", True),
    "muon experts": (Muon, {"normuon": True}, "split", False),
    "filtered muon": (FilteredMuon, {}, "split", False),
}


class Experts(nn.Module):
    """A stack of three matrices, one for each expert, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.experts = nn.Parameter(torch.randn(3, 6, 5, generator=generator, dtype=torch.float64))
        self.mixed = nn.Linear(5, 7, bias=False, dtype=torch.float64)


def build(name: str) -> nn.Module:
    """Two layers; 30 rows of the MLP and 6 of a fused lora_A leave uneven and empty shards on four ranks."""
    torch.manual_seed(0)
    if name == "muon experts":
        return Experts()
    options: dict[str, Any] = {**SIZES, "n_layer": 2, "n_query_groups": 2, "head_size": 4, "intermediate_size": 30}
    if not OPTIMIZERS[name][3]:
        return GPT(Config.from_name("Llama-3.2-1B", **options)).double()
    targets = {f"lora_{part}": True for part in ("query", "key", "value", "mlp")}
    model = litgpt.lora.GPT(litgpt.lora.Config.from_name("Llama-3.2-1B", **options, lora_r=2, **targets)).double()
    litgpt.lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("lora_B"):  # zero in LitGPT: with a size, so that both factors of a pair move
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return model


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    cls, options, qkv, _ = OPTIMIZERS[name]
    return cls(parameter_groups(model, qkv), lr=0.02, **options)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.grad = placed_as(grad, parameter)
        optimizer.step()


def placed_as(whole: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def weights(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.detach() for name, p in model.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in found.items()}


def alone(name: str) -> dict[str, Tensor]:
    model = build(name)
    step(make(name, model), model, range(STEPS))
    return weights(model)


def sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    if hasattr(model, "transformer"):
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shape_groups(optimizer: torch.optim.Optimizer, blocks: bool) -> int:
    """Number of shapes among the matrices of a group, or among their blocks; a LoRA pair counts once."""
    found = set()
    for number, group in enumerate(optimizer.param_groups):
        if group["role"] in ("hidden", "adapter"):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if group.get("adapters") == "paired" and name.endswith("lora_A"):
                    continue
                if p.ndim == 3 and not blocks:  # whole matrices of a stack lie on each rank
                    continue
                for rows in set(group["split"] or p.shape[-2:-1]) if blocks else [0]:
                    found.add((number, tuple(p.shape), rows))
    return len(found)


def counted(counts: Counter[str]) -> None:
    """Count every call of a collective from here on."""
    for name in COLLECTIVES:
        original = getattr(dist, name, None)
        if original is not None:

            def call(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                counts[name] += 1
                return original(*args, **kwargs)

            setattr(dist, name, call)


def on_this_rank(rank: int, world: int, folder: str, layouts: list[str]) -> None:
    """Every optimizer in every layout; rank 0 saves the weights and the collectives of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    counts: Counter[str] = Counter()
    counted(counts)
    meshes = {
        "fsdp": lambda: init_device_mesh("cpu", (world,)),
        "hsdp": lambda: init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")),
    }
    for layout in layouts:
        mesh = meshes[layout]() if layout in meshes else None
        for name in OPTIMIZERS:
            model = build(name)
            if mesh is not None:
                model = sharded(model, mesh)
            optimizer = make(name, model)
            step(optimizer, model, range(STEPS - 1))
            counts.clear()
            step(optimizer, model, range(STEPS - 1, STEPS))
            result = {"collectives": dict(counts), "groups": shape_groups(optimizer, blocks=mesh is None)}
            result["stacks"] = shape_groups(optimizer, blocks=True)
            result |= {"weights": weights(model)}
            if mesh is not None:
                assert all(isinstance(v, DTensor) for s in optimizer.state.values() for v in s.values() if v.ndim)
            torch.save(result, f"{folder}/{layout}-{name}-{rank}.pt")
    dist.destroy_process_group()


def spawn(world: int, folder: Path, layouts: list[str]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(layout, optimizer, rank) -> weights and collectives."""
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(on_this_rank, (world, str(folder), layouts), world)
    keys = [(layout, name, rank) for layout in layouts for name in OPTIMIZERS for rank in range(world)]
    return {key: torch.load(folder / "{}-{}-{}.pt".format(*key)) for key in keys}
