"""Small models and groups for the tests of this folder."""

from __future__ import annotations

from typing import Any

import litgpt.lora
import torch
from litgpt import GPT, Config
from torch import Tensor, nn

SIZES: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 4, "padded_vocab_size": 48, "block_size": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "pythia-14m": {"intermediate_size": 32},
    "Llama-3.2-1B": {"intermediate_size": 32, "n_query_groups": 2, "head_size": 4},
    "Gemma-2b": {"intermediate_size": 32, "n_query_groups": 1, "head_size": 8},
    "Mixtral-8x7B-v0.1": {"intermediate_size": 24, "n_query_groups": 2, "n_expert": 3},
}


def small_gpt(family: str = "Llama-3.2-1B") -> GPT:
    torch.manual_seed(0)
    return GPT(Config.from_name(family, **SIZES, **FAMILIES[family]))


def small_lora(family: str = "Llama-3.2-1B", **options: Any) -> litgpt.lora.GPT:
    torch.manual_seed(0)
    options = {"lora_query": True, "lora_value": True, "lora_mlp": True} | options
    config = litgpt.lora.Config.from_name(family, **SIZES, **FAMILIES[family], lora_r=2, lora_alpha=4, **options)
    model = litgpt.lora.GPT(config)
    litgpt.lora.mark_only_lora_as_trainable(model)
    return model


def one_matrix(
    rows: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.float64,
    role: str = "hidden",
    split: tuple[int, ...] | None = None,
) -> tuple[nn.Parameter, list[dict[str, Any]]]:
    """A parameter named ``w`` and the one group that holds it."""
    parameter = nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=dtype))
    return parameter, [{"params": [("w", parameter)], "role": role, "split": split}]


def random_grads(shape: tuple[int, ...], steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(steps)]


def follow(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, grads: list[Tensor]) -> Tensor:
    """The parameter after one step for each gradient."""
    for grad in grads:
        parameter.grad = grad.to(parameter.dtype)
        optimizer.step()
    return parameter.detach().clone()
