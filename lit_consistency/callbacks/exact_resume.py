"""What a checkpoint must hold beyond Lightning's, so that a resumed run continues bit for bit.

Random states of Python, NumPy and torch. Where somebody saves in the middle of an accumulation, the loader begins that
optimizer step anew, so gathered gradients need not be saved. Only tensors and plain values: a checkpoint is read with
``weights_only=True``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ExactResume(Callback):
    """Save and restore random states; the position in the data is the loader's own."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states to the checkpoint."""
        checkpoint["random_states"] = random_states()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the states out of the checkpoint."""
        self._restored = checkpoint.get("random_states", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the states back, last of all, when everything that could draw a random number has been set up."""
        if self._restored:
            set_random_states(self._restored)
        self._restored = {}


def random_states() -> dict[str, Any]:
    """States of the global generators, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what ``random_states`` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
