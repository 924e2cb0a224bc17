"""Build the model that is trained, from a method and a configuration: load or draw its weights, and shard it.

The weights are the same on any number of devices. A model that is to be sharded is built on the meta device: each rank
copies its shards out of the memory-mapped checkpoint, and draws a new model or adapters a tensor at a time, of which it
keeps its shards (draws.py), so that none ever holds the full model. Given up: DoRA, whose magnitudes are computed from
whole matrices, and architectures with further buffers; there every rank has the full model on the CPU for a while.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from litgpt.config import Config
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.own_samples import OwnSamples
from lit_consistency.distributed.dtensors import KeptShards, shard_like
from lit_consistency.distributed.fsdp import shard
from lit_consistency.methods import Full, KLAnchor, LoRA, Method
from lit_consistency.methods.dora import DoRALinear
from lit_consistency.methods.draws import Draws
from lit_consistency.model import DocumentMask, check_documents, check_finite, init_weights, load_weights
from lit_consistency.model.tying import is_tied, tie, tied_weights, untying
from lit_consistency.records.processes import is_first_here

Prepare = Callable[[DocumentMask], None]


def build_model(
    method: Method,
    config: Config,
    checkpoint_dir: Path | None,
    mesh: DeviceMesh | None,
    precision: str,
    prepare: Prepare | None = None,
) -> DocumentMask:
    """The model, with ``requires_grad`` set on what is trained.

    Args:
        method: what is trained.
        config: of the architecture.
        checkpoint_dir: where the weights are; None draws them, a function of the run's seed alone.
        mesh: the devices to shard over, see ``fsdp.data_mesh``; None for a model on one device.
        precision: Lightning's name, as ``bf16-mixed``; it decides the dtype in which sharded blocks compute.
        prepare: called with the model when it is known what is trained, before it is sharded.

    Raises:
        ValueError: the weights do not fit the architecture.
    """
    weights = None
    if checkpoint_dir is not None:
        weights = tied_weights(config, load_weights(checkpoint_dir), checkpoint_dir)
        if is_first_here():
            check_finite(weights, checkpoint_dir)
    with isolate_rng():
        torch.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)))
        model = None
        if mesh is not None:
            model = _built_in_shards(method, config, weights, mesh, precision, prepare)
        if model is None:
            torch.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)))
            model = _built_in_full(method, config, weights, mesh, precision, prepare)
    if weights is not None and (message := untying(config, weights)) and _trains_embedding_or_head(model):
        rank_zero_warn(f"{checkpoint_dir}: {message}")
    return model


def begin_anchor(
    anchor: KLAnchor,
    method: Method,
    config: Config,
    checkpoint_dir: Path | None,
    mesh: DeviceMesh | None,
    precision: str,
) -> None:
    """Give an anchor what answers as the base during the run, where it asks: a copy, or the model without adapters."""
    if not anchor.asks_base:
        return
    if isinstance(method, LoRA) and not method.dora:
        anchor.begin(None, lambda gpt: method.between(gpt, KeptShards({}), 0.0))
    else:
        anchor.begin(build_model(Full(), config, checkpoint_dir, mesh, precision), None)


def blocks_of_run(module: Any) -> Prepare | None:
    """What makes the model's blocks run as a run wants them; None outside of ``fit``, which alone trains them.

    Args:
        module: the LightningModule, whose trainer and data say where, on which rows and how long.
    """
    trainer = module.trainer
    if trainer.state.fn != "fit":
        return None

    def prepare(model: DocumentMask) -> None:
        block_size = getattr(trainer.datamodule, "block_size", model.config.block_size)
        micro_batches = module.total_steps() * trainer.accumulate_grad_batches
        module.blocks.prepare(model, trainer.strategy.root_device.type, block_size, micro_batches)

    return prepare


def check_data(data: Any, config: Config) -> None:
    """See that the data fit the model.

    Raises:
        ValueError: rows are longer than the context, the tokenizer is larger than the model, or packed rows would not
            be exact.
    """
    block_size = getattr(data, "block_size", None)
    if block_size is not None and block_size > config.block_size:
        raise ValueError(
            f"data.block_size = {block_size}: expected at most {config.block_size}, the model's block_size"
        )
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None and tokenizer.vocab_size > config.padded_vocab_size:
        raise ValueError(
            f"data.tokenizer_dir = {tokenizer.folder}: {tokenizer.vocab_size:,} tokens; expected at most "
            f"{config.padded_vocab_size:,}, the rows of the model's embedding: the tokenizer of the checkpoint (null), "
            "or a new model with another overrides.vocab_size"
        )
    replay = getattr(data, "replay", None)
    replayed = replay.parts.values() if replay is not None else ()
    # text is cut into rows across its documents; conversations and own samples stand alone where nothing is packed
    if getattr(data, "packing", False) or any(
        isinstance(part, Source) and not isinstance(part, OwnSamples) for part in replayed
    ):
        check_documents(config)


def _built_in_full(
    method: Method,
    config: Config,
    weights: dict[str, Tensor] | None,
    mesh: DeviceMesh | None,
    precision: str,
    prepare: Prepare | None,
) -> DocumentMask:
    """The model with drawn weights, over which a checkpoint's are copied where there is one; then it is sharded."""
    model = method.build(config)
    if weights is None:
        init_weights(model, config)
    else:
        method.load(model, weights)
    method.prepare(model)
    if prepare is not None:
        prepare(model)
    if mesh is not None:
        shard(model, mesh, precision)
    return model


def _trains_embedding_or_head(model: DocumentMask) -> bool:
    modules = (model.transformer.wte, model.lm_head)
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _built_in_shards(
    method: Method,
    config: Config,
    weights: dict[str, Tensor] | None,
    mesh: DeviceMesh,
    precision: str,
    prepare: Prepare | None,
) -> DocumentMask | None:
    """The sharded model, of which no rank has held more than its shards and one tensor; None if that cannot be."""
    draws = Draws()
    # what every weight is read over needs no drawing, which takes longer than reading
    with torch.device("meta"), draws if weights is None or isinstance(method, LoRA) else nullcontext():
        model = method.build(config)
    rotary = {id(model.cos), id(model.sin)}
    if any(isinstance(module, DoRALinear) for module in model.modules()) or any(
        id(buffer) not in rotary for buffer in model.buffers()
    ):
        return None
    on_meta = dict(model.named_parameters())
    method.prepare(model)
    if prepare is not None:
        prepare(model)
    shard(model, mesh, precision)
    model.to_empty(device=mesh.device_type)
    if is_tied(config):
        tie(model)  # memory was given to each of its two names
    model.reset_parameters()  # the rotary angles, which no checkpoint holds
    if weights is None:
        with draws:
            init_weights(model, config)
        return model
    # LitGPT's LoRA layers have a layer inside, and take weights by the names without
    own = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if name.replace(".linear.", ".") not in weights and name.rpartition(".")[2].startswith("lora_"):
            draws.repeat(on_meta[name], parameter)
    method.load(model, {name: shard_like(tensor, own.get(name, tensor)) for name, tensor in weights.items()})
    method.prepare(model)  # what it says of merging depends on what was loaded
    return model
