"""Learning and forgetting on real text: two bases, four ways to finetune each, three learning rates, one seed.

Every cell is a run of the command line, two at a time; what has finished is not run again. Prints the table and draws
the fronts of learning against forgetting:

    python -m tests.benchmarks.books --picture fronts.svg

Expects ./data as configs/books/pretrain.yaml says, and two bases, books-adamw and books-muon, made by it with
configs/pretraining/adamw.yaml and muon.yaml and --run.name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

RUNS = Path("checkpoints/runs")
BASES = {"AdamW": "books-adamw", "Muon": "books-muon"}
WAYS = {
    "AdamW": (["--config", "configs/optimizers/adamw.yaml"], (2e-4, 6e-4, 2e-3)),
    "Muon": (["--config", "configs/optimizers/muon.yaml"], (2e-4, 6e-4, 2e-3)),
    "MoFO": (
        [*["--config", "configs/optimizers/mofo.yaml"], "--model.optimizer.init_args.selection=exact"],
        (6e-4, 2e-3, 6e-3),
    ),
    "LoRA": (
        ["--config", "configs/optimizers/adamw.yaml", "--config", "configs/methods/lora.yaml"],
        (2e-3, 6e-3, 2e-2),
    ),
}
RETAINED = {"books": "books, nats", "nationalities": "nationalities", "governments": "governments", "blimp": "BLiMP"}


class Cell(NamedTuple):
    """One run."""

    base: str
    way: str
    lr: float

    @property
    def name(self) -> str:
        return f"{BASES[self.base]}-{self.way.lower()}-{self.lr:g}"

    @property
    def record(self) -> dict[str, Any]:
        file = RUNS / self.name / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def command(cell: Cell) -> list[str]:
    """The run's command; the learning rate of Muon's AdamW follows."""
    options, _ = WAYS[cell.way]
    return [
        *[sys.executable, "-m", "lit_consistency", "fit", "--config", "configs/books/finetune.yaml", *options],
        f"--model.checkpoint_dir={RUNS / BASES[cell.base] / 'model'}",
        f"--model.optimizer.init_args.lr={cell.lr}",
        "--forgetting.every_n_steps=0",
        "--run.save_model=false",
        f"--run.name={cell.name}",
    ]


def run(cell: Cell) -> None:
    """Run a cell that has not finished."""
    if cell.record.get("status") != "finished":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command(cell), check=True, capture_output=True, env=environment)
    print(f"{cell.name}: done", file=sys.stderr)


def table(cells: list[Cell]) -> str:
    """Markdown: one line a cell, changes from the base; positive is learned, positive is forgotten."""
    head = ["base", "finetuned with", "lr", "GSM8K learned, nats", *[f"{n} forgotten" for n in RETAINED.values()]]
    head += ["distance", "KL to base"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in cells:
        before, after = cell.record["base_metrics"], cell.record["final_metrics"]
        row = [cell.base, cell.way, f"{cell.lr:g}", f"{before['learn/gsm8k'] - after['learn/gsm8k']:.3f}"]
        row += [f"{after[f'forget/{name}']:+.3f}" for name in RETAINED]
        row += [f"{after['distance/all']:.1f}", f"{after['kl_to_base']:.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def draw(cells: list[Cell], picture: Path) -> None:
    """One panel a base, one line a way through its learning rates: to the right is learned, up is forgotten."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(BASES), figsize=(9, 3.8), sharex=True, sharey=True, layout="constrained")
    for axis, base in zip(axes, BASES, strict=True):
        for way in WAYS:
            points = []
            for cell in (c for c in cells if (c.base, c.way) == (base, way)):
                before, after = cell.record["base_metrics"], cell.record["final_metrics"]
                points.append((before["learn/gsm8k"] - after["learn/gsm8k"], after["forget/books"]))
            points.sort()
            axis.plot(*zip(*points, strict=True), marker="o", label=way)
        axis.set_title(f"pretrained with {base}")
        axis.set_xlabel("GSM8K learned (nats per token)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("books forgotten (nats per token)")
    axes[0].legend(title="finetuned with", frameon=False)
    figure.savefig(picture)


def main() -> None:
    """Run what is missing, then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("fronts.svg"), help="where the picture goes")
    options = parser.parse_args()
    cells = [Cell(base, way, lr) for base in BASES for way, (_, rates) in WAYS.items() for lr in rates]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, cells))
    print(table(cells))
    draw(cells, options.picture)


if __name__ == "__main__":
    main()
