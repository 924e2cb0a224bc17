"""Every logged number as a line of JSON in the run's folder: ``{"step": 10, "train/loss": 2.3, ...}``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_consistency.records.run_folder import RunFolder


class MetricsFile(Logger):
    """Append numbers to ``metrics.jsonl`` as they come; a resumed run first drops the lines after its checkpoint.

    Args:
        folder: of the run; it is made when the first number is written.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """The file's name."""
        return self.folder.metrics_file.name

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one line."""
        self.folder.append_metrics(step, metrics)  # at once: what a kill would lose is what explains it

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters stand in config.yaml."""

    @rank_zero_only
    def keep_until(self, step: int, size: int | None = None) -> None:
        """Drop the numbers of later steps; see ``RunFolder.keep_metrics_until``."""
        self.folder.keep_metrics_until(step, size)
