"""Initial weights of a model trained from scratch.

LitGPT leaves the choice to its pretraining script; this is GPT-2's, which small models of all families train well from.
Weights are drawn in the order of the parameters, adapters last: the same seed gives a LoRA model the same base.
"""

from __future__ import annotations

import math

import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear
from torch import nn

STD = 0.02
"""Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1."""


@torch.no_grad()
def init_weights(model: nn.Module, config: Config) -> None:
    """Fill ``model`` in place from the default generator, so ``torch.manual_seed`` decides the result.

    Matrices are normal(0, 0.02); those that write into the residual stream (``*.proj``, two per layer) are normal(0,
    0.02 / sqrt(2 n_layer)); norms pass their input unchanged; biases are 0; LoRA starts as a change of nothing.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3 (residual scaling).
    """
    residual_std = STD / math.sqrt(2 * config.n_layer)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "lora_" in name:
                continue
            if parameter.ndim >= 2:
                into_residual = module_name.removesuffix(".linear").endswith(".proj")
                nn.init.normal_(parameter, std=residual_std if into_residual else STD)
            elif name == "weight":
                # Gemma's RMSNorm multiplies by 1 + weight
                nn.init.constant_(parameter, 0.0 if getattr(module, "add_unit_offset", False) else 1.0)
            else:
                nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.reset_parameters()
