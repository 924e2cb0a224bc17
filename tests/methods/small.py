"""A model of two layers, optimizers as their configurations give them, and steps as a run takes them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from torch import nn

from lit_consistency.methods import Method
from lit_consistency.model import model_config
from lit_consistency.optimizers import parameter_groups

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizers").glob("*.yaml"))
SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 4, "vocab_size": 64, "block_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "pythia-14m": {"intermediate_size": 32, "rotary_percentage": 0.5},
    "Llama-3.2-1B": {"intermediate_size": 32, "n_query_groups": 2},
    "Qwen3-0.6B": {"intermediate_size": 32, "n_query_groups": 2},
    "Mixtral-8x7B-v0.1": {"intermediate_size": 24, "n_query_groups": 2, "n_expert": 3, "n_expert_per_token": 2},
}


def small_config(family: str = "pythia-14m", **overrides: Any) -> Config:
    return model_config(family, None, {**SIZES, **FAMILIES[family], **overrides}, None)


def small_model(method: Method, family: str = "pythia-14m", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = method.build(small_config(family)).to(dtype)
    method.prepare(model)
    method.begin(model)
    return model


def optimizer_of(name: str, **options: Any) -> Callable[[list[dict]], torch.optim.Optimizer]:
    """The optimizer of ``configs/optimizers/<name>.yaml`` with some options changed."""
    given = yaml.safe_load((CONFIGS / "optimizers" / f"{name}.yaml").read_text())["model"]["optimizer"]
    module, _, class_name = given["class_path"].rpartition(".")
    return lambda groups: getattr(import_module(module), class_name)(groups, **{**given["init_args"], **options})


def train(
    method: Method,
    model: nn.Module,
    factory: Callable[[list[dict]], torch.optim.Optimizer],
    steps: int = 4,
    qkv: Any = "split",
) -> torch.optim.Optimizer:
    """As a run does it: gradients of the whole step, the method, the optimizer."""
    optimizer = factory(parameter_groups(model, qkv))
    method.attach(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        data_loss(model, generator).backward()
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def data_loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    tokens = torch.randint(0, 64, (2, 8), generator=generator)
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
