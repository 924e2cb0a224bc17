"""How far the weights are from where they started, per role, and which share of the coordinates has ever moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


class WeightChange:
    """Distances between the start and now, and the coordinates that were found moved at any measurement.

    Args:
        roles: name of a base-format tensor -> its role (``hidden``, ``embedding``, ...).
    """

    def __init__(self, roles: Mapping[str, str]) -> None:
        self.roles = roles
        self.moved: dict[str, Tensor] = {}

    def measure(self, changes: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Numbers named ``distance/ROLE``, ``relative_distance/ROLE`` and ``moved/ROLE``, and the same for ``all``.

        Args:
            changes: name -> (change, start), tensors of one shape; a name that is missing has not changed.

        Returns:
            Frobenius norm of the change; that over the norm of the start; share of coordinates in [0, 1] whose change
            was not
            zero at this or an earlier measurement.
        """
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
        for name, (change, start) in changes.items():
            # kept on the CPU: one byte per coordinate
            here = (change != 0).cpu()
            self.moved[name] = self.moved[name] | here if name in self.moved else here
            found = (
                float(change.double().square().sum()),
                float(start.double().square().sum()),
                float(self.moved[name].sum()),
                float(change.numel()),
            )
            for key in (self.roles.get(name, "other"), "all"):
                sums[key] = [a + b for a, b in zip(sums[key], found, strict=True)]
        numbers = {}
        for role, (change2, start2, moved, numel) in sums.items():
            numbers[f"distance/{role}"] = change2**0.5
            if start2:  # biases start at zero in a new model
                numbers[f"relative_distance/{role}"] = (change2 / start2) ** 0.5
            numbers[f"moved/{role}"] = moved / numel
        return numbers

    def state_dict(self) -> dict[str, Tensor]:
        """The moved coordinates, one bit each."""
        return {name: pack_bits(mask) for name, mask in self.moved.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
        """Take up the moved coordinates of an earlier part of the run."""
        self.moved = {name: unpack_bits(bits, shapes[name]) for name, bits in state.items() if name in shapes}


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8, eight coordinates a byte."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (flat.view(-1, 8) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of this shape that was packed."""
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return ((bits[:, None] & weights) != 0).flatten()[: shape.numel()].view(shape)
