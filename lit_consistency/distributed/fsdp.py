"""The model sharded over devices by FSDP2: each block, then the rest; one-dimensional, or in replicas (HSDP).

Gradients are reduced in float32 and in every micro-batch, so that accumulation needs no second copy of them. Under
``bf16-mixed`` the shards stay in float32 and the blocks compute in bfloat16, the residual stream included, where
autocast on one device would keep that in float32. Given up: tensor parallelism.

Source: Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; torch.distributed.fsdp.fully_shard of torch 2.9 and later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lit_consistency.distributed.dtensors import KeptShards, full_tensor, local_shard

REPLICATE, SHARD = "replicate", "shard"


def data_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """The devices over which the model is sharded: the module's mesh, or that of Lightning's own strategy.

    Args:
        mesh: ``LightningModule.device_mesh``, None where the model is not sharded.

    Raises:
        ValueError: the strategy asks for tensor parallelism.
    """
    names = mesh.mesh_dim_names if mesh is not None else None
    if mesh is None or names is None or "data_parallel" not in names:
        return mesh
    size = mesh["tensor_parallel"].size()
    if size != 1:
        raise ValueError(f"trainer.strategy.init_args.tensor_parallel_size = {size}: expected 1")
    return mesh["data_parallel"]


def shard(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Shard a LitGPT model in place; its parameters become DTensors of the same shapes on the mesh's devices.

    Args:
        model: the same on every rank; what is trainable is already chosen.
        mesh: of ``data_mesh``: one dimension, or two, replicas times shards.
        precision: Lightning's name, as ``32-true`` or ``bf16-mixed``.
    """
    policy = mixed_precision(precision)
    for block in model.transformer.h:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def mixed_precision(precision: str) -> MixedPrecisionPolicy:
    """The policy of a precision: compute in bfloat16 or float16 where it is mixed, and reduce at least in float32."""
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    reduce = None if precision in ("32-true", "64-true") else torch.float32
    # inputs are not cast: tokens have no float type, and rotary angles in bfloat16 would blur far positions
    return MixedPrecisionPolicy(param_dtype=mixed, reduce_dtype=reduce, cast_forward_inputs=False)


def reshard(model: nn.Module) -> None:
    """Free the full parameters that a forward without backward leaves behind, so that ``parameters()`` are shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def weights_of(model: nn.Module, shards: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the model has other weights; after it, its own, bit for bit. A sharded model stays sharded.

    Args:
        model: whose parameters are changed in place.
        shards: name of a parameter -> its other value, as much of it as lies on this rank.
    """
    reshard(model)
    parameters = {name: p for name, p in model.named_parameters() if name in shards}
    own = KeptShards(parameters)
    try:
        for name, parameter in parameters.items():
            local_shard(parameter).copy_(shards[name])
        yield
    finally:
        reshard(model)
        for name, parameter in parameters.items():
            local_shard(parameter).copy_(own.shards[name])


def gathered(state: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """A state dict of full tensors on the CPU, gathered one by one; a collective call.

    Args:
        state: name -> tensor, sharded or not.
        keep: whether this rank keeps them; where not, the returned dict is empty.
    """
    gathered_state = {}
    for name, tensor in state.items():
        full = full_tensor(tensor)
        if keep:
            gathered_state[name] = full.detach().cpu()
    return gathered_state
