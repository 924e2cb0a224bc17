"""``python -m lit_consistency sequence``: the options. What they do stands in sequence.py.

The options are a file by themselves so that ``--help`` and a mistake in them do not wait for the rooms below.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from jsonargparse import ActionConfigFile, Namespace

from lit_consistency.cli.parser import ShortErrors, command_parser, plain_options
from lit_consistency.study.execute.local import ProcessFailed
from lit_consistency.study.sequence.plan import (
    EvaluationOptions,
    FitOptions,
    ReplayOptions,
    SequencePlan,
    Stage,
    WorldTask,
    check_plan,
)

DESCRIPTION = """\
Train a base on one task after the other, ask all tasks after each, and show what was learned and forgotten:
the matrix of scores, overall performance (OP), backward transfer (BWT), forgetting and retained share of every task.

  sequence --config configs/sequences/quickstart.yaml
  sequence --config configs/sequences/quickstart.yaml --replay.earlier_tasks 0.2 --output checkpoints/runs/replayed

What is finished is not run again; what was interrupted is continued by the same command.
"""


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("sequence", DESCRIPTION)
    command.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    command.add_class_arguments(SequencePlan)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2, a run that failed with 1, a signal with 128 and its number."""
    command = parser()
    plan = plan_of(command.parse_args(argv))
    try:
        check_plan(plan)
        from lit_consistency.study.sequence.run import Sequence

        Sequence(plan).run()
    except (ValueError, OSError) as error:
        _stop(error, 2)
    except ProcessFailed as error:
        _stop(error, 1)
    print(f"wrote {plan.output}", file=sys.stderr)


def _stop(error: Exception, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


def plan_of(arguments: Namespace) -> SequencePlan:
    """The dataclasses; jsonargparse would also build every ``class_path`` inside, which is for the runs to do."""
    given = plain_options(arguments)
    parts = {"fit": FitOptions, "evaluation": EvaluationOptions, "replay": ReplayOptions}
    for key, kind in parts.items():
        given[key] = kind(**given[key])
    given["stages"] = [Stage(**stage) for stage in given["stages"]]
    given["worlds"] = {name: WorldTask(**task) for name, task in given["worlds"].items()}
    del given["config"]
    return SequencePlan(**given)
