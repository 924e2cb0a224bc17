"""Layers of DoRA, and what LoRA and DoRA make of a matrix.

LoRA: W' = W + s B A. DoRA: W' = m (W + s B A) / |W + s B A|, with |.| the norm of every row, which is an output of the
layer, and m = |W| at the start, so that training starts from the base exactly. s is ``layer.scaling``: alpha / r, or
alpha / sqrt(r) with rsLoRA. m takes a gradient, the norm is a constant for it, as in the paper's section 4.3 and in
PEFT. The bias is not scaled.

Given up: dropout on what the base contributes to the rescaled part, which PEFT applies and which costs one more
product; here only the adapter's input is dropped, as in LoRA. FSDP2 in bf16-mixed rounds m to bfloat16 where it
computes, as it rounds all weights, so that a row may start 0.4% off.

Source: Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv 2402.09353; one magnitude per output as in
github.com/NVlabs/DoRA and in PEFT 0.21, ``peft/tuners/lora/dora.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from litgpt.lora import LoRALinear, LoRAQKVLinear
from torch import Tensor, nn

FACTORS = ("lora_A", "lora_B")
MAGNITUDE = "lora_magnitude"


class DoRALinear(LoRALinear):
    """LitGPT's LoRA layer whose adapted rows have a size of their own, ``lora_magnitude``."""

    lora_magnitude: nn.Parameter  # (adapted rows,), of a fused matrix those of its adapted blocks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Factors as LoRA's, magnitudes those of the weight as it is now."""
        super().reset_parameters()
        self.reset_magnitude()

    @torch.no_grad()
    def reset_magnitude(self) -> None:
        """The size of every adapted row becomes that of W + s B A."""
        self.lora_magnitude.copy_(self.norms())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Norm of every adapted row of W + s B A: (adapted rows,) in float32, or float64 for float64 adapters."""
        # autocast would multiply in bfloat16, and the norms at the start would not be those of the weight
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            return self.adapted_rows(row_norms(self.linear.weight + lora_update(self, self.lora_A, self.lora_B)))

    def adapted_rows(self, values: Tensor) -> Tensor:
        """Of one value for each row of the matrix, those of the adapted rows."""
        return values

    def all_rows(self, values: Tensor) -> Tensor:
        """One value for each row of the matrix, of those for the adapted rows; 0 for the others."""
        return values

    @torch.no_grad()
    def get_lora_AB(self) -> Tensor:
        """The change of the weight, which LitGPT's ``merge`` adds."""
        factors = {name: getattr(self, name) for name in (*FACTORS, MAGNITUDE)}
        return adapted_weight(self, self.linear.weight, factors) - self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """(W x + s B A x) m / |W + s B A| + bias."""
        output = super().forward(x)
        if self.merged:
            return output
        # as a change, which is none at the start, to the last bit, with a bias too
        stretch = self.all_rows(self.lora_magnitude / self.norms() - 1).to(output.dtype)
        bias = self.linear.bias
        return output + stretch * (output if bias is None else output - bias.to(output.dtype))


class DoRAQKVLinear(DoRALinear, LoRAQKVLinear):
    """DoRA of the fused matrix of query, key and value, of which blocks may be left alone."""

    def adapted_rows(self, values: Tensor) -> Tensor:
        """See ``DoRALinear``."""
        blocks = zip(values.split(qkv_rows(self)), self.enable_lora, strict=True)
        return torch.cat([block for block, enabled in blocks if enabled])

    def all_rows(self, values: Tensor) -> Tensor:
        """See ``DoRALinear``."""
        return torch.cat(_with_zeros(self, values.split(self.qkv_shapes)))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Name and layer of everything that has adapters."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear) and hasattr(module, "lora_A"):
            yield name, module


def add_magnitudes(model: nn.Module) -> None:
    """Make DoRA's layers of LoRA's, in place, without drawing a random number; ``reset_magnitude`` sets their sizes."""
    for _, layer in adapted_layers(model):
        # the constructors of LitGPT name the classes of its layers; as FSDP2 does, the class is changed afterwards
        layer.__class__ = DoRAQKVLinear if isinstance(layer, LoRAQKVLinear) else DoRALinear
        assert isinstance(layer, DoRALinear)
        layer.lora_magnitude = nn.Parameter(layer.lora_A.new_ones(layer.lora_B.size(0)))


def factors_of(path: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What adapts the layer ``path``, by its name in the layer, out of a state dict."""
    names = {name: f"{path}.{name}" for name in (*FACTORS, MAGNITUDE)}
    return {name: weights[key] for name, key in names.items() if key in weights}


def adapted_weight(layer: LoRALinear, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """The weight with its adapters merged.

    Args:
        layer: for its scaling, its class and the sizes of its blocks; its own tensors are not read.
        weight: W (out, in), full.
        factors: of ``factors_of``, full.

    Returns:
        (out, in) in float32, or float64 for float64 adapters, whatever the dtype of W.
    """
    adapted = weight + lora_update(layer, factors["lora_A"], factors["lora_B"])
    if not isinstance(layer, DoRALinear):
        return adapted
    stretch = layer.all_rows(factors[MAGNITUDE] / layer.adapted_rows(row_norms(adapted)) - 1)
    return adapted + stretch[:, None] * adapted


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean norm of every row, (out,)."""
    return torch.linalg.vector_norm(weight, dim=1)


def lora_update(layer: LoRALinear, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """What LoRA adds to its weight: s B A.

    Args:
        layer: for its scaling and, for the fused query-key-value matrix, the sizes of its blocks.
        lora_A: (r, in), or (r x adapted blocks, in) for the fused matrix.
        lora_B: (out, r), or (rows of the adapted blocks, r).

    Returns:
        (out, in) in float32, or float64 for float64 adapters: a product in half precision would lose what was learned.
    """
    dtype = torch.promote_types(lora_A.dtype, torch.float32)
    lora_A, lora_B = lora_A.to(dtype), lora_B.to(dtype)
    if not isinstance(layer, LoRAQKVLinear):
        return (lora_B @ lora_A) * layer.scaling
    factors = zip(lora_A.split(layer.r), lora_B.split(layer.qkv_shapes), strict=True)
    return torch.cat(_with_zeros(layer, [b @ a for a, b in factors])) * layer.scaling


def qkv_rows(layer: LoRAQKVLinear) -> list[int]:
    """Rows of query, key and value in the fused matrix."""
    return [layer.head_size * heads for heads in (layer.n_head, layer.n_query_groups, layer.n_query_groups)]


def _with_zeros(layer: LoRAQKVLinear, adapted: Sequence[Tensor]) -> list[Tensor]:
    """The three blocks of a fused matrix, or of values for its rows, of those that are adapted."""
    blocks = iter(adapted)
    return [
        next(blocks) if enabled else adapted[0].new_zeros(rows, *adapted[0].shape[1:])
        for rows, enabled in zip(qkv_rows(layer), layer.enable_lora, strict=True)
    ]
