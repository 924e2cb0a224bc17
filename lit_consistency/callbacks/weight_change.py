"""Distance of the weights from where they started, per role, and the share of the coordinates that have ever moved.

One tensor is read at a time; between measurements one bit per coordinate is kept, on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class WeightChange:
    """Distances between the start and now, and the coordinates that had moved at this or an earlier measurement.

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
            bits = _moved_bits(change)
            if name in self._moved:
                bits |= self._moved[name]
            self._moved[name] = bits
            terms = (_squared_norm(change), _squared_norm(start), float(count_bits(bits)), float(change.numel()))
            for key in (self.roles.get(name, "other"), "all"):
                sums[key] = [a + b for a, b in zip(sums[key], terms, strict=True)]
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
        """Go on from the moved coordinates of a checkpoint."""
        self._moved = {name: bits.cpu() for name, bits in state.items()}


PART = 1 << 20
"""Coordinates that are looked at together: what is made of all of a large embedding is several times its bytes."""


def _moved_bits(change: Tensor) -> Tensor:
    flat = change.flatten()
    return torch.cat([pack_bits(flat[first : first + PART] != 0) for first in range(0, max(len(flat), 1), PART)]).cpu()


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8 (numel / 8, rounded up), eight coordinates a byte, the last byte filled up with zeros."""
    flat = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8))
    return (flat.view(-1, 8) * _bit_values(mask.device)).sum(-1, dtype=torch.uint8)


def count_bits(bits: Tensor) -> int:
    """Number of true coordinates in the tensor that was packed."""
    values = _bit_values(bits.device)
    return sum(int(((part[:, None] & values) != 0).sum()) for part in bits.split(PART // 8))


def _bit_values(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


def _squared_norm(tensor: Tensor) -> float:
    """Summed in float64, some of the tensor at a time: a norm of torch in another type copies the whole into it."""
    parts = tensor.flatten().split(PART)
    return float(torch.stack([part.double().square().sum() for part in parts]).sum())
