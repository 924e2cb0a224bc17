"""FSDP2 as a strategy of the Trainer: all devices share one model, or several replicas of it (HSDP).

Lightning's ``ModelParallelStrategy`` with sizes that need not be given, and with checkpoints that are atomic, hashed
and guarded as those of a single device are, and that any number of ranks or a single process continues. Works on CPUs
with gloo. Given up: tensor parallelism, float16 with a gradient scaler.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from lit_consistency.checkpointing.manifest import verify
from lit_consistency.checkpointing.sharded import (
    fill,
    named_state,
    numbered_state,
    read_meta,
    save_folder,
    stored_tensors,
)
from lit_consistency.distributed.dtensors import shard_like, zeros_sharded_as
from lit_consistency.distributed.fsdp import REPLICATE, SHARD, gathered

FOLDER = "checkpoint_folder"  # key of a loaded checkpoint: the folder in which its tensors still lie


class FSDP2Strategy(ModelParallelStrategy):
    """Shard parameters, gradients and the optimizer's state over all devices.

    Args:
        replicas: how many copies of the model there are (HSDP): each is sharded over devices / replicas devices that
            follow each other, those of one node where replicas is the number of nodes. 1 shards over all devices.
        save_distributed_checkpoint: whether a checkpoint is a folder into which every rank writes its shards, or a
            file that rank 0 writes, as a single device does; then all of the state passes through its memory.
        process_group_backend: of torch.distributed; nccl on GPUs and gloo on CPUs when not given.
        timeout: of a collective call.
    """

    def __init__(
        self,
        replicas: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"trainer.strategy.init_args.replicas = {replicas}: expected at least 1")
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.replicas = replicas
        self.expected_devices: int | None = None  # data_parallel_size of Lightning's strategy that this one stands for

    # -------------------- devices

    def check_devices(self, devices: int) -> None:
        """See that the replicas divide the devices.

        Raises:
            ValueError: they do not, or the configuration names another number of devices.
        """
        if self.expected_devices not in (None, devices):
            raise ValueError(
                f"trainer.strategy.init_args.data_parallel_size = {self.expected_devices}: expected {devices}, "
                "trainer.devices times trainer.num_nodes"
            )
        if devices % self.replicas:
            raise ValueError(
                f"trainer.strategy.init_args.replicas = {self.replicas}: expected a divisor of {devices}, "
                "trainer.devices times trainer.num_nodes"
            )

    def setup_environment(self) -> None:
        """Start the process group and lay out the mesh: the shards, or replicas times shards."""
        devices = self.num_nodes * self.num_processes
        self.check_devices(devices)
        self._data_parallel_size, self._tensor_parallel_size = devices, 1
        super().setup_environment()
        shape, names = ((devices,), (SHARD,))
        if self.replicas > 1:
            shape, names = (self.replicas, devices // self.replicas), (REPLICATE, SHARD)  # type: ignore[assignment]
        assert self.lightning_module is not None
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank has rows of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    # -------------------- checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The model is built before: what guards a resume sees the checkpoint before anything is written."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for the optimizer's state when there is an optimizer."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards; for a checkpoint that is a file, full tensors on rank 0."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return state if self._save_distributed_checkpoint else gathered(state, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Shards by names of parameters; for a checkpoint that is a file, full tensors by number as torch counts."""
        state = named_state(optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)
        if self._save_distributed_checkpoint:
            return state
        for entry in state["state"].values():
            tensors = {key: value for key, value in entry.items() if isinstance(value, Tensor)}
            entry.update(gathered(tensors, keep=self.is_global_zero))
        return numbered_state(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a folder together, or a file on rank 0, with its manifest."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            save_folder(checkpoint, path)
        else:
            Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything but the tensors of a folder, which are read straight into the shards; all of a file."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return Strategy.load_checkpoint(self, path, weights_only)
        verify(path)
        return {**read_meta(path), FOLDER: str(path)}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill the shards of the model."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        if FOLDER in checkpoint:
            fill({f"model/{name}": tensor for name, tensor in own.items()}, Path(checkpoint[FOLDER]))
            return
        saved = checkpoint["state_dict"]
        state = {name: shard_like(tensor, own[name]) if name in own else tensor for name, tensor in saved.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill the shards of the optimizer's state."""
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=False)):
            if FOLDER in checkpoint:
                optimizer.load_state_dict(_from_folder(optimizer, saved, i, Path(checkpoint[FOLDER])))
            else:
                optimizer.load_state_dict(_from_file(optimizer, saved))


def fsdp2_of(strategy: ModelParallelStrategy) -> FSDP2Strategy:
    """Lightning's own FSDP2 strategy as this one: the same devices, the same sharding.

    Raises:
        ValueError: it asks for tensor parallelism, or leaves ``auto`` what Lightning would make tensor parallelism.
    """
    size = strategy._tensor_parallel_size
    if size != 1:
        raise ValueError(
            f"trainer.strategy.init_args.tensor_parallel_size = {size}: expected 1; or name "
            "lit_consistency.distributed.FSDP2Strategy, which needs no sizes"
        )
    own = FSDP2Strategy(
        save_distributed_checkpoint=strategy._save_distributed_checkpoint,
        process_group_backend=strategy._process_group_backend,
        timeout=strategy._timeout,
    )
    if strategy._data_parallel_size != "auto":
        own.expected_devices = int(strategy._data_parallel_size)
    return own


def _parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    return {n: p for group in groups for n, p in zip(group["param_names"], group["params"], strict=True)}


def _from_folder(optimizer: torch.optim.Optimizer, saved: dict[str, Any], i: int, path: Path) -> dict[str, Any]:
    """The saved state, its tensors sharded as this run's parameters are."""
    parameters = _parameters(optimizer)
    names = [name for group in saved["param_groups"] for name in group["params"]]
    if names != list(parameters):
        raise ValueError(f"{path}: the optimizer has other parameters or groups than the checkpoint")
    tensors: dict[str, Tensor] = {}
    for flat, (size, dtype) in stored_tensors(path).items():
        prefix, name, *_ = flat.split("/")
        if prefix == f"optimizer{i}":
            tensors[flat] = zeros_sharded_as(parameters[name], size, dtype)
    fill(tensors, path)
    state: dict[str, dict[str, Any]] = {name: dict(entry) for name, entry in saved["state"].items()}
    for flat, tensor in tensors.items():
        _, name, key = flat.split("/")
        state.setdefault(name, {})[key] = tensor
    return numbered_state({"state": state, "param_groups": saved["param_groups"]})


def _from_file(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """The saved state of a single device, each tensor sharded as its parameter is."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, _parameters(optimizer).values(), strict=True))
    state = {}
    for number, entry in saved["state"].items():
        like = parameters[number]
        state[number] = {
            key: shard_like(value, zeros_sharded_as(like, value.shape, value.dtype))
            if isinstance(value, Tensor)
            else value
            for key, value in entry.items()
        }
    return {"state": state, "param_groups": saved["param_groups"]}
