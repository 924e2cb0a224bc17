"""Muon against torch.optim.Muon, in this process; tests.benchmarks.optimizers starts it in several conditions.

    python -m tests.benchmarks.muon_speed --sets gpt2-layer

One thread; prints JSON: for each set of matrices the milliseconds of a whole step, and the floor, which is the fewest
FLOPs known at the speed of this process's matrix products.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import nn

from lit_consistency.optimizers import Muon
from tests.benchmarks import measure, shapes

SETS: dict[str, tuple[Callable[[str], nn.Module], int, int]] = {
    # the model, rounds, and the size of the products that tell the floor
    "gpt2-layer": (lambda device: shapes.gpt2(1, device), 3, 768),
    "gpt2": (lambda device: shapes.gpt2(12, device), 5, 768),
    "1b-layer": (shapes.llama_layer, 1, 2048),
}


def measured(name: str, device: str) -> dict[str, float]:
    """Milliseconds of a step of each optimizer on one set."""
    make, rounds, size = SETS[name]
    model = make(device)
    ways = {"": "split", ", QKV fused": "fused", ", QKV by head": "head"}
    groups = {which: shapes.hidden_groups(model, qkv) for which, qkv in ways.items()}
    of_torch = torch.optim.Muon(shapes.hidden_matrices(model), lr=1e-3, adjust_lr_fn="match_rms_adamw")
    steps = {"torch.optim.Muon": of_torch.step}
    steps |= {f"Muon{which}": Muon(groups[which], lr=1e-3).step for which in ways}
    times = measure.medians(steps, device, rounds)
    speed = max(measure.gemm_flops(size, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    floors = {}
    for which in ways:
        flops = sum(measure.newton_schulz_flops(*shape) for shape in shapes.block_shapes(groups[which]))
        floors[f"floor{which}"] = 1e3 * flops / speed
    return times | floors | {"TFLOP/s": speed / 1e12}


def main() -> None:
    """Measure the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({name: measured(name, options.device) for name in options.sets}))


if __name__ == "__main__":
    main()
