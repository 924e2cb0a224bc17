"""``python -m lit_consistency evaluate``: the options. What they do stands in evaluation/evaluate.py.

The options are a file by themselves so that ``--help`` and a mistake in them cost a tenth of a second: the rooms below
import torch and lightning.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from lit_consistency.cli.parser import ShortErrors, add_options, command_parser

DESCRIPTION = """\
Measure a model on tasks: log-likelihood, multiple choice, minimal pairs, generation.

  evaluate --model checkpoints/ORG/MODEL --tasks piqa blimp --output results/base
  evaluate --model checkpoints/ORG/MODEL --tasks rte --format default io instruct --shots 0 4
  evaluate --model checkpoints/ORG/MODEL --tasks suite --devices 4
  evaluate --compare results/base results/finetuned
  evaluate --compare results/base results/finetuned --gate gate.yaml    # exits with 0 (ship), 3 (do not) or 4
"""
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("model", Path, None, "model folder in LitGPT's format, or a step of a run, as RUN/checkpoints/step-100"),
    (
        "tasks",
        list[str],
        [],
        "task files, or names of files in configs/evaluation, or suite, which lies in the package",
    ),
    (
        "format",
        list[str],
        ["default"],
        "prompt formats: default, io, instruct, chat, or YAML files; several give the sensitivity to the format",
    ),
    ("shots", list[int], [0], "numbers of few-shot examples, from the task's training split, fixed by the seed"),
    ("limit", int, 0, "questions of each task at most, drawn by the seed (of texts the first windows); 0: all"),
    ("seed", int, 0, "of the draws of examples and questions, and of the exchanges that compare two models"),
    (
        "batch_tokens",
        int,
        16384,
        "padded tokens in one forward, or cached ones when generating; lower it when memory runs out",
    ),
    ("device", str, "auto", "auto, cpu, cuda, cuda:1, ..."),
    (
        "devices",
        int,
        1,
        "processes that share the questions, each with a GPU of its own, or on CPUs; -1: all GPUs. Under torchrun its "
        "processes do, and this stays 1",
    ),
    ("precision", str, "auto", "auto (that of the weights file), float32, bfloat16, float16"),
    (
        "output",
        Path | None,
        None,
        "folder for results, items, summary.json and TensorBoard; what stands there with the "
        "same fingerprint is not measured again",
    ),
    ("item_format", str, "jsonl", "of the files with every item: jsonl or parquet"),
    (
        "train_data",
        str | None,
        None,
        "training data (.txt, .jsonl, .json, .parquet; file, folder or pattern) in which "
        "the evaluation rows are looked for",
    ),
    ("data_dir", Path | None, None, "takes the place of the folder data/ of the task files"),
    (
        "world",
        dict[str, Any] | None,
        None,
        "fields of the world that tasks of a world ask of, where they differ from the task file's, as '{seed: 1}'",
    ),
    ("harness", list[str], [], "tasks of lm-evaluation-harness, by its names; needs the extra `eval`"),
    ("harness_include", Path | None, None, "folder of further task files of lm-evaluation-harness"),
    (
        "export_harness",
        Path | None,
        None,
        "folder to which the tasks are written as task files of lm-evaluation-harness; nothing is measured",
    ),
    ("compare", list[Path], [], "two output folders: paired comparison, second minus first; nothing is measured"),
    (
        "gate",
        Path | None,
        None,
        "with compare: YAML file of bounds on the changes, a task a line, as {old_people: {not_worse: 0.02}, "
        "new_people: {better: 0.1}}; metric: NAME names another one than the task's. Exit status 0: every bound is "
        "kept, 3: one is breached, 4: it cannot be told with these items. gate.json goes to output, else into the "
        "second folder",
    ),
)
FLAGS = (
    ("strict", "stop with an error when a guard finds something (labels of one class, rows in the training data, ...)"),
    ("allow_code_execution", "run the programs that the model writes, for tasks that test code, behind walls"),
    ("allow_unconfined_code", "run them also where no walls can be built: they may do whatever you may"),
)


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("evaluate", DESCRIPTION)
    command.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    add_options(command, OPTIONS, FLAGS)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2, a finding under ``--strict`` with 1, an interrupt with 130.

    A gate that is not passed exits with 3, one that cannot be told with 4.
    """
    command = parser()
    given = vars(command.parse_args(argv))
    given.pop("config")
    for key in ("tasks", "harness"):  # as lm-evaluation-harness takes them
        given[key] = [name for names in given[key] for name in names.split(",")]
    folders = [Path(folder) for folder in given.pop("compare")]
    if folders and len(folders) != 2:
        command.error(f"compare: {len(folders)} folders; expected two")
    if not folders and given["model"] is None:
        command.error("model: expected a model folder")
    if idle := [key for key in ("model", "tasks", "harness") if folders and given[key]]:
        command.error(f"compare, {idle[0]}: expected one of the two; a comparison measures nothing")
    if given["gate"] is not None and not folders:
        command.error(f"gate = {given['gate']}: expected compare too, two folders of results")
    try:
        _run(command, given, folders)
    except KeyboardInterrupt:
        kept = f"; what is finished stands in {given['output']}" if given["output"] and given["output"].exists() else ""
        print(f"interrupted{kept}", file=sys.stderr)
        sys.exit(130)


def _run(command: ShortErrors, given: dict[str, Any], folders: list[Path]) -> None:
    from lit_consistency.evaluation.evaluate import Options, compare, evaluate, export, gate
    from lit_consistency.tasks.guards import GuardError

    file = given.pop("gate")
    try:
        if file is not None:
            status = gate(folders[0], folders[1], file, given["output"])
            if status:
                sys.exit(status)
        elif folders:
            compare(folders[0], folders[1], given["output"], given["seed"])
        elif given["export_harness"] is not None:
            export(Options(**given))
        else:
            evaluate(Options(**given))
    except GuardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        command.error(str(error))
