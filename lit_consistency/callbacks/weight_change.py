"""How far the weights are from where they started, per role, and which share of the coordinates has ever moved.

One tensor is looked at at a time; what is kept between measurements is one bit per coordinate, on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class WeightChange:
    """Distances between the start and now, and the coordinates that were found moved at any measurement.

    Args:
        roles: name of a base-format tensor -> its role (``hidden``, ``embedding``, ...).
    """

    def __init__(self, roles: Mapping[str, str]) -> None:
        self.roles = roles
        self._moved: dict[str, Tensor] = {}

    def measure(self, changes: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, float]:
        """Numbers named ``distance/ROLE``, ``relative_distance/ROLE`` and ``moved/ROLE``, and the same for ``all``.

        Args:
            changes: (name, change, start), tensors of one shape; a name that is missing has not changed.

        Returns:
            Frobenius norm of the change; that over the norm of the start; share of coordinates in [0, 1] whose change
            was not zero at this or an earlier measurement.
        """
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
        for name, change, start in changes:
            bits = pack_bits(change != 0).cpu()
            if name in self._moved:
                bits |= self._moved[name]
            self._moved[name] = bits
            found = (_squared_norm(change), _squared_norm(start), float(count_bits(bits)), float(change.numel()))
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
        return dict(self._moved)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the moved coordinates of an earlier part of the run."""
        self._moved = {name: bits.cpu() for name, bits in state.items()}


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8 (numel / 8, rounded up), eight coordinates a byte, the places behind the end zero."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    return (flat.view(-1, 8) * _places(mask.device)).sum(-1, dtype=torch.uint8)


def count_bits(bits: Tensor) -> int:
    """How many coordinates were true in the tensor that was packed."""
    return int(((bits[:, None] & _places(bits.device)) != 0).sum())


def _places(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


def _squared_norm(tensor: Tensor) -> float:
    """Summed in float64, without a copy of the tensor in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
