"""``python -m lit_consistency study``: the options. What they do stands in study/."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, Namespace

from lit_consistency.cli.mistakes import check_configurations
from lit_consistency.cli.parser import ShortErrors, command_parser, plain_options
from lit_consistency.study.execute.local import ProcessFailed
from lit_consistency.study.execute.options import ExecutionOptions, RayOptions, SlurmOptions
from lit_consistency.study.options import Claim, Pick, Reading, Replicates, Stage, StudyOptions
from lit_consistency.study.values import NO_BASE_YET

DESCRIPTION = """\
Many runs: plan them, run what is missing, and report fronts, effects and verdicts.

  study --config configs/studies/quickstart.yaml --dry_run
  study --config configs/studies/quickstart.yaml
  study --config configs/studies/quickstart.yaml --report
  study --config configs/studies/quickstart.yaml --only stage=finetune,finetuner=muon --head 4

What is finished is not run again, in this study or in another that has the same cell; what was interrupted is continued
by the same command. Several of these commands may work on one study at a time.

  study --config ... --execution.workers 4
  study --config ... --execution.engine slurm --execution.slurm.nodes 8 --execution.slurm.gpus 1
  study --config ... --execution.engine ray --execution.ray.address auto
"""
FLAGS = (
    ("dry_run", "print the plan: cells, states, hours as measured so far; nothing is run"),
    ("report", "write tables and report from what is there; nothing is run"),
    ("remove_weights", "remove the models of cells on which no cell depends that is still to be run"),
    (
        "worker",
        "help another call on this machine, whatever its engine: run cells until none is left, without a report",
    ),
)


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("study", DESCRIPTION)
    command.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    command.add_class_arguments(StudyOptions)
    command.add_class_arguments(ExecutionOptions, "execution")
    for name, text in FLAGS:
        command.add_argument(f"--{name}", action="store_true", help=text)
    command.add_argument("--print", type=str | None, default=None, help="name of a cell: print its command")
    command.add_argument("--head", type=int | None, default=None, help="run at most so many cells")
    command.add_argument(
        "--only", type=str | None, default=None, help="run only these, and what they need: stage=NAME,AXIS=VALUE,..."
    )
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2, a study with cells that failed with 1, a signal as 128 and it."""
    command = parser()
    arguments = command.parse_args(argv)
    given = list(sys.argv[2:] if argv is None else argv)
    try:
        study, execution = options_of(arguments)
        from lit_consistency.study.run import StudyRun

        run = StudyRun(study, execution, parse, command=given)
        status = _act(run, arguments)
    except ProcessFailed as error:
        _stop(error, 1)
    except (ValueError, OSError) as error:
        _stop(error, 2)
    sys.exit(status)


def _act(run: Any, arguments: Namespace) -> int:
    if arguments["print"] is not None:
        print(run.command_of(arguments["print"]))
        return 0
    if arguments["dry_run"]:
        run.print_plan()
        return 0
    if arguments["remove_weights"]:
        run.remove_weights()
        return 0
    if not arguments["report"]:
        status = run.execute(arguments["only"], arguments["head"], worker=arguments["worker"])
        if arguments["worker"] or status > 2:
            return int(status)
    else:
        status = 0
    run.write_report()
    return int(status)


def _stop(error: Exception, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


def options_of(arguments: Namespace) -> tuple[StudyOptions, ExecutionOptions]:
    """The dataclasses."""
    given = plain_options(arguments)
    engines = {"slurm": SlurmOptions(**given["execution"]["slurm"]), "ray": RayOptions(**given["execution"]["ray"])}
    execution = ExecutionOptions(**{**given["execution"], **engines})
    stages = {name: Stage(**{**stage, "pick": Pick(**stage["pick"])}) for name, stage in given["stages"].items()}
    study = StudyOptions(
        title=given["title"],
        output=Path(given["output"]),
        stages=stages,
        description=given["description"],
        cells=Path(given["cells"]),
        replicates=Replicates(**given["replicates"]),
        read=Reading(**given["read"]) if given["read"] is not None else None,
        claims={name: Claim(**claim) for name, claim in given["claims"].items()},
        accept_code=given["accept_code"],
    )
    return study, execution


def parse(calls: Sequence[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """Complete configurations of calls of commands; of ``fit`` also built, which checks the ranges of its options.

    Raises:
        ValueError: a mistake in a call; begins with the call's number.
    """
    parsed = []
    for number, (kind, arguments) in enumerate(calls):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed.append(_parse_fit(arguments) if kind == "fit" else _parse_other(kind, arguments))
        except SystemExit:  # the command has said what is wrong
            raise ValueError(f"{number}: {said.getvalue().removeprefix('error: ').strip()}") from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{number}: {error}") from None
    return parsed


def _parse_fit(arguments: Sequence[str]) -> dict[str, Any]:
    import yaml

    from lit_consistency.cli.fit import build
    from lit_consistency.methods.base_folder import base_to_come

    check_configurations(arguments)
    shown = logging.root.manager.disable
    logging.disable(logging.INFO)  # what a run would say of its seed and devices, once a value
    try:
        with warnings.catch_warnings():  # that arguments are given beside those of this command
            warnings.simplefilter("ignore")
            with base_to_come() if NO_BASE_YET in arguments else contextlib.nullcontext():
                cli = build(["fit", *arguments])
    finally:
        logging.disable(shown)
    return yaml.safe_load(cli.dump())


def _parse_other(kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    from importlib import import_module

    module = import_module(f"lit_consistency.cli.{kind}")
    if kind == "analyze":
        parsed = plain_options(module.checked(list(arguments)))
    else:
        parsed = plain_options(module.parser().parse_args(list(arguments)))
    parsed = json.loads(json.dumps(parsed, default=str))  # what was parsed is kept as JSON, paths as texts
    return {key: value for key, value in parsed.items() if key != "config"}  # the files are in the options
