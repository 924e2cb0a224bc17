"""Low-rank adaptation, by LitGPT's implementation with our document masks.

y = W x + (alpha / r) B A dropout(x), with W frozen, A (r, in) drawn and B (out, r) zero at the start, so that
training starts from the base exactly. Given up: models of which LitGPT's LoRA classes build something else than its
plain ones (latent attention, grouped or shared experts, dense first layers) are refused.

Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685; litgpt 0.5.13,
litgpt/lora.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import litgpt.lora
import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear, LoRAQKVLinear, mark_only_lora_as_trainable
from torch import Tensor, nn

from lit_consistency.distributed.dtensors import KeptShards, full_tensor
from lit_consistency.methods.base import Method, load_checked
from lit_consistency.model import DocumentMask
from lit_consistency.model.tying import is_tied

UNSUPPORTED = ("latent_attention", "n_expert_groups", "n_shared_expert", "first_k_dense_replace")


class LoRAGPT(DocumentMask, litgpt.lora.GPT):
    """LitGPT's model with LoRA layers and document masks."""


class LoRA(Method):
    """Two low-rank matrices beside each chosen matrix are trained, everything else is frozen.

    Args:
        r: rank of the update, at least 1.
        alpha: the update is scaled by alpha / r, above 0.
        dropout: share of the adapter's inputs that is dropped in training, 0 <= dropout < 1.
        query: adapt the query matrix.
        key: adapt the key matrix.
        value: adapt the value matrix.
        projection: adapt the output projection of attention.
        mlp: adapt the matrices of the MLP, of every expert and of the router.
        head: adapt the output head.
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
        self.options: dict[str, Any] = {"lora_r": r, "lora_alpha": alpha, "lora_dropout": dropout}
        self.options |= {f"lora_{target}": chosen for target, chosen in targets.items()}

    @property
    def name(self) -> str:
        """``lora``."""
        return "lora"

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
        return LoRAGPT(litgpt.lora.Config(**base, **self.options))

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Copy a base model's weights; adapters may be missing from ``weights``. See ``Method.load``."""
        load_checked(model, weights, may_miss="lora_")

    def prepare(self, model: nn.Module) -> None:
        """Only the adapters take a gradient."""
        mark_only_lora_as_trainable(model)

    @torch.no_grad()
    def merged_state(self, model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """W + (alpha / r) B A for every adapted matrix, in W's dtype, under the base model's names; see ``Method``."""
        weights = model.state_dict() if weights is None else weights
        merged = {name.replace(".linear.", "."): value for name, value in weights.items() if "lora_" not in name}
        for name, module in model.named_modules():
            if isinstance(module, LoRALinear) and f"{name}.lora_A" in weights:
                weight = weights[f"{name}.linear.weight"]
                update = lora_update(module, weights[f"{name}.lora_A"], weights[f"{name}.lora_B"])
                merged[f"{name}.weight"] = (weight + update).to(weight.dtype)
        return merged

    @torch.no_grad()
    def changes(self, model: nn.Module, start: KeptShards) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(alpha / r) B A for every adapted matrix, against the frozen weight; see ``Method``."""
        for name, module in model.named_modules():
            if isinstance(module, LoRALinear) and hasattr(module, "lora_A"):
                update = lora_update(module, full_tensor(module.lora_A), full_tensor(module.lora_B))
                yield f"{name}.weight", update, full_tensor(module.linear.weight)

    @contextmanager
    def between(self, model: nn.Module, start: KeptShards, share: float) -> Iterator[None]:
        """The adapters' update scaled by ``share``; their factors themselves do not lie on the way. See ``Method``."""
        adapted = (m for m in model.modules() if isinstance(m, LoRALinear) and hasattr(m, "lora_A"))
        layers: list[tuple[LoRALinear, float]] = [(module, module.scaling) for module in adapted]
        try:
            for module, scaling in layers:
                module.scaling = scaling * share
            yield
        finally:
            for module, scaling in layers:
                module.scaling = scaling


def lora_update(module: LoRALinear, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """What the adapter adds to its weight.

    Args:
        module: the layer, for its scaling and, for the fused query-key-value matrix, the sizes of its blocks.
        lora_A: (r, in), or (r x adapted blocks, in) for the fused matrix.
        lora_B: (out, r), or (rows of the adapted blocks, r).

    Returns:
        (out, in) in float32, or float64 for float64 adapters: a product in half precision would lose what was learned.
    """
    dtype = torch.promote_types(lora_A.dtype, torch.float32)
    lora_A, lora_B = lora_A.to(dtype), lora_B.to(dtype)
    if not isinstance(module, LoRAQKVLinear):
        return (lora_B @ lora_A) * module.scaling
    rows = [module.head_size * heads for heads in (module.n_head, module.n_query_groups, module.n_query_groups)]
    adapted = [n for n, enabled in zip(rows, module.enable_lora, strict=True) if enabled]
    products = iter([b @ a for a, b in zip(lora_A.split(module.r), lora_B.split(adapted), strict=True)])
    blocks = [
        next(products) if enabled else lora_A.new_zeros(n, lora_A.size(1))
        for n, enabled in zip(rows, module.enable_lora, strict=True)
    ]
    return torch.cat(blocks) * module.scaling
