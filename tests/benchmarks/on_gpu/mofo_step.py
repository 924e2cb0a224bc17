"""MoFO's kernels on a GPU, in at most two minutes: whether they choose rightly, what a step costs, and which launches.

    python -m tests.benchmarks.on_gpu.mofo_step [--seconds 110] [--json mofo_step.json] [--skip-checks]

First every choice against a sort of the scores, and the parameters against the CPU's, then milliseconds beside torch's
fused AdamW: on the device's clock, and of the host alone, which must not be the slower one. ``launches`` counts
kernels, ``waits`` calls with which the host waited for the device; for each way the profiler's dearest kernels follow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_consistency.optimizers import MoFO
from tests.benchmarks.gpu import table
from tests.benchmarks.measure import medians, peak_bytes
from tests.benchmarks.on_gpu.optimizers import WAYS, _gpt2, _llama
from tests.benchmarks.on_gpu.place import Place, Row, attempt, bar, release

# of every kind of block: many segments, an odd number, less than a row of the kernels' tiles, one coordinate
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "large": ((1024, 768), None),
    "odd": ((333, 257), None),
    "fused": ((768, 256), (512, 128, 128)),
    "tiny": ((3, 5), None),
    "one": ((1, 1), None),
}
TINY = {"large": ((64, 24), None), "fused": ((24, 16), (16, 4, 4)), "one": ((1, 1), None)}
BETAS, LR = (0.5, 0.9), 0.01
Case = tuple[str, str, float, torch.dtype, bool]
# the update's size is the same for all coordinates in Adam's first step unless eps is large
EPS = 0.1
F32, BF16 = torch.float32, torch.bfloat16
MOMENTUM: list[Case] = [
    (selection, "momentum", fraction, F32, ties)
    for selection in ("exact", "sampled")
    for fraction in (0.001, 0.15, 0.999)
    for ties in (False, True)
]
# each kind of them compiles some ten programs
OTHERS: list[Case] = [
    ("exact", "momentum", 0.15, BF16, False),
    ("exact", "momentum", 0.15, BF16, True),
    ("sampled", "momentum", 0.15, BF16, False),
    ("exact", "random", 0.15, F32, False),
    ("sampled", "random", 0.15, F32, False),
    ("exact", "complement", 0.15, F32, True),
    ("exact", "complement", 0.15, F32, False),
    ("exact", "adam_update", 0.15, F32, False),
]
STEPS = 3


def parameters(device: str, dtype: torch.dtype, tiny: bool) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = TINY if tiny else SHAPES
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        for name, (shape, _) in shapes.items()
    }


def after_steps(device: str, case: Case, tiny: bool, **options: Any) -> tuple[MoFO, dict[str, nn.Parameter], Row]:
    """Optimizer, parameters, and the targets before the last of three steps."""
    selection, filter, fraction, dtype, ties = case
    named = parameters(device, dtype, tiny)
    groups = [
        {
            "params": [(name, p) for name, p in named.items() if SHAPES[name][1] is None],
            "role": "hidden",
            "split": None,
        },
        {"params": [("fused", named["fused"])], "role": "head", "split": (TINY if tiny else SHAPES)["fused"][1]},
    ]
    options = {"filter": filter, "fraction": fraction, "selection": selection, **options}
    optimizer = MoFO(groups, lr=LR, betas=BETAS, eps=EPS, **options)
    before: Row = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in named.items():
            grad = torch.randn(parameter.shape, generator=generator)
            # few values, and rows of zeros, as of an embedding
            grad = (grad * 2).round() * (torch.arange(len(grad)) % 3 > 0)[:, None] if ties else grad
            parameter.grad = grad.to(device, dtype)
            master = optimizer.state[parameter].get("master", parameter)
            before[name] = master.detach().to("cpu", torch.float32, copy=True)
        optimizer.step()
    return optimizer, named, before


def sorted_choice(score: Tensor, k: int, smallest: bool) -> Tensor:
    """Mask of the k largest, of equal ones the first; or of the k smallest, of equal ones the last."""
    order = score.flip(0).argsort(stable=True) if smallest else score.argsort(descending=True, stable=True)
    mask = torch.zeros(score.shape, dtype=torch.bool)
    mask[len(score) - 1 - order[:k] if smallest else order[:k]] = True
    return mask


def wrong_choices(optimizer: MoFO, named: dict[str, nn.Parameter], before: Row, case: Case, tiny: bool) -> int:
    """Coordinates that an exact step moved and should not have, or the other way around, by a sort of abs(m)."""
    _, filter, fraction, *_ = case
    wrong = 0
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        new = state.get("master", parameter).detach().cpu().float().view(-1)
        split = (TINY if tiny else SHAPES)[name][1]
        sizes = [rows * parameter.shape[1] for rows in split or [len(parameter)]]
        columns = (state["exp_avg"].cpu().view(-1), before[name].view(-1), new)
        for mean, old, now in zip(*(column.split(sizes) for column in columns), strict=True):
            k = max(1, math.ceil(round(fraction * len(mean), 6)))
            should = sorted_choice(mean.abs(), k, filter == "complement") & (mean != 0)
            # an update below the parameter's last bit moves nothing
            visible = mean.abs() > 1e-3
            wrong += int((((now != old) != should) & visible).sum())
    return wrong


def checks(place: Place) -> Iterator[Row]:
    """A row for every case; ``ok`` is what counts."""
    for case in MOMENTUM:
        yield attempt(labels_of(case), _check, case, place)


def more_checks(place: Place) -> Iterator[Row]:
    """The same of other filters and of bfloat16."""
    for case in OTHERS:
        yield attempt(labels_of(case), _check, case, place)


def labels_of(case: Case) -> Row:
    return dict(zip(("selection", "filter", "fraction", "dtype", "ties"), case, strict=True))


def _check(case: Case, place: Place) -> Row:
    began = time.monotonic()
    # a kernel that does not run is an error here, with its traceback
    compile = "always" if place.device == "cuda" else "never"
    optimizer, named, before = after_steps(place.device, case, place.tiny, compile=compile)
    took = time.monotonic() - began
    selected = optimizer.last_selected()
    cpu, expected, _ = after_steps("cpu", case, place.tiny, compile="never")
    start = parameters("cpu", case[3], place.tiny)
    changed, apart = 0.0, 0.0
    for name in named:
        changed += float((expected[name] - start[name]).detach().double().square().sum())
        apart += float((expected[name] - named[name].cpu()).detach().double().square().sum())
    on_cpu = cpu.last_selected()
    row: Row = {"apart": math.sqrt(apart / max(changed, 1e-30)), "selected": selected["hidden"]}
    row |= {"on the CPU": on_cpu["hidden"], "kernels": len(optimizer._on_device._plans)}
    if case[0] == "exact" and case[1] in ("momentum", "complement"):
        row["wrong"] = wrong_choices(optimizer, named, before, case, place.tiny)
    # ties and the coordinate beside a threshold may go the other way where a mean was rounded otherwise
    row["ok"] = row["apart"] < 0.03 and row.get("wrong", 0) == 0 and (row["kernels"] == 2 or place.device == "cpu")
    row["ok"] &= all(abs(selected[role] - on_cpu[role]) <= 0.01 * on_cpu[role] for role in selected)
    return {**row, "s": took}


# -------------------- time


def times(place: Place) -> Iterator[Row]:
    """Of torch's AdamW and of MoFO, and their ratio; after each row its kernels, as text."""
    for size, make in (("GPT-2 small", _gpt2), ("1B", _llama)):
        model = make(place)
        of_way: dict[str, float] = {}
        for name in ("torch AdamW, fused", "MoFO sampled", "MoFO exact"):
            row = attempt({"model": size, "optimizer": name}, _time, model, WAYS[name], place)
            of_way[name] = row.get("ms", math.nan)
            yield row
        for name, limit in (("MoFO sampled", 1.3), ("MoFO exact", 3.0)):
            yield bar(f"{name} / torch AdamW, fused, {size}", of_way[name] / of_way["torch AdamW, fused"], limit)
        if size == "GPT-2 small":
            for parameter in model.parameters():
                # gradients of an embedding are mostly zeros, and all zeros are one tie
                parameter.grad[len(parameter) // 20 :].zero_()
            name = "MoFO exact"
            yield attempt({"model": f"{size}, 95% zeros", "optimizer": name}, _time, model, WAYS[name], place)
            half = model.bfloat16()
            for parameter in half.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
            for name in ("AdamW", "MoFO sampled", "MoFO exact"):
                labels = {"model": f"{size}, bfloat16 with masters, all equal", "optimizer": name}
                yield attempt(labels, _time, half, WAYS[name], place)
            del half, parameter
        del model
        release(place.device)


def _time(model: nn.Module, build: Callable[[nn.Module], Any], place: Place) -> Row:
    release(place.device)
    optimizer = build(model)
    wait = torch.cuda.synchronize if place.device == "cuda" else (lambda: None)
    began = time.monotonic()
    optimizer.step()
    wait()
    first = time.monotonic() - began
    for _ in range(2):
        optimizer.step()
    wait()
    began = time.monotonic()
    for _ in range(3):
        optimizer.step()
    host = (time.monotonic() - began) / 3
    wait()
    ms = medians({"step": optimizer.step}, place.device, rounds=2 if place.tiny else 9)["step"]
    extra = peak_bytes(optimizer.step, place.device)
    row: Row = {"ms": ms, "host ms": 1e3 * host, "extra MB": extra / 1e6, "first step s": first}
    row |= _profile(optimizer.step, wait)
    if isinstance(optimizer, MoFO):
        row["selected"] = optimizer.last_selected()["hidden"]
        began = time.monotonic()
        optimizer.step()
        optimizer.last_selected()
        row["with shares ms"] = 1e3 * (time.monotonic() - began)
    return row


def _profile(step: Callable[[], Any], wait: Callable[[], None], steps: int = 3) -> Row:
    """Launches and waits of a step; ``kernels`` is a table of the dearest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        wait()
    averages = profiler.key_averages()
    on_device = [event for event in averages if event.device_type != torch.autograd.DeviceType.CPU]
    counts = {event.key: event.count / steps for event in averages}
    launches = sum(count for key, count in counts.items() if "LaunchKernel" in key)
    # the wait at the end is this function's own
    waits = sum(count for key, count in counts.items() if key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    copies = sum(count for key, count in counts.items() if "cudaMemcpyAsync" in key)
    on_device.sort(key=lambda event: -event.self_device_time_total)
    rows = [
        {
            "kernel": event.key[:70],
            "ms a step": event.self_device_time_total / 1e3 / steps,
            "a step": event.count / steps,
        }
        for event in on_device[:15]
    ]
    busy = sum(event.self_device_time_total for event in on_device) / 1e3 / steps
    return {"device ms": busy, "launches": launches, "copies": copies, "waits": waits, "kernels": rows}


def main(arguments: list[str] | None = None) -> int:
    """Print rows as they come, and the table at the end; 1 where a choice was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--skip-checks", action="store_true")
    # a rehearsal where there is no GPU
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    place = Place(options.device, options.tiny, time.monotonic() + options.seconds)
    rows: list[Row] = []
    for part in (times,) if options.skip_checks else (checks, times, more_checks):
        of_part = len(rows)
        for row in part(place):
            rows.append(row)
            kernels = row.pop("kernels", None) if part is times else None
            if problem := row.get("error"):
                print(problem, flush=True)
            if kernels:
                print(f"\n{row['model']}, {row['optimizer']}: {row['ms']:.3f} ms\n{table(kernels)}", flush=True)
            if options.json:
                options.json.write_text(
                    json.dumps([*rows, *({"kernels": kernels} for _ in range(bool(kernels)))], default=str)
                )
            if place.left() < 0:
                print("the time is over")
                break
        shown = [row for row in rows[of_part:] if "bar" not in row]
        print(table([{key: value for key, value in row.items() if key != "error"} for row in shown]))
        print(
            "\n".join(f"{'met   ' if row['met'] else 'MISSED'} {row['bar']}" for row in rows[of_part:] if "bar" in row)
        )
        print(flush=True)
    return int(not all(row.get("ok", True) and "error" not in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
