"""The folder of a run, written and read here alone: ``checkpoints/runs/<run>/``.

``config.yaml`` holds the complete configuration, ``run.json`` what was run, on what, and what came out,
``metrics.jsonl`` a line of numbers for every logged step, ``checkpoints/`` the step checkpoints, ``model/`` the final
model, ``adapters/`` what a LoRA run has learned, ``series/step-XXXXXXXX/`` models of earlier steps, ``model_files/``
what makes a model of the weights in a step checkpoint (configuration, tokenizer), ``measured/first`` and
``measured/last`` the items of the watched tasks, of the base and of ``model/``, in the format of records/results.py.
Where ``model/`` is of an earlier step, ``last/`` is the model of the last one and ``measured/last_step`` its items;
``kept/`` holds what may become ``model/``, as long as the run may go on. Loggers add files of their own.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.atomic import move_into, named_failure, plain, set_aside, write_text
from lit_consistency.records.inside import Inside
from lit_consistency.records.lease import MUTEX, WRITER

FINISHED = "finished"
"""``status`` in run.json of a run that trained to its end and wrote everything; else running, interrupted or failed."""
MEASURED = ("val/", "learn/", "retain/", "distance/", "evaluation/", "interpolated/", "final/")
"""Beginnings of the names of what is measured behind a step, whose checkpoint was written before."""
ABANDONED = "abandoned-"
"""Begins the names of folders into which a run moves what it has gone back behind."""


class RunFolder:
    """Paths and contents of a run's folder; nothing is made before it is written.

    Args:
        path: the folder.
    """

    config_file = Inside("config.yaml")
    record_file = Inside("run.json")
    metrics_file = Inside("metrics.jsonl")
    checkpoints = Inside("checkpoints")
    model = Inside("model")
    adapters = Inside("adapters")
    series = Inside("series")
    last = Inside("last")
    model_files = Inside("model_files")
    first_measured = Inside("measured/first")
    last_measured = Inside("measured/last")
    last_step_measured = Inside("measured/last_step")
    kept = Inside("kept")

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder | None:
        """The run to which a step checkpoint belongs; None where it lies in no folder of a run."""
        return cls(checkpoint.parent.parent) if checkpoint.parent.name == "checkpoints" else None

    @classmethod
    def of_model(cls, folder: Path) -> RunFolder | None:
        """The run in whose folder a model stands, as the final one, the last one or one of its series; else None."""
        folder = folder.resolve()
        run = cls(folder.parent.parent if folder.parent.name == "series" else folder.parent)
        stands = folder in (run.model, run.last) or folder.parent == run.series
        return run if stands and run.record_file.is_file() else None

    def series_model(self, step: int) -> Path:
        """Where the model of a step stands, in LitGPT's format."""
        return self.series / f"step-{step:08d}"

    def kept_model(self, step: int) -> Path:
        """Where the model of a step is kept that may become the run's, with its items."""
        return self.kept / f"step-{step:08d}"

    def series_models(self) -> dict[int, Path]:
        """Step -> model of the series, ascending; what stands there was written whole."""
        folders = (path for path in self.series.glob("step-*") if path.name.removeprefix("step-").isdigit())
        return dict(sorted((int(path.name.removeprefix("step-")), path) for path in folders))

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands there yet, but for the lease of whoever is about to write."""
        return not self.path.exists() or all(path.name in (WRITER, MUTEX) for path in self.path.iterdir())

    # -------------------- configuration and record

    def write_config(self, text: str) -> None:
        """Write the configuration as YAML."""
        write_text(self.config_file, text)

    def read_config(self) -> dict[str, Any]:
        """The configuration; empty where none was written, and, with a warning, where it is damaged."""
        return _read_mapping(self.config_file, yaml.safe_load)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json; paths and other objects go by their text, what is no number becomes null."""
        write_text(self.record_file, json.dumps(plain(dict(record)), indent=2, default=str) + "\n")

    def read_record(self) -> dict[str, Any]:
        """What run.json holds; empty where none was written, and, with a warning, where it is damaged."""
        return _read_mapping(self.record_file, json.loads)

    def set_damaged_aside(self) -> None:
        """Rename what cannot be read, before it is written anew."""
        for file, parse in ((self.record_file, json.loads), (self.config_file, yaml.safe_load)):
            if file.is_file() and (why := _parsed(file, parse)[1]) is not None:
                set_aside(file, why)

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
        # lines are appended, not written whole: a file of a long run is not to be copied at every step
        with named_failure(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")

    @property
    def metrics_bytes(self) -> int:
        """Size of metrics.jsonl now."""
        return self.metrics_file.stat().st_size if self.metrics_file.is_file() else 0

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in the order they were written; one that a kill has torn is left out."""
        lines, n_damaged = self._metric_lines()
        if n_damaged:
            warnings.warn(f"{self.metrics_file}: {n_damaged} damaged lines are left out", stacklevel=2)
        return [line for _, line in lines]

    def keep_metrics_until(self, step: int, size: int | None = None) -> None:
        """Drop lines of later steps, so that the file equals that of a run without a break.

        Args:
            step: the last that is kept.
            size: of the file when the checkpoint of this step was written: what was measured behind it is measured
                again, and its lines are dropped; None keeps them.
        """
        if not self.metrics_file.is_file():
            return
        lines, n_damaged = self._metric_lines()
        if n_damaged:
            set_aside(self.metrics_file, f"{n_damaged} damaged lines")
        kept = [
            json.dumps(line) + "\n"
            for place, line in lines
            if (line["step"] is None or line["step"] <= step)
            and (size is None or place < size or not any(key.startswith(MEASURED) for key in line))
        ]
        write_text(self.metrics_file, "".join(kept))

    def _metric_lines(self) -> tuple[list[tuple[int, dict[str, Any]]], int]:
        """Where each line begins and what it says, and how many more are damaged; the end of the file may be torn."""
        if not self.metrics_file.is_file():
            return [], 0
        *texts, torn = self.metrics_file.read_bytes().split(b"\n")
        lines, place = [], 0
        for text in texts:
            try:
                line = json.loads(text)
                if "step" not in line:
                    raise ValueError
                lines.append((place, line))
            except (ValueError, TypeError):
                pass
            place += len(text) + 1
        return lines, len(texts) - len(lines)

    # -------------------- what is left behind

    def abandon(self, folder: Path, paths: list[Path]) -> Path | None:
        """Move files or folders, in this order, into a folder beside them; what earlier runs had moved there goes.

        Args:
            folder: ``checkpoints`` or ``series``.
            paths: what this run has gone back behind.

        Returns:
            Where they are now; None where there was nothing to move.
        """
        for earlier in folder.glob(f"{ABANDONED}*"):
            shutil.rmtree(earlier, ignore_errors=True)
        paths = [path for path in paths if path.exists()]
        if not paths:
            return None
        aside = folder / time.strftime(f"{ABANDONED}%Y%m%d-%H%M%S")
        move_into(aside, paths)
        return aside


def _read_mapping(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content, damage = _parsed(file, parse)
    if damage is not None:
        warnings.warn(f"{file}: {damage}; read as if it were not there", stacklevel=3)
    return content


def _parsed(file: Path, parse: Callable[[str], Any]) -> tuple[dict[str, Any], str | None]:
    """What a file holds that should hold a mapping, and what is wrong with it; None for nothing."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return {}, f"damaged ({error})"
    if isinstance(content, dict):
        return content, None
    return {}, f"damaged (expected a mapping, found {type(content).__name__})"
