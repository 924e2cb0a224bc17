"""How fast the optimizers are, what memory a step takes, and that the loss is what it was: numbers beside their bars.

    python -m tests.benchmarks.optimizers [--check] [--device cuda] [--json FILE] [--only muon ...]

On a CPU a number is the process's CPU time with one thread, on CUDA the time between events; steps are interleaved in
shuffled rounds and the median is taken, so that ratios hold on a machine that is busy with other things. With --check
the exit status is 1 where a bar is missed. It ends within 5 minutes on two cores.

Muon is measured in two processes on a CPU: as it is, and with oneDNN kept from the bfloat16 instructions, as on CPUs
that have none. There torch.optim.Muon takes minutes for all 12 layers or for a layer of 1B, so that one layer of GPT-2
stands for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_consistency.optimizers import AdamW, MoFO, Muon, parameter_groups
from tests.benchmarks import quality, shapes
from tests.benchmarks.measure import Bar, Step, medians, peak_bytes, table
from tests.reference.mofo_topk import TopkMoFO

Section = tuple[list[dict[str, str]], list[Bar]]
N_LAYER = 12  # of GPT-2 small
NO_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
CONDITIONS: dict[str, dict[str, tuple[dict[str, str], list[str]]]] = {
    # environment and sets of each process
    "cpu": {"as it is": ({}, ["gpt2-layer", "1b-layer"]), "bfloat16 emulated": (NO_BF16, ["gpt2-layer"])},
    "cuda": {"as it is": ({}, ["gpt2", "1b-layer"])},
}


def adamw(device: str) -> Section:
    """AdamW against torch's fused one, and what parameters in bfloat16 cost."""
    rows, bars = [], []
    for name, model in shapes.sets_of_adamw(device).items():
        groups = parameter_groups(model)
        steps: dict[str, Step] = {
            "torch": torch.optim.AdamW(model.named_parameters(), fused=True).step,
            "ours": AdamW(groups, weight_decay=0.01).step,
        }
        if name == "4 x 4M":
            for way in ("master", "stochastic", "nearest"):
                half = shapes.with_gradients(shapes.plain([(2048, 2048)] * 4, device).bfloat16())
                steps[way] = AdamW(parameter_groups(half), weight_decay=0.01, low_precision=way).step
        times = medians(steps, device, rounds=15)
        rows += [
            {"set": name, "AdamW": step, "ms": f"{ms:.2f}", "x torch": f"{ms / times['torch']:.3f}"}
            for step, ms in times.items()
        ]
        bars.append(Bar(f"AdamW / torch fused, {name}", times["ours"] / times["torch"], 1.05))
    return rows, bars


def mofo(device: str) -> Section:
    """MoFO against torch's fused AdamW, and against a plain filter by topk."""
    rows, bars = [], []
    for name, model in list(shapes.sets_of_adamw(device).items())[:2]:
        groups = parameter_groups(model)
        steps: dict[str, Step] = {
            "torch AdamW": torch.optim.AdamW(model.parameters(), fused=True).step,
            "sampled": MoFO(groups, selection="sampled").step,
            "exact": MoFO(groups, selection="exact").step,
        }
        times = medians(steps, device, rounds=7)
        if name == "4 x 4M":
            times |= medians({"topk": TopkMoFO(model.parameters()).step}, device, rounds=3)
            bars.append(Bar(f"topk / MoFO sampled, {name}", times["topk"] / times["sampled"], 15, at_least=True))
        base = times["torch AdamW"]
        bars.append(Bar(f"MoFO sampled / torch AdamW, {name}", times["sampled"] / base, 1.3))
        bars.append(Bar(f"MoFO exact / torch AdamW, {name}", times["exact"] / base, 3.0))
        rows += [
            {"set": name, "MoFO": step, "ms": f"{ms:.1f}", "x torch AdamW": f"{ms / base:.2f}"}
            for step, ms in times.items()
        ]
    return rows, bars


def muon(device: str) -> Section:
    """Muon against torch.optim.Muon, each condition in a process of its own."""
    rows, bars = [], []
    for condition, (environment, sets) in CONDITIONS[device].items():
        command = [sys.executable, "-m", "tests.benchmarks.muon_speed", "--device", device, "--sets", *sets]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        for name, times in json.loads(done.stdout.splitlines()[-1]).items():
            row = {"bfloat16": condition, "set": name, "TFLOP/s": f"{times.pop('TFLOP/s'):.2f}"}
            torch_ms = times["torch.optim.Muon"]
            row |= {key: f"{ms:.0f} ms ({torch_ms / ms:.1f} x)" for key, ms in times.items()}
            rows.append(row)
            bars += muon_bars(device, f"{name}, {condition}", times)
    return rows, bars


def muon_bars(device: str, name: str, times: dict[str, float]) -> list[Bar]:
    """What the ratios must be; where the floor itself misses a bar, the bar says so and stays."""
    ratios = {key: times["torch.optim.Muon"] / ms for key, ms in times.items()}
    whole, by_head = (8.0, 10.0) if device == "cpu" else (2.0 if name.startswith("gpt2,") else 1.0,) * 2
    bars = []
    for of, limit in ((", QKV fused", whole), ("", whole), (", QKV by head", by_head)):
        floor = f" (floor {ratios[f'floor{of}']:.1f})" if ratios[f"floor{of}"] < limit else ""
        bars.append(Bar(f"torch.optim.Muon / Muon{of}, {name}{floor}", ratios[f"Muon{of}"], limit, at_least=True))
    return bars


def memory(device: str) -> Section:
    """Peak extra memory of a step against the largest shape group's stack and two workspaces of its size.

    What an optimizer keeps to work in between its steps counts as extra.
    """
    model = shapes.gpt2(N_LAYER, device)
    hidden = shapes.hidden_groups(model)
    counts = Counter(shapes.block_shapes(hidden))
    limit = 3 * max(4 * rows * columns * n for (rows, columns), n in counts.items())
    half = shapes.gpt2(N_LAYER, device).bfloat16()
    for parameter in half.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    # made one after the other, so that their states need not be there together
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "AdamW": lambda: AdamW(parameter_groups(model)),
        "MoFO sampled": lambda: MoFO(parameter_groups(model), selection="sampled"),
        "MoFO exact": lambda: MoFO(parameter_groups(model), selection="exact"),
        "Muon": lambda: Muon(parameter_groups(model)),
        "AdamW, bfloat16": lambda: AdamW(parameter_groups(half)),
        "Muon, bfloat16": lambda: Muon(parameter_groups(half)),
    }
    rows, bars = [], []
    for name, make in makers.items():
        optimizer = make()
        optimizer.step()
        held = optimizer.workspace.nbytes if isinstance(optimizer, (Muon, MoFO)) else 0
        peak = peak_bytes(optimizer.step, device) + held
        rows.append({"optimizer": name, "extra MiB": f"{peak / 2**20:.1f}", "stack and two": f"{limit / 2**20:.1f}"})
        bars.append(Bar(f"memory / stack and two workspaces, {name}", peak / limit, 1.0))
    return rows, bars


def loss(device: str) -> Section:
    """Final loss of small pretraining runs against those with torch.optim.Muon."""
    found = quality.losses(device)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    apart = abs(means["Muon"] - means["torch.optim.Muon"])
    bar = Bar("loss apart from torch.optim.Muon's, nats", apart, quality.spread(found["torch.optim.Muon"]))
    return quality.summary(found), [bar]


SECTIONS: dict[str, Callable[[str], Section]] = {
    "adamw": adamw,
    "mofo": mofo,
    "muon": muon,
    "memory": memory,
    "quality": loss,
}


def report(bars: list[Bar], check: bool) -> int:
    """Print every bar; the exit status is 1 where one is missed and that matters."""
    for bar in bars:
        print(f"{'met   ' if bar.met else 'MISSED'} {bar.text}")
    return int(check and not all(bar.met for bar in bars))


def as_json(device: str, tables: dict[str, Any], bars: list[Bar]) -> str:
    """What was measured, with where."""
    place = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    results = [
        {**bar._asdict(), "value": bar.value if math.isfinite(bar.value) else None, "met": bar.met} for bar in bars
    ]
    return json.dumps({"torch": torch.__version__, "device": place, "tables": tables, "bars": results}, indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--device", choices=list(CONDITIONS), default="cpu")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables: dict[str, Any] = {}
    bars: list[Bar] = []
    for name in options.only:
        start = time.monotonic()
        tables[name], found = SECTIONS[name](options.device)
        bars += found
        print(f"{table(tables[name])}\n{name}: {time.monotonic() - start:.0f} s\n", flush=True)
    if options.json is not None:
        options.json.write_text(as_json(options.device, tables, bars), encoding="utf-8")
    return report(bars, options.check)


if __name__ == "__main__":
    sys.exit(main())
