"""How the cost of training and of watching grows with the work: medians, and the exponent of the power that fits them.

    python -m tests.benchmarks.growth [--rounds 5] [--json growth.json] [--picture growth.svg] [--only length,documents]

A training step is that of ``fit`` on one thread of a CPU: states, loss, gradients; its cost is given by token, so that
an exponent of 0 is a cost in proportion to the tokens. Watching is measured whole: an exponent of 1 is in proportion
to what is asked, or to what is compared. Process CPU time, all sizes of a row in turns in shuffled rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_consistency.callbacks.weight_change import WeightChange
from lit_consistency.data.loading.collate import model_inputs, seen_on_cpu, supervised_tokens
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.drawing.canvas import svg_file
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.model import GPT, TokenNLL, init_weights, linear_loss, model_config
from lit_consistency.optimizers.measure import Step, medians
from lit_consistency.study.summary import processor
from lit_consistency.tasks.suite import NAME
from lit_consistency.tasks.watched import WatchedTask

BASE = Path("checkpoints/lit_consistency/biographies-adamw")
TOKENS, WIDTH, VOCABULARY = 4096, 128, 4096


def training(length: int = 512, width: int = WIDTH, n_documents: int = 1) -> Step:
    """A step's loss and gradients on ``TOKENS`` tokens in rows of ``length``, each of ``n_documents`` equal ones."""
    model = new_model(length, width, VOCABULARY)
    n_rows = max(TOKENS // length, 1)
    tokens = torch.randint(VOCABULARY, (n_rows, length))
    within = torch.arange(length) * n_documents // length
    batch = {
        "tokens": tokens,
        "targets": tokens.roll(-1, 1),
        "documents": within.int().expand(n_rows, -1).contiguous(),
        "positions": (torch.arange(length) % (length // n_documents)).expand(n_rows, -1).contiguous(),
    }
    seen = seen_on_cpu(batch)
    indices, targets = supervised_tokens(seen)

    def step() -> None:
        model.zero_grad()

        def body(gpt: Any) -> torch.Tensor:
            states = gpt.document_states(**model_inputs(seen)).flatten(0, 1)
            return linear_loss(states[indices], gpt, TokenNLL(targets), 1 / len(targets))[0]

        model(tokens, body=body).backward()

    return step


def new_model(block_size: int, width: int, vocabulary: int) -> GPT:
    """Four layers in the form of pythia-14m, with random weights."""
    shape = {"n_layer": 4, "n_head": width // 32, "n_embd": width, "intermediate_size": 4 * width}
    config = model_config("pythia-14m", None, {**shape, "block_size": block_size}, vocabulary)
    torch.manual_seed(0)
    model = GPT(config)
    init_weights(model, config)
    return model


def watching(n_sets: int) -> Step:
    """What is asked when so many sets like the package's facts are watched."""
    tokenizer = Tokenizer(BASE)
    model = new_model(512, WIDTH, tokenizer.vocab_size).eval()
    tasks = [WatchedTask(f"{NAME}/facts").prepare(f"facts-{i}", tokenizer, 512) for i in range(n_sets)]
    return lambda: [task.measure(model, batch_tokens=4096, device=torch.device("cpu")) for task in tasks]


def comparing(millions: int) -> Step:
    """The distance of so many million weights from their start, in matrices of a million each."""
    start = torch.randn(1024, 1024)
    change = torch.randn(1024, 1024) * (torch.rand(1024, 1024) < 0.5)
    return lambda: WeightChange({}).measure((str(i), change, start) for i in range(millions))


class Row(NamedTuple):
    """What grows.

    Args:
        title: what the sizes are.
        step: size -> what is measured.
        sizes: rising.
        by_token: whether the cost is given by token of a training step.
    """

    title: str
    step: Callable[[int], Step]
    sizes: tuple[int, ...]
    by_token: bool = True


ROWS = {
    "length": Row("tokens of a row", lambda n: training(length=n), (128, 256, 512, 1024, 2048)),
    "width": Row("width of the model", lambda n: training(width=n), (64, 128, 256, 512)),
    "documents": Row("documents in a row of 1,024", lambda n: training(length=1024, n_documents=n), (1, 4, 16, 64)),
    "retained": Row("sets that are watched", watching, (1, 2, 4, 8), by_token=False),
    "distance": Row("millions of weights compared", comparing, (1, 4, 16, 64), by_token=False),
}


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure(name: str, rounds: int) -> dict[str, Any]:
    """A row of the table: milliseconds, of a whole step or by 1,000 tokens, for every size, and their exponent."""
    row = ROWS[name]
    found = medians({str(size): row.step(size) for size in row.sizes}, "cpu", rounds)
    # rows that are longer than the tokens of a step make it longer
    tokens = {size: max(TOKENS, size) if name == "length" else TOKENS for size in row.sizes}
    costs = [found[str(size)] * (1e3 / tokens[size] if row.by_token else 1) for size in row.sizes]
    return {
        "row": name,
        "sizes": list(row.sizes),
        "ms": [round(cost, 3) for cost in costs],
        "exponent": round(exponent(row.sizes, costs), 2),
    }


def main() -> int:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help="names of rows, divided by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if unknown := set(names := given.only.split(",")) - set(ROWS):
        parser.error(f"--only {sorted(unknown)[0]}: expected some of {', '.join(ROWS)}")
    torch.set_num_threads(1)
    found = []
    for name in names:
        found.append(measure(name, given.rounds))
        print(json.dumps({**found[-1], "what": ROWS[name].title}), flush=True)
    print(f"{processor()}, torch {torch.__version__}")
    if given.json:
        content = {"processor": processor(), "torch": torch.__version__, "rows": found}
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    if given.picture:
        given.picture.write_text(svg_file(draw(found), "Cost as the work grows"), "utf-8")
    return 0


def draw(found: list[dict[str, Any]]) -> Any:
    """Cost over size, each relative to its first."""
    series = [
        Series(
            f"{ROWS[row['row']].title}: exponent {row['exponent']:g}",
            [
                (math.log2(size / row["sizes"][0]), ms / row["ms"][0])
                for size, ms in zip(row["sizes"], row["ms"], strict=True)
            ],
        )
        for row in found
    ]
    return draw_lines(series, "doublings", "cost, relative to the smallest", 560, log_y=True)


if __name__ == "__main__":
    sys.exit(main())
