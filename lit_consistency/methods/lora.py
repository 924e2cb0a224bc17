"""Low-rank adaptation, by LitGPT's implementation with our document masks; rsLoRA and DoRA as options.

y = W x + s B A dropout(x), with W frozen, A (r, in) drawn and B (out, r) zero at the start, so that training starts
from the base exactly. s = alpha / r; with ``rslora`` alpha / sqrt(r), which keeps the size of activations and gradients
as r grows. ``dora`` gives every row a size of its own, see dora.py. Merging computes in float32 at least and stores
in the base's dtype. Given up: models of which LitGPT's LoRA classes build something else than its plain ones (latent
attention, grouped or shared experts, dense first layers) are refused.

Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685; Kalajdzievski 2023, A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv 2312.03732; litgpt 0.5.13, litgpt/lora.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import reduce
from typing import Any

import litgpt.lora
import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear, mark_only_lora_as_trainable
from torch import Tensor, nn

from lit_consistency.distributed.dtensors import KeptShards, full_tensor, local_shard, shard_like
from lit_consistency.distributed.fsdp import reshard, weights_of
from lit_consistency.methods.base import Merging, Method, load_checked
from lit_consistency.methods.dora import (
    MAGNITUDE,
    DoRALinear,
    adapted_layers,
    adapted_weight,
    add_magnitudes,
    factors_of,
    lora_update,
)
from lit_consistency.model import DocumentMask
from lit_consistency.model.tying import is_tied

UNSUPPORTED = ("latent_attention", "n_expert_groups", "n_shared_expert", "first_k_dense_replace")


class LoRAGPT(DocumentMask, litgpt.lora.GPT):
    """LitGPT's model with LoRA layers and document masks."""


class LoRA(Method):
    """Two low-rank matrices beside each chosen matrix are trained, everything else is frozen.

    Args:
        r: rank of the update, at least 1.
        alpha: the update is scaled by alpha / r, or as ``rslora`` says; above 0.
        dropout: share of the adapter's inputs that is dropped in training, 0 <= dropout < 1.
        query: adapt the query matrix.
        key: adapt the key matrix.
        value: adapt the value matrix.
        projection: adapt the output projection of attention.
        mlp: adapt the matrices of the MLP, of every expert and of the router.
        head: adapt the output head.
        rslora: scale the update by alpha / sqrt(r), so that a rank needs no learning rate of its own (rsLoRA).
        dora: train the size of every adapted row too, apart from its direction (DoRA).
    """

    def __init__(
        self,
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        query: bool = True,
        key: bool = True,
        value: bool = True,
        projection: bool = True,
        mlp: bool = True,
        head: bool = False,
        rslora: bool = False,
        dora: bool = False,
    ) -> None:
        if r < 1:
            raise ValueError(f"r = {r}: expected at least 1")
        if not alpha > 0:
            raise ValueError(f"alpha = {alpha}: expected above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: expected 0 <= dropout < 1")
        targets = {"query": query, "key": key, "value": value, "projection": projection, "mlp": mlp, "head": head}
        if not any(targets.values()):
            raise ValueError(f"{', '.join(targets)} = false: expected at least one of them to be true")
        self.rslora, self.dora = rslora, dora
        self.options: dict[str, Any] = {"lora_r": r, "lora_alpha": alpha, "lora_dropout": dropout}
        self.options |= {f"lora_{target}": chosen for target, chosen in targets.items()}
        self.merging: Merging | None = None
        self._base_dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """``lora``, ``dora``, ``rslora`` or ``rsdora``."""
        return f"{'rs' if self.rslora else ''}{'dora' if self.dora else 'lora'}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that make this method again."""
        options = {key.removeprefix("lora_"): value for key, value in self.options.items()}
        return {**options, "rslora": self.rslora, "dora": self.dora}

    def build(self, config: Config) -> LoRAGPT:
        """The model with LoRA layers, from a configuration with or without LoRA settings; those of this method hold.

        Raises:
            ValueError: LitGPT's LoRA classes would not build this architecture.
        """
        present = [f"{key} = {getattr(config, key)}" for key in UNSUPPORTED if getattr(config, key)]
        if present:
            raise ValueError(f"method = LoRA with {', '.join(present)}: expected an architecture without; use Full")
        if is_tied(config) and self.options["lora_head"]:
            raise ValueError(
                "head = true with a model whose embedding and head are one weight, which adapters of the head alone "
                "would make two: expected head = false, or overrides.tie_embeddings = false"
            )
        base = {entry.name: getattr(config, entry.name) for entry in fields(Config)}
        model = LoRAGPT(litgpt.lora.Config(**base, **self.options))
        for _, layer in adapted_layers(model):
            layer.scaling = layer.lora_alpha / (math.sqrt(layer.r) if self.rslora else layer.r)
        if self.dora:
            add_magnitudes(model)
        return model

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Copy a base model's weights; adapters may be missing from ``weights``. See ``Method.load``."""
        load_checked(model, weights, may_miss="lora_")
        of_base = [tensor.dtype for name, tensor in weights.items() if "lora_" not in name]
        self._base_dtype = reduce(torch.promote_types, of_base)
        for name, layer in adapted_layers(model):
            if isinstance(layer, DoRALinear) and f"{name}.{MAGNITUDE}" not in weights:
                layer.reset_magnitude()

    def prepare(self, model: nn.Module) -> None:
        """Only the adapters take a gradient."""
        mark_only_lora_as_trainable(model)
        dtype = next(model.parameters()).dtype
        self.merging = Merging.of(dtype, self._base_dtype)

    @torch.no_grad()
    def merged_state(self, model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """W + s B A, or DoRA's weight, for every adapted matrix under the base model's names, in the base's dtype.

        See ``Method``. A base in bfloat16 that is trained in float32 is given back in bfloat16: its frozen weights are
        what they were, bit for bit, and adapted ones are rounded once, after merging.
        """
        weights = model.state_dict() if weights is None else weights
        merged = {name.replace(".linear.", "."): value for name, value in weights.items() if "lora_" not in name}
        for name, layer in adapted_layers(model):
            weight = weights[f"{name}.linear.weight"]
            merged[f"{name}.weight"] = adapted_weight(layer, weight, factors_of(name, weights)).to(weight.dtype)
        return self.merging.stored(merged) if self.merging else merged

    @torch.no_grad()
    def changes(self, model: nn.Module, start: KeptShards) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What merging adds to every adapted matrix, against the frozen weight; see ``Method``."""
        for name, layer in adapted_layers(model):
            weight = full_tensor(layer.linear.weight)
            yield f"{name}.weight", self._change(layer, weight), weight

    @contextmanager
    def between(self, model: nn.Module, start: KeptShards, share: float) -> Iterator[None]:
        """The adapters' update scaled by ``share``; their factors themselves do not lie on the way. See ``Method``."""
        if self.dora:
            with self._merged_between(model, share):
                yield
            return
        layers = [(layer, layer.scaling) for _, layer in adapted_layers(model)]
        try:
            for layer, scaling in layers:
                layer.scaling = scaling * share
            yield
        finally:
            for layer, scaling in layers:
                layer.scaling = scaling

    @contextmanager
    def _merged_between(self, model: nn.Module, share: float) -> Iterator[None]:
        """As ``between`` where no factor scales the update, as in DoRA: the weights are merged for a while."""
        reshard(model)
        layers, shards = dict(adapted_layers(model)), {}
        with torch.no_grad():
            for name, layer in layers.items():
                weight = full_tensor(layer.linear.weight)
                between = (weight + share * self._change(layer, weight)).to(weight.dtype)
                shards[f"{name}.linear.weight"] = local_shard(shard_like(between, layer.linear.weight)).cpu()
        with weights_of(model, shards):
            try:
                for layer in layers.values():
                    layer.merged = True
                yield
            finally:
                for layer in layers.values():
                    layer.merged = False

    def _change(self, layer: LoRALinear, weight: Tensor) -> Tensor:
        """What merging adds to a full weight, without rounding; a collective call where the adapters are sharded."""
        factors = {
            name: full_tensor(p) for name, p in layer.named_parameters(recurse=False) if name.startswith("lora_")
        }
        if not self.dora:
            # not as a difference, in which what is small beside the weight is lost
            return lora_update(layer, factors["lora_A"], factors["lora_B"])
        return adapted_weight(layer, weight, factors) - weight
