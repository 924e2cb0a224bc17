"""Half finetuning and the pull on shards (FSDP2, gloo): every process has its rows, all together the whole model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_consistency.methods import HFT, Method, Pull
from lit_consistency.optimizers import parameter_groups
from tests.distributed.test_ddp import DOUBLE
from tests.methods.small import data_loss, optimizer_of, small_model
from tests.runs import ROOT, SCRATCH, finish, fit, largest_difference, start, weights

METHODS: dict[str, Any] = {
    "hft": lambda: HFT(),
    "l1": lambda: Pull("l1", 0.01),
    "l2": lambda: Pull("l2", 0.1),
    "l1_decoupled": lambda: Pull("l1", 0.1, decoupled=True),
    "l2_decoupled": lambda: Pull("l2", 1.0, decoupled=True),
}


def steps(method: Method, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Three AdamW steps with weight decay on the same rows on every rank; the whole weights, and what is logged."""
    groups = [{**g, "params": list(g["params"])} for g in parameter_groups(model)]
    optimizer = optimizer_of("adamw", lr=1e-2, weight_decay=0.3)(groups)
    method.attach(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        data_loss(model, generator).backward()
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    return {name: p.detach().clone() for name, p in whole.items()}, method.log_values()


def sharded(method: Method, mesh: Any) -> nn.Module:
    model = small_model(method, dtype=torch.float64)
    for block in model.transformer.h:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    method.begin(model)
    return model


def check_all(ranks: int, replicas: int = 1) -> None:
    """Every method on this process group against one process; called on every rank."""
    shape, names = ((replicas, ranks // replicas), ("replicate", "shard")) if replicas > 1 else ((ranks,), ("shard",))
    mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=names)
    for name, make in METHODS.items():
        alone, together = make(), make()
        expected, numbers = steps(alone, small_model(alone, dtype=torch.float64))
        model = sharded(together, mesh)
        found, found_numbers = steps(together, model)
        for key, value in expected.items():
            assert (found[key] - value).abs().max() < 1e-9, (name, key)
        assert found_numbers == pytest.approx(numbers, rel=1e-9), name
        if name != "hft":
            assert numbers["train/penalty"] > 0
        assert together.trained_share(model) == alone.trained_share(small_model(alone))


def test_one_process_with_shards_equals_one_without(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    check_all(1)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "replicas"), [(3, 1), (4, 2)])
def test_shards_equal_one_process(ranks: int, replicas: int) -> None:
    """Three ranks do not divide 16 rows; a key bias has no true gradient, so Adam moves it by what rounding leaves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        places = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in places.items()}, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.methods.test_sharded", str(replicas)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["Pull", "norm=l1", "strength=0.05"], ["Pull", "strength=5", "decoupled=true"], ["HFT"]], ids=str
)
def test_two_processes_of_ddp_equal_one(options: list[str], tmp_path: Path) -> None:
    """The pull is added once, not once for each rank."""
    method = [f"--model.method=lit_consistency.methods.{options[0]}"]
    method += [f"--model.method.init_args.{option}" for option in options[1:]]
    process = start(tmp_path / "two", *SCRATCH, *DOUBLE, *method, devices=2, strategy="ddp")
    fit(tmp_path / "one", *SCRATCH, *DOUBLE, *method)
    finish(process)
    assert largest_difference(*(weights(tmp_path / name / "run" / "model") for name in ("one", "two"))) < 1e-9
    one, two = (penalties(tmp_path / name) for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-9)
    assert (len(one) == 10) == (options[0] == "Pull")  # of every step


def penalties(root: Path) -> list[float]:
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["train/penalty"] for line in lines if "train/penalty" in line]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    try:
        check_all(dist.get_world_size(), int(sys.argv[1]))
    finally:
        dist.destroy_process_group()
