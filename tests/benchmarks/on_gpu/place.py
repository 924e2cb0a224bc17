"""Where a part of the GPU benchmark runs, how long it may, and what it says: rows, which are written as they come."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from lit_consistency.callbacks.throughput import available_flops
from tests.benchmarks.measure import Bar, gemm_flops, seconds

Row = dict[str, Any]


class Place(NamedTuple):
    """Of a part.

    Args:
        device: ``cuda``, or ``cpu`` for a rehearsal.
        tiny: shapes that a CPU runs in a moment; the numbers mean nothing then.
        deadline: of ``time.monotonic``.
    """

    device: str
    tiny: bool
    deadline: float

    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.deadline - time.monotonic()


def bar(name: str, value: float, limit: float, *, at_least: bool = False) -> Row:
    """What a number must be, as a row."""
    asked = Bar(name, value, limit, at_least)
    return {"bar": asked.text, "value": value, "limit": limit, "met": asked.met}


def attempt(labels: Mapping[str, Any], measure: Callable[..., Row], *arguments: Any) -> Row:
    """The labels with what was measured; or with the traceback, so that the rows behind it still come."""
    try:
        return {**labels, **measure(*arguments)}
    except Exception:
        return {**labels, "error": traceback.format_exc()}


def or_skip(place: Place, need: float, labels: Mapping[str, Any], measure: Callable[..., Row], *arguments: Any) -> Row:
    """As ``attempt``, or a row that says that less than ``need`` seconds were left."""
    if place.left() < need:
        return {**labels, "skipped": f"{place.left():.0f} s left, {need:.0f} wanted"}
    return attempt(labels, measure, *arguments)


def release(device: str) -> None:
    """Give back memory that nothing uses, and count the peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    """Most bytes of tensors at once since ``release``, in GiB; 0 on a CPU, which does not count them."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def peak_flops(device: str) -> float:
    """Dense bfloat16 operations per second of the card by its data sheet, as ``speed/model_flops_use`` has them."""
    known = available_flops(torch.device(device), SimpleNamespace(precision="bf16-true"))  # type: ignore[arg-type]
    return float(known) if known else math.nan


def copy_bytes_per_second(device: str, nbytes: int) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * nbytes / seconds(lambda: target.copy_(source), device, repeats=5)


def card(place: Place) -> Iterator[Row]:
    """What the machine is, and the two ceilings that everything else is held against, measured on random data."""
    import lightning
    import litgpt

    row: Row = {"torch": torch.__version__, "cuda": torch.version.cuda, "lightning": lightning.__version__}
    row["litgpt"] = getattr(litgpt, "__version__", "?")
    if place.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        row |= {"card": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        row |= {"memory GiB": properties.total_memory / 2**30, "multiprocessors": properties.multi_processor_count}
    yield row
    size, nbytes = (128, 2**20) if place.tiny else (8192, 2**32)
    reached = gemm_flops(size, torch.bfloat16, place.device)
    yield {
        "bf16 TFLOP/s": reached / 1e12,
        "of the data sheet": reached / peak_flops(place.device),
        "copy TB/s": copy_bytes_per_second(place.device, nbytes) / 1e12,
    }
