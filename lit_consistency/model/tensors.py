"""Tensors one by one: read from a file that holds many, written to one, and asked whether they are numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_consistency.records.atomic import give_usual_rights


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a file of safetensors, in the file's dtype.

    Raises:
        ValueError: the file is damaged, or has no such tensor; names both.
    """
    try:
        # opened for each tensor: pages of a file that stays mapped count as used memory
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {name} cannot be read ({error})") from None


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of safetensors that others may read as any new file; safetensors 0.8 lets only its owner."""
    save_file(dict(tensors), file, metadata=dict(metadata) if metadata else None)
    give_usual_rights(file)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity; without memory beside it, unless it is in float16."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # the CPU has no such reduction in float16; both ends are NaN if anything is
    least, greatest = torch.aminmax(tensor.float() if tensor.dtype == torch.float16 else tensor)
    return math.isfinite(least) and math.isfinite(greatest)
