"""How long MoFO's step takes beside AdamW's fused kernel, on one thread of the processor.

python -m tests.benchmarks.mofo [--slow] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lit_consistency.optimizers import MoFO
from tests.reference.mofo_topk import TopkMoFO

LAYER = [((2304, 768), (768, 768, 768)), ((768, 768), None), ((3072, 768), None), ((768, 3072), None)]
SETS: dict[str, list[tuple[tuple[int, int], Any]]] = {
    "one matrix of 4M": [((2048, 2048), None)],
    "GPT-2 small": [*LAYER * 12, ((50257, 768), None)],
}


def groups_of(shapes: list[tuple[tuple[int, int], Any]]) -> list[dict[str, Any]]:
    """Parameters with random gradients, in groups of one split each."""
    generator = torch.Generator().manual_seed(0)
    by_split: dict[Any, list[Any]] = {}
    for number, (shape, split) in enumerate(shapes):
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        by_split.setdefault(split, []).append((f"w{number}", parameter))
    return [{"params": params, "role": "hidden", "split": split} for split, params in by_split.items()]


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each, after two steps each, with the rounds interleaved."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number >= 2:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Print one line for each set and step: milliseconds, and the ratio to torch.optim.AdamW(fused=True)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="also the plain filter with torch.topk")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, shapes in SETS.items():
        groups = groups_of(shapes)
        plain = [parameter for group in groups for _, parameter in group["params"]]
        steps: dict[str, Callable[[], Any]] = {
            "AdamW fused": torch.optim.AdamW(plain, fused=True).step,
            "sampled": MoFO(groups, compile="always").step,
            "exact": MoFO(groups, selection="exact", compile="always").step,
            "sampled, not compiled": MoFO(groups, compile="never").step,
        }
        if options.slow:
            steps["topk"] = TopkMoFO(groups).step
        medians = measure(steps, options.rounds)
        for step, seconds in medians.items():
            print(f"{name:<18} {step:<22} {seconds * 1e3:8.1f} ms {seconds / medians['AdamW fused']:6.2f}")


if __name__ == "__main__":
    main()
