"""Every logged number as a line of JSON: ``{"step": 10, "train/loss": 2.3, ...}``.

JSON has no NaN and no infinity: such a number is written as ``null``.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_consistency.records.atomic import write_text


class MetricsFile(Logger):
    """Append numbers to a file as they come; a resumed run first drops the lines after the step it resumes from.

    Args:
        path: the file; its folder is made when the first number is written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {key: float(value) for key, value in metrics.items()}
        line = {"step": step, **{key: value if math.isfinite(value) else None for key, value in numbers.items()}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters stand in config.yaml."""

    @rank_zero_only
    def keep_until(self, step: int) -> None:
        """Drop lines of later steps, so that the file equals that of a run without a break."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))
