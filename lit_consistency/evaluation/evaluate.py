"""``evaluate``: plan everything, load the model, measure cell by cell, write each as it is done.

Nothing is written before all tasks have been read and rendered. A run that is interrupted goes on where it stopped,
since finished cells are found again by their fingerprint (plan.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.distributed.ranks import check_devices, together
from lit_consistency.evaluation.compare import compare_folders
from lit_consistency.evaluation.gate import WORDS, exit_status, judge, read_gate
from lit_consistency.evaluation.harness.export import export_tasks
from lit_consistency.evaluation.harness.model import run_harness
from lit_consistency.evaluation.plan import Ask, Cell, plan_cells
from lit_consistency.evaluation.tables import (
    print_comparison,
    print_gate,
    print_results,
    sensitivity_to_format,
    write_scalars,
)
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import PRECISIONS, Loaded, find_device, load_model
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model import check_checkpoint_dir, model_config, weights_hash
from lit_consistency.records.atomic import write_json
from lit_consistency.records.extras import require
from lit_consistency.records.provenance import current_versions, read_provenance
from lit_consistency.records.results import ITEM_FORMATS, Result, write_result
from lit_consistency.tasks.code.run import needed_walls
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.guards import check_predictions, stop_if_strict
from lit_consistency.tasks.summarize import summarize_result
from lit_consistency.tasks.task import Engine, Task
from lit_consistency.tasks.yaml_file import load_tasks


@dataclass(frozen=True)
class Options:
    """The options of the command, see ``lit_consistency/cli/evaluate.py``."""

    model: Path
    tasks: Sequence[str] = ()
    format: Sequence[str] = ("default",)
    shots: Sequence[int] = (0,)
    limit: int = 0
    seed: int = 0
    batch_tokens: int = 16384
    device: str = "auto"
    devices: int = 1
    precision: str = "auto"
    output: Path | None = None
    item_format: str = "jsonl"
    strict: bool = False
    train_data: str | None = None
    data_dir: Path | None = None
    world: dict[str, Any] | None = None
    allow_code_execution: bool = False
    allow_unconfined_code: bool = False
    harness: Sequence[str] = ()
    harness_include: Path | None = None
    export_harness: Path | None = None

    def __post_init__(self) -> None:
        for key, value, least in (
            ("limit", self.limit, 0),
            ("seed", self.seed, 0),
            ("batch_tokens", self.batch_tokens, 1),
            *(("shots", value, 0) for value in self.shots),
        ):
            if value < least:
                raise ValueError(f"{key} = {value}: expected at least {least}")
        allowed = {"item_format": ITEM_FORMATS, "precision": ("auto", *PRECISIONS)}
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise ValueError(f"{key} = {getattr(self, key)!r}: expected one of {', '.join(values)}")
        if not self.tasks and not self.harness:
            raise ValueError("tasks, harness: expected at least one of the two")
        for key in ("format", "shots"):
            given = getattr(self, key)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{key} = {list(given)}: expected at least one, and none of them twice")
        if self.harness and len(self.shots) > 1:
            raise ValueError(f"shots = {list(self.shots)}: expected a single number with harness")
        if self.export_harness is not None and not self.tasks:
            raise ValueError("tasks: expected at least one to export; harness names tasks that lm-eval has already")
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        if self.harness_include is not None and not self.harness:
            raise ValueError(f"harness_include = {self.harness_include}: expected tasks in harness too")
        if self.export_harness is not None and self.harness:
            raise ValueError("export_harness, harness: expected one of the two; an export runs nothing")
        ours = {
            "format": list(self.format) != ["default"],
            "strict": self.strict,
            "train_data": self.train_data is not None,
            "allow_code_execution": self.allow_code_execution,
            "allow_unconfined_code": self.allow_unconfined_code,
        }
        if idle := [key for key, given in ours.items() if given and not self.tasks]:
            raise ValueError(f"{idle[0]}: tasks of harness are asked as lm-eval does and have none; expected tasks too")


def evaluate(options: Options) -> list[Result]:
    """Measure a model on tasks; prints the table and, with ``output``, writes the results.

    On several devices every process asks its share of the questions, and the first one prints and writes.

    Raises:
        FileNotFoundError: a model, task or data file is missing.
        ValueError: something does not fit; names key or file and row. A ``GuardError`` under ``strict``.
    """
    options = replace(options, model=base_folder(options.model, "model"))
    check_checkpoint_dir(options.model)
    find_device(options.device)
    number = check_devices(options.devices, options.device)
    if options.item_format == "parquet":
        require("pyarrow", "--item_format parquet")
    tasks = _tasks(options)
    _check_code(tasks, options)
    cells = _plan(tasks, options)
    console = Console(stderr=True)
    results = [cell.result for cell in cells if cell.result is not None]
    harness: dict[str, Any] = {}
    if len(results) < len(cells) or options.harness:
        with together(number, options.device, partial(evaluate, replace(options, devices=1))) as rank:
            loaded = load_model(options.model, rank.device, options.precision)
            if options.harness:  # first: a name that lm-eval does not know costs no scoring
                harness = _harness(loaded, options)
            if rank.number > 0:
                options, console = replace(options, output=None), Console(quiet=True)
            results = _measure_all(cells, loaded, options, console)
        if rank.number > 0:
            return results
    if results:
        print_results(results, f"{options.model}")
    if options.output is not None:
        _write_summary(options, results, harness)
        print(f"wrote {options.output}", file=sys.stderr)
    return results


def export(options: Options) -> None:
    """Write the tasks as task files of lm-evaluation-harness, with the questions as this model would be asked.

    Raises:
        ValueError: as ``evaluate``, or lm-eval has no way to ask the same.
    """
    options = replace(options, model=base_folder(options.model, "model"))
    assert options.export_harness is not None
    check_checkpoint_dir(options.model)
    tasks = _tasks(options)
    block_size = model_config(None, options.model, {}, None).block_size
    for cell in _plan(tasks, replace(options, output=None)):
        path = export_tasks(cell.questions, options.export_harness, Tokenizer(options.model), block_size)
        print(f"wrote {path}", file=sys.stderr)


def compare(first: Path, second: Path, output: Path | None = None, seed: int = 0) -> None:
    """Print the paired comparison of two output folders; with ``output``, write ``comparison.json``."""
    comparisons, warnings = compare_folders(first, second, seed)
    print_comparison(comparisons, warnings, (str(first), str(second)))
    if output is not None:
        folders = {"first": str(first), "second": str(second), "warnings": warnings}
        write_json(output / "comparison.json", {**folders, "comparisons": [c.as_json() for c in comparisons]})


def gate(first: Path, second: Path, file: Path, output: Path | None = None) -> int:
    """Print whether the second may be shipped, and write ``gate.json`` into ``output``, or beside its results.

    Returns:
        0 to ship it, 3 not to, 4 where that cannot be told with these items.
    """
    judged, warnings = judge(first, second, read_gate(file))
    status = exit_status(judged)
    print_gate(judged, warnings, status, (str(first), str(second)))
    said: dict[str, Any] = {"first": str(first), "second": str(second), "gate": str(file), "warnings": warnings}
    said |= {"verdict": WORDS[status], "exit_status": status}
    target = (second if output is None else output) / "gate.json"
    write_json(target, {**said, "bounds": [entry.as_json() for entry in judged]})
    print(f"wrote {target}", file=sys.stderr)
    return status


def _tasks(options: Options) -> list[Task]:
    tasks = [task for name in options.tasks for task in load_tasks(name, options.data_dir, options.world)]
    if options.world and all(task.data.world is None for task in tasks):
        raise ValueError(f"world = {options.world}: none of the tasks asks of a world; expected one that does")
    return tasks


def _check_code(tasks: Sequence[Task], options: Options) -> None:
    for task in tasks:
        if task.runs_code:
            try:
                needed_walls(options.allow_code_execution, options.allow_unconfined_code)
            except ValueError as error:
                raise ValueError(f"task {task.name}: {error}") from None


def _plan(tasks: Sequence[Task], options: Options) -> list[Cell]:
    if not tasks:
        return []
    ask = Ask(
        formats=[load_format(name) for name in options.format],
        shots=options.shots,
        limit=options.limit,
        seed=options.seed,
        strict=options.strict,
        train_data=options.train_data,
        output=options.output,
        item_format=options.item_format,
    )
    config = model_config(None, options.model, {}, None)
    identity = {
        "weights": weights_hash(options.model),
        "config": asdict(config),
        "precision": options.precision,
    }
    return plan_cells(tasks, ask, Tokenizer(options.model), config.block_size, identity)


def _measure_all(cells: Sequence[Cell], loaded: Loaded, options: Options, console: Console) -> list[Result]:
    results = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for cell in cells:
            if cell.result is None:
                bar = progress.add_task(
                    f"{cell.task.name} ({cell.questions.format})", total=len(cell.questions.questions)
                )
                results.append(_measure(cell, loaded, options, lambda n, bar=bar: progress.advance(bar, n)))
                progress.remove_task(bar)
            else:
                results.append(cell.result)
    return results


def _measure(cell: Cell, loaded: Loaded, options: Options, advance: Any) -> Result:
    with evaluation_mode(loaded.model):
        engine = Engine(
            loaded.model,
            loaded.tokenizer,
            options.batch_tokens,
            loaded.device,
            options.allow_code_execution,
            options.allow_unconfined_code,
            advance,
        )
        measured = cell.task.measure(cell.questions, engine)
    findings = [*cell.findings, *check_predictions(cell.task, measured.predictions, measured.golds)]
    stop_if_strict(cell.task, findings, options.strict)
    result = summarize_result(cell.questions, measured, findings, cell.fingerprint, cell.model)
    if options.output is not None:
        write_result(options.output, result, measured.records, options.item_format)
    return result


def _harness(loaded: Loaded, options: Options) -> dict[str, Any]:
    """lm-eval's own tasks; a single number of examples is handed on, 0 leaves it to the task."""
    measured = run_harness(
        loaded.model,
        loaded.tokenizer,
        list(options.harness),
        include_path=options.harness_include,
        limit=options.limit or None,
        num_fewshot=options.shots[0] or None,
        batch_tokens=options.batch_tokens,
        device=loaded.device,
    )
    for task, numbers in measured["results"].items():
        shown = {k: v for k, v in numbers.items() if isinstance(v, float)}
        print(f"{task}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    return {key: measured[key] for key in ("results", "versions", "n-shot") if key in measured}


def _write_summary(options: Options, results: Sequence[Result], harness: dict[str, Any]) -> None:
    assert options.output is not None
    provenance = read_provenance(options.model)
    summary = {
        "model": str(options.model),
        "weights_sha256": weights_hash(options.model),
        "versions": current_versions(),
        "seed": options.seed,
        "limit": options.limit,
        "results": [vars(result) for result in results],
        "sensitivity_to_format": sensitivity_to_format(results),
        "harness": harness,
    }
    write_json(options.output / "summary.json", summary)
    write_scalars(options.output / "tensorboard", results, provenance.steps if provenance else 0)
