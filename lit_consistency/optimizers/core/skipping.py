"""Steps that change nothing where a flag on the device says so, so that nobody waits for the device to learn it.

The flag is torch's own ``found_inf``, by which a gradient scaler skips steps of the fused optimizers: float32 of shape
(), 1 where the step is to change nothing and 0 elsewhere. ``Optimizer.found_inf`` holds it while an optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer heeds ``found_inf``: one of ours that says so, or one of torch's that is fused."""
    return bool(getattr(optimizer, "heeds_found_inf", False) or getattr(optimizer, "_step_supports_amp_scaling", False))


@contextmanager
def unchanged_where(found_inf: Tensor | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within, tensors are changed in place; behind it they are, bit for bit, as before where the flag is 1.

    Costs a copy of the tensors meanwhile; nothing without a flag.

    Args:
        found_inf: the flag, on the tensors' device; None for no flag.
        tensors: local tensors.
    """
    if found_inf is None:
        yield
        return
    before = [tensor.clone() for tensor in tensors]
    yield
    skipped = found_inf > 0
    for tensor, old in zip(tensors, before, strict=True):
        torch.where(skipped, old, tensor, out=tensor)
