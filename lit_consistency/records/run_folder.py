"""The folder of a run, written and read here alone: ``checkpoints/runs/<run>/``.

``config.yaml`` holds the complete configuration, ``run.json`` what was run, on what, and what came out,
``metrics.jsonl`` a line of numbers for every logged step, ``checkpoints/`` the step checkpoints, ``model/`` the final
model, ``adapters/`` what a LoRA run has learned, ``series/step-XXXXXXXX/`` models of earlier steps, ``model_files/``
what makes a model of the weights in a step checkpoint (configuration, tokenizer), ``measured/first`` and
``measured/last`` the items of the watched tasks, in the format of records/results.py. Loggers add files of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.atomic import plain, write_text

FINISHED = "finished"
"""``status`` in run.json of a run that trained to its end and wrote everything; else running, interrupted or failed."""


class RunFolder:
    """Paths and contents of a run's folder; nothing is made before it is written.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.record_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.adapters = self.path / "adapters"
        self.series = self.path / "series"
        self.model_files = self.path / "model_files"
        self.first_measured = self.path / "measured" / "first"
        self.last_measured = self.path / "measured" / "last"

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder | None:
        """The run to which a step checkpoint belongs; None where it lies in no folder of a run."""
        return cls(checkpoint.parent.parent) if checkpoint.parent.name == "checkpoints" else None

    @classmethod
    def of_model(cls, folder: Path) -> RunFolder | None:
        """The run in whose folder a model stands, the final one or one of its series; None where that is no run's."""
        folder = folder.resolve()
        run = cls(folder.parent.parent if folder.parent.name == "series" else folder.parent)
        stands = folder == run.model or folder.parent == run.series
        return run if stands and run.record_file.is_file() else None

    def series_model(self, step: int) -> Path:
        """Where the model of a step stands, in LitGPT's format."""
        return self.series / f"step-{step:08d}"

    def series_models(self) -> dict[int, Path]:
        """Step -> model of the series, ascending; what stands there was written whole."""
        folders = (path for path in self.series.glob("step-*") if path.name.removeprefix("step-").isdigit())
        return dict(sorted((int(path.name.removeprefix("step-")), path) for path in folders))

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands there yet."""
        return not self.path.exists() or not any(self.path.iterdir())

    # -------------------- configuration and record

    def write_config(self, text: str) -> None:
        """Write the configuration as YAML."""
        write_text(self.config_file, text)

    def read_config(self) -> dict[str, Any]:
        """The configuration; empty where none was written."""
        return yaml.safe_load(self.config_file.read_text(encoding="utf-8")) if self.config_file.is_file() else {}

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json; paths and other objects go by their text, what is no number becomes null."""
        write_text(self.record_file, json.dumps(plain(dict(record)), indent=2, default=str) + "\n")

    def read_record(self) -> dict[str, Any]:
        """What run.json holds; empty where none was written."""
        return json.loads(self.record_file.read_text(encoding="utf-8")) if self.record_file.is_file() else {}

    @property
    def is_finished(self) -> bool:
        """Whether the run has trained to its end and written its record."""
        return self.read_record().get("status") == FINISHED

    @property
    def has_model(self) -> bool:
        """Whether the run has finished and its model stands in the folder."""
        return self.is_finished and self.model.is_dir()

    def has_length(self, trainer: Mapping[str, Any]) -> bool:
        """Whether the number of steps and epochs of these options of the Trainer is that of the configuration here."""
        before = self.read_config().get("trainer", {})
        return all(before.get(key) == trainer[key] for key in ("max_steps", "max_epochs"))

    # -------------------- numbers

    def append_metrics(self, step: int | None, numbers: Mapping[str, float]) -> None:
        """Add a line to metrics.jsonl; what is no number becomes null."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = {"step": step, **{key: float(value) for key, value in numbers.items()}}
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in the order they were written; one that a kill has torn is left out."""
        if not self.metrics_file.is_file():
            return []
        # lines are appended, not written whole: a file of a long run is not to be copied at every step
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def keep_metrics_until(self, step: int) -> None:
        """Drop lines of later steps, so that the file equals that of a run without a break."""
        if self.metrics_file.is_file():
            kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
            write_text(self.metrics_file, "".join(kept))
