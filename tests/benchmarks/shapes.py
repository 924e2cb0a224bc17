"""Sets of parameters with gradients, as models have them; every optimizer of a comparison moves the same ones."""

from __future__ import annotations

from typing import Any

import torch
from litgpt import GPT, Config
from torch import nn

from lit_consistency.optimizers import parameter_groups

Groups = list[dict[str, Any]]
# Radford et al. 2019, with tied embeddings; LitGPT has rotary positions in place of learned ones
GPT2_SMALL: dict[str, Any] = {"n_embd": 768, "n_head": 12, "padded_vocab_size": 50257, "block_size": 1024}
LLAMA_1B: dict[str, Any] = {"n_embd": 2048, "n_head": 32, "n_query_groups": 8, "head_size": 64}  # Llama-3.2-1B
LLAMA_1B |= {"intermediate_size": 8192, "mlp_class_name": "LLaMAMLP", "norm_class_name": "RMSNorm", "bias": False}


def with_gradients(model: nn.Module) -> nn.Module:
    """The model with numbers of the usual size in its parameters and their gradients."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
        parameter.grad = torch.empty_like(parameter).normal_(std=1e-3)
    return model


def gpt2(n_layer: int, device: str) -> nn.Module:
    """GPT-2 small with that many of its 12 layers."""
    with torch.device("meta"):
        model = GPT(Config(n_layer=n_layer, **GPT2_SMALL, bias=True, lm_head_bias=False))
    model.lm_head.weight = model.transformer.wte.weight
    return with_gradients(model.to_empty(device=device))


def llama_layer(device: str) -> nn.Module:
    """One layer of Llama-3.2-1B."""
    with torch.device("meta"):
        model = GPT(Config(n_layer=1, padded_vocab_size=64, block_size=64, **LLAMA_1B))
    return with_gradients(model.transformer.h.to_empty(device=device))


def plain(shapes: list[tuple[int, ...]], device: str) -> nn.Module:
    """Parameters that belong to no model, of role hidden where they are matrices."""
    model = nn.Module()
    for i, shape in enumerate(shapes):
        model.register_parameter(f"w{i}", nn.Parameter(torch.empty(shape, device=device)))
    return with_gradients(model)


def sets_of_adamw(device: str) -> dict[str, nn.Module]:
    """For optimizers that look at each number by itself."""
    return {
        "4 x 4M": plain([(2048, 2048)] * 4, device),
        "GPT-2 small": gpt2(12, device),
        "300 x 1K": plain([(32, 32)] * 300, device),
        "LoRA r 8, 96 pairs": plain([(8, 768), (768, 8)] * 96, device),
    }


def hidden_groups(model: nn.Module, qkv: str = "split") -> Groups:
    """The groups of hidden matrices alone."""
    return [group for group in parameter_groups(model, qkv=qkv) if group["role"] == "hidden"]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The hidden matrices, as torch.optim.Muon takes them."""
    return [parameter for group in hidden_groups(model, "fused") for _, parameter in group["params"]]


def block_shapes(groups: Groups) -> list[tuple[int, int]]:
    """(rows, columns) of every block of the groups' matrices."""
    return [
        (rows, parameter.shape[-1])
        for group in groups
        for _, parameter in group["params"]
        for rows in (group["split"] or (parameter.shape[-2],))
    ]
