"""Train all weights."""

from __future__ import annotations

from torch import nn

from lit_consistency.methods.base import Method


class Full(Method):
    """All weights of the model are trained."""

    @property
    def name(self) -> str:
        """``full``."""
        return "full"

    def prepare(self, model: nn.Module) -> None:
        """Every parameter takes a gradient."""
        model.requires_grad_(True)
