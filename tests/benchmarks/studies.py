"""What a study costs beside its runs: its plan, its first report, its redraw; and how that grows with the cells.

Two bases x two finetuners x rates x seeds with runs that never ran; a parser that composes files stands in the place of
fit's, which parses every value of an axis once (about a second each, kept by hash). One thread, CPU time of this
process, every number the median of the rounds.

python -m tests.benchmarks.studies [--check] [--cells 250 500 1000 2000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lit_consistency.study.cells import Cell
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.options import Claim, StudyOptions
from lit_consistency.study.run import StudyRun
from tests.benchmarks.measure import Bar
from tests.study.fakes import FakeParser, crossed_study, write_run

CLAIM = Claim(
    "Matched pairs forget less.",
    "interaction",
    rows={"optimizer": ["adamw", "muon"]},
    columns={"finetuner": ["adamw", "muon"]},
    smallest_effect=0.05,
)
RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
STEPS = range(30, 301, 30)
BARS = {"plan": 3.0, "redraw": 2.0}  # seconds; a first report, which also draws all PNG and events, has none


def a_study(folder: Path, n_cells: int) -> StudyOptions:
    """About ``n_cells`` cells: each seed has two bases and four finetunings a rate."""
    seeds = round(n_cells / (2 + 4 * len(RATES)))
    return crossed_study(folder, range(seeds), RATES, claims={"consistency": CLAIM})


def finish(study: StudyOptions, cells: dict[str, list[Cell]]) -> None:
    """Write for every cell what a finished run leaves: final numbers, and a curve of them."""
    rng = np.random.default_rng(0)
    for stage, of_stage in cells.items():
        for cell in of_stage:
            if stage == "pretrain":
                write_run(study.cells, cell, {"val/loss": 1.0}, seconds=100.0)
                continue
            rate = float(cell.coordinates["lr"]) / (2 if cell.coordinates["finetuner"] == "muon" else 1)
            learned = 1 / (1 + math.exp(-6 * (rate - 0.2) / 0.2)) + rng.normal(0, 0.01)
            kept = 1 - 0.5 * rate + rng.normal(0, 0.01)
            numbers = {"learn/new": learned, "retain/old": kept}
            write_run(study.cells, cell, numbers, {"learn/new": 0.0, "retain/old": 1.0}, seconds=30.0)
            rows = ("".join(f'"{key}": {value * step / 300}, ' for key, value in numbers.items()) for step in STEPS)
            lines = [f'{{{row}"step": {step}}}\n' for step, row in zip(STEPS, rows, strict=True)]
            (study.cells / cell.name / "metrics.jsonl").write_text("".join(lines))


def run_of(study: StudyOptions) -> StudyRun:
    """A study as a command makes it, with the fake parser."""
    return StudyRun(study, ExecutionOptions(workers=2, devices=[]), FakeParser(), ["--config", "study.yaml"])


def seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, what is printed left out of sight."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.process_time() - start


def measure(folder: Path, n_cells: int) -> tuple[int, dict[str, float]]:
    """Cells, and seconds of each part."""
    study = a_study(folder, n_cells)
    cells = run_of(study).cells()
    finish(study, cells)
    times = {
        "plan": seconds(lambda: run_of(study).print_plan()),
        "first report": seconds(lambda: run_of(study).write_report()),
        "redraw": seconds(lambda: run_of(study).write_report()),
    }
    return sum(map(len, cells.values())), times


def main() -> None:
    """Print a table of seconds by cells with the exponents, and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=[250, 500, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar at 1,000 cells is missed")
    options = parser.parse_args()
    rounds: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.rounds):
        for size in options.cells:
            with TemporaryDirectory() as folder:
                n_cells, times = measure(Path(folder), size)
            # packages are imported by the first of all
            for name, value in times.items() if number or options.rounds == 1 else ():
                rounds[n_cells][name].append(value)
    medians = {size: {name: statistics.median(values) for name, values in of.items()} for size, of in rounds.items()}
    sizes = sorted(medians)
    print("cells         " + "".join(f"{size:>9,}" for size in sizes) + "   exponent")
    for name in medians[sizes[0]]:
        values = [medians[size][name] for size in sizes]
        exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0] if len(sizes) > 1 else math.nan
        print(f"{name:<14}" + "".join(f"{value:>8.2f}s" for value in values) + f"   {exponent:.2f}")
    nearest = min(sizes, key=lambda size: abs(size - 1000))
    bars = [Bar(f"{name} of {nearest:,} cells, s", medians[nearest][name], limit) for name, limit in BARS.items()]
    for bar in bars:
        print(("met:    " if bar.met else "MISSED: ") + bar.text)
    sys.exit(options.check and not all(bar.met for bar in bars))


if __name__ == "__main__":
    main()
