"""Evaluate in the middle of training and leave no trace.

A run with evaluation must equal a run without it bit for bit: evaluation draws no random number that training would
have drawn, flips no module for good, and leaves no gradient behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random states and every module's training flag are put back afterwards."""
    flags = {module: module.training for module in model.modules()}
    with isolate_rng(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in flags.items():
                module.training = training
