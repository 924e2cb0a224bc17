"""What follows from a block's shape and the hardware: form and precision of Newton-Schulz, and the size of a step.

Rules, and no stopwatch: two runs of a study on one kind of machine take the same, and ``run.json`` says what. Given up:
the fastest choice on every machine; where a rule is wrong, name ``ns_form`` and ``ns_dtype``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from lit_consistency.optimizers.groups import blocks

NSForm = Literal["auto", "direct", "gram"]
NSDtype = Literal["auto", "float32", "bfloat16"]
Form = Literal["direct", "gram"]
LrScale = Literal["match_rms_adamw", "original", "spectral"]
# Short side of a block up to which a CPU works on stacks in float32: small runs are alike on every CPU.
SMALL = 256
# Long side over short side from which the Gram form is the faster one. Measured on CPUs with symmetric products, one
# layer of GPT-2 small in float32: direct and Gram together from 1.5 take 0.58 of the direct form without them.
GRAM_ASPECT = 1.5
# The same for large blocks on CUDA, where Gram matrices lose precision and are formed anew: 14 n^3 + 4 n^2 m products
# against 5 n^3 + 10 n^2 m are a fifth fewer from here. Counted, not measured.
GRAM_ASPECT_CUDA = 2.25


class Choice(NamedTuple):
    """Form and precision of the iterations."""

    form: Form
    dtype: torch.dtype


@functools.lru_cache(maxsize=1024)  # asked for every stack in every step
def choose(
    ns_form: NSForm, ns_dtype: NSDtype, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> Choice:
    """Form and precision of the iterations on blocks of (rows, columns).

    Args:
        ns_form: what was asked for; ``auto`` leaves it to the rule.
        ns_dtype: likewise.
        rows: of a block.
        columns: of a block.
        device: of the block.
        dtype: of the block; float64 stays float64.
    """
    short, long = sorted((rows, columns))
    if dtype == torch.float64:
        precision = dtype
    elif ns_dtype != "auto":
        precision = getattr(torch, ns_dtype)
    else:
        large_or_cuda = short > SMALL or device.type == "cuda"
        precision = torch.bfloat16 if large_or_cuda and multiplies_bfloat16(device) else torch.float32
    if ns_form != "auto":
        return Choice(ns_form, precision)
    restarts = device.type == "cuda" and short > SMALL and precision == torch.bfloat16
    aspect = GRAM_ASPECT_CUDA if restarts else GRAM_ASPECT
    return Choice("gram" if long >= aspect * short else "direct", precision)


def choices_of(groups: Sequence[Mapping[str, Any]], paired: bool) -> list[dict[str, Any]]:
    """``choose`` for every block shape of parameter groups, fit for JSON: device, shape, form and dtype of each.

    Args:
        groups: an optimizer's, which are orthogonalized.
        paired: whether adapters move in pairs, which is another iteration.
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        for param in group["params"] if not (paired and group["role"] == "adapter") else ():
            dtype = torch.promote_types(param.dtype, torch.float32)
            for block in blocks(torch.empty(param.shape, device="meta"), group["split"]):
                choice = choose(group["ns_form"], group["ns_dtype"], *block.shape, param.device, dtype)
                row = {"device": param.device.type, "shape": list(block.shape), "form": choice.form}
                row["dtype"] = str(choice.dtype).removeprefix("torch.")
                if row not in rows:
                    rows.append(row)
    return rows


@functools.cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are clearly faster than in float32, because the hardware has them.

    On CUDA from compute capability 8.0 (Ampere). On a CPU with AMX: a Muon step of a GPT-2 layer takes 146 ms there and
    487 ms in float32. A CPU without takes 5 times (AVX-512) to 48 times (AVX2) float32's time, and one with AVX-512's
    bfloat16 alone was not measured: it keeps float32, which is more exact. ``ONEDNN_MAX_CPU_ISA`` may forbid AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return torch.cpu._is_amx_tile_supported() and (allowed in ("ALL", "DEFAULT") or "AMX" in allowed)


def shape_scale(lr_scale: LrScale, rows: int, columns: int) -> float:
    """Factor on the learning rate for the polar factor of a block of (rows, columns)."""
    if lr_scale == "match_rms_adamw":
        # Liu et al. 2025, arXiv 2502.16982, section 2.2: entries then have the root mean square 0.2 that AdamW's have
        return 0.2 * math.sqrt(max(rows, columns))
    if lr_scale == "original":
        # https://github.com/KellerJordan/Muon/blob/f90a42b28e00b8d9d2d05865fe90d9f39abcbcbd/muon.py, class Muon
        return math.sqrt(max(1, rows / columns))
    # Bernstein 2025, https://jeremybernste.in/writing/deriving-muon: the update's RMS-to-RMS operator norm is 1
    return math.sqrt(rows / columns)
