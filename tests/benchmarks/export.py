"""The README's table of export: how far transformers' logits are from ours, family by family.

Run: ``python -m tests.benchmarks.export``
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from tests.model.families import FAMILIES, measure_family


def main() -> None:
    """Print the table in Markdown."""
    print("| family | tiny models of | largest difference | largest logit | read back bit for bit |")
    print("|---|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            row = measure_family(Path(folder), family)
        models = ", ".join(row["models"])
        equal = "yes" if row["equal"] else "no"
        print(f"| {family} | {models} | {row['difference']:.1e} | {row['logits']:.1f} | {equal} |")


if __name__ == "__main__":
    main()
