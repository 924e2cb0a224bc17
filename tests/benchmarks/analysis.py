"""What analyses cost, on one thread of the processor: the updates and the attention of large models, from their shapes.

Every shape of matrix is measured once on random numbers, and counted as often as the model has it; nothing as large as
the model is made. Attention's cores are compared with the dense product in turn, on heads of width 1,024.

python -m tests.benchmarks.analysis [--models Llama-3.2-1B Llama-2-13b-hf] [--most 8192]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter

import torch
from litgpt.config import Config

from lit_consistency.analysis.attention_rank import core_spectrum
from lit_consistency.analysis.updates import Updates
from lit_consistency.model import GPT
from lit_consistency.optimizers.groups import parameter_groups


def shapes_of(config: Config) -> Counter[tuple[int, int]]:
    """Shape of a matrix, blocks of a fused one apart -> how many there are."""
    with torch.device("meta"):
        groups = parameter_groups(GPT(config))
    shapes: Counter[tuple[int, int]] = Counter()
    for group in groups:
        for _, parameter in group["params"]:
            if parameter.ndim == 2:
                for rows in group["split"] or (parameter.shape[0],):
                    shapes[rows, parameter.shape[1]] += 1
    return shapes


def seconds_of(shape: tuple[int, int], exact_up_to: int) -> float:
    """Processor time of all spectral numbers of one update."""
    base, change = torch.randn(shape), 1e-2 * torch.randn(shape)
    start = time.process_time()
    Updates(exact_up_to=exact_up_to)._spectral(base, base + change, change, 0)
    return time.process_time() - start


def main() -> None:
    """Print a line for every shape, and one for every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["Llama-3.2-1B", "Llama-2-13b-hf"], help="names in LitGPT")
    parser.add_argument("--exact_up_to", type=int, default=2048, help="longest shorter side with a whole spectrum")
    parser.add_argument("--most", type=int, default=14336, help="rows beyond which time is taken to grow like rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, second = torch.randn(2, 16, 64, 1024, dtype=torch.float64)
    start = time.process_time()
    core_spectrum(first, second)
    cores = time.process_time() - start
    start = time.process_time()
    torch.linalg.svdvals(first[0].T @ second[0])
    dense = 16 * (time.process_time() - start)
    print(
        f"attention of width 1,024, 16 heads of 64: cores {cores:.3f} s, dense {dense:.1f} s, {dense / cores:.0f} times"
    )
    known: dict[tuple[int, int], float] = {}
    for name in options.models:
        total = 0.0
        shapes = shapes_of(Config.from_name(name))
        for (rows, columns), count in shapes.items():
            measured = (min(rows, options.most), columns)
            if measured not in known:
                known[measured] = seconds_of(measured, options.exact_up_to)
                print(f"update of {measured[0]:,} x {columns:,}: {known[measured]:.1f} s")
            total += count * known[measured] * rows / measured[0]
        numel = sum(rows * columns * count for (rows, columns), count in shapes.items())
        print(
            f"{name}: {numel / 1e9:.2f}B in {sum(shapes.values())} matrices, updates {total / 60:.0f} minutes of one "
            f"core, {4 * numel / 1e9:.0f} GB read of two models in 16 bits"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
