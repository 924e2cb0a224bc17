"""What watched tasks measured of a base before, so that many runs from one base measure it once.

A study or a sequence begins tens of runs with the same base, and each asks it the same questions; so does who tries one
option after the other. What came out is kept under the hash of all that it depends on: the weights in memory with the
classes that compute with them, the encoded questions, precision, device, threads, versions, and every source file of
this package. It is the same bit for bit, item by item; a file that is damaged, or not what this version wrote, is not
read, and the base is measured again. The seconds that measuring took count in ``forgetting.time_budget`` as if it had
been done: which points a curve has does not depend on who came first. Given up: new models, sharded ones, programs that
a model writes, and the base's own samples, of which the base itself is no distance away.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.distributed.tensor import DTensor

from lit_consistency.module import LitLanguageModel
from lit_consistency.records.fingerprints import (
    fingerprint_of,
    package_sources,
    sha256_of_parts,
    sources_written_at,
)
from lit_consistency.records.kept_text import keep, read_kept
from lit_consistency.stats.intervals import Ratio
from lit_consistency.tasks.choice import ChoiceTask
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.generation import GenerationTask
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.task import EncodedTask, keys_of
from lit_consistency.tasks.text import TextTask
from lit_consistency.tasks.watched import Known

AT_MOST = 500
"""Measurements kept in a folder, some hundred kilobytes each."""
LOADED_AT = time.time()
KINDS = (TextTask, ChoiceTask, CompletionTask, GenerationTask)


class KnownBases:
    """Measurements of bases in a folder.

    Args:
        folder: of all runs of one user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = 0.0

    def of(self, trainer: Trainer, module: LitLanguageModel, batch_tokens: int) -> Known | None:
        """For ``PreparedTask.measure`` of the model as it is now.

        None for a new model, which nobody measures twice, for one in shards, and where a source file was written since
        this process has read them: what it computes is not what they say.

        Args:
            trainer: of the run.
            module: at the start.
            batch_tokens: budget of tokens in one forward, which decides what is computed together.
        """
        in_shards = any(isinstance(parameter, DTensor) for parameter in module.gpt.parameters())
        if module.checkpoint_dir is None or in_shards or sources_written_at() > LOADED_AT:
            return None
        return partial(self._measured, {**_of_model(trainer, module), "batch_tokens": batch_tokens})

    def take_saved(self) -> float:
        """Seconds that measuring would have taken, since this was asked last."""
        saved, self._saved = self._saved, 0.0
        return saved

    def _measured(self, of_model: dict[str, Any], encoded: EncodedTask, measure: Callable[[], Measured]) -> Measured:
        if type(encoded.task) not in KINDS or encoded.task.runs_code:
            return measure()
        file = self.folder / f"{fingerprint_of({'model': of_model, 'task': _of_task(encoded)})}.txt"
        if (text := read_kept(file)) is not None:
            content = json.loads(text)
            self._saved += content["seconds"]
            return _from_json(content["measured"])
        began = time.perf_counter()
        measured = measure()
        kept = {"seconds": time.perf_counter() - began, "measured": _to_json(measured)}
        keep(file, json.dumps(kept), AT_MOST)
        return measured


def _of_model(trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
    """All but the questions that the numbers depend on."""
    on_cuda = module.device.type == "cuda"
    return {
        "weights": sha256_of_parts(_bytes(module)),
        "method": {key: value for key, value in vars(module.method).items() if isinstance(value, int | float | str)},
        "classes": sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in module.gpt.modules()}),
        "config": {key: str(value) for key, value in asdict(module.config).items() if key not in ("name", "hf_config")},
        "tokenizer": trainer.datamodule.tokenizer.fingerprint(),  # type: ignore[attr-defined]
        "precision": str(trainer.precision),
        "device": torch.cuda.get_device_name(module.device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "arithmetic": [
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
        ],
        "versions": [torch.__version__, np.__version__, version("litgpt")],
        "code": package_sources(),
    }


def _bytes(module: LitLanguageModel) -> Iterator[bytes | memoryview]:
    """Every parameter and buffer, with its name, kind and shape."""
    for name, tensor in [*module.gpt.named_parameters(), *module.gpt.named_buffers()]:
        values = tensor.detach().cpu().contiguous()
        yield f"{name} {values.dtype} {tuple(values.shape)}".encode()
        yield values.flatten().view(torch.uint8).numpy().data


def _of_task(encoded: EncodedTask) -> str:
    """The questions as the model sees them, and how they are judged; pickled, so that no tensor's digits are cut."""
    asked = (encoded.questions, encoded.rows, encoded.end_tokens, encoded.format, encoded.shots)
    return sha256_of_parts([fingerprint_of(keys_of(encoded.task)).encode(), pickle.dumps(asked, protocol=5)])


def _to_json(measured: Measured) -> dict[str, Any]:
    """The digits of a float in JSON give it back exactly; NumPy's whole numbers become Python's."""
    ratios = {name: [column.tolist() for column in ratio] for name, ratio in measured.ratios.items()}
    return json.loads(json.dumps({**measured._asdict(), "ratios": ratios}, default=lambda number: number.item()))


def _from_json(content: dict[str, Any]) -> Measured:
    ratios = {
        name: Ratio(*(np.array(column, dtype=np.float64) for column in columns))
        for name, columns in content["ratios"].items()
    }
    return Measured(**{**content, "ratios": ratios})
