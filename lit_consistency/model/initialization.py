"""Initial weights of a model trained from scratch.

LitGPT leaves them to its pretraining script. Here they are that script's, which are GPT-NeoX's and scale with the
width: GPT-2's fixed deviation of 0.02 suits n_embd near 1000, and lets a model of n_embd 128 start on a plateau.
Weights are drawn in the order of the parameters, adapters last: the same seed gives a LoRA model the same base.
"""

from __future__ import annotations

import math

import torch
from litgpt.config import Config
from litgpt.lora import LoRALinear
from torch import nn


@torch.no_grad()
def init_weights(model: nn.Module, config: Config) -> None:
    """Fill ``model`` in place from the default generator, so ``torch.manual_seed`` decides the result.

    Matrices are normal with deviation sqrt(2 / (5 n_embd)); those that write into the residual stream (``*.proj``, two
    per layer) 1 / (n_layer sqrt(n_embd)); norms scale by 1; biases are 0; LoRA's product is 0.

    Source: Black et al. 2022, GPT-NeoX-20B, arXiv 2204.06745, section 2.1.3; litgpt 0.5.13, litgpt/pretrain.py,
    ``initialize_weights``.
    """
    std = math.sqrt(2 / (5 * config.n_embd))
    residual_std = 1 / (config.n_layer * math.sqrt(config.n_embd))
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "lora_" in name:
                continue
            if parameter.ndim >= 2:
                into_residual = module_name.removesuffix(".linear").endswith(".proj")
                nn.init.normal_(parameter, std=residual_std if into_residual else std)
            elif name == "weight":
                # Gemma's RMSNorm multiplies by 1 + weight
                nn.init.constant_(parameter, 0.0 if getattr(module, "add_unit_offset", False) else 1.0)
            else:
                nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.reset_parameters()
