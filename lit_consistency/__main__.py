"""``python -m lit_consistency COMMAND``: sends every command to its room, and imports no more than that room needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from lit_consistency.cli.commands import FILES, TRAINING
from lit_consistency.cli.kept_help import asks_for_help, print_help
from lit_consistency.cli.lean_imports import import_at_once
from lit_consistency.cli.output import outlive_readers
from lit_consistency.records.processes import die_with_parent

USAGE = """\
usage: lit-consistency COMMAND [options]        (or python -m lit_consistency COMMAND [options])

Pretrain and finetune LitGPT models with any optimizer, and see in the same run what was learned and what was forgotten.

commands:
  init       a configuration for your model and rows:   init --model DIR --rows ROWS
  fit        train, from scratch or from a checkpoint:  fit --config configs/quickstart.yaml
  validate   loss of the held-out part of the data:     validate --config configs/quickstart.yaml
  test       the same, named test/loss
  predict    per row: its id, prompt, answer, log-likelihood and first choice, into <run>/predictions.jsonl
  prepare    a tokenizer of your text, to pretrain on:  prepare --text PATHS --to DIR
  data       rows as the model will see them:           data --rows ROWS --model DIR
  evaluate   tasks, formats, guards, comparisons:       evaluate --model DIR --tasks piqa blimp --output OUT
  analyze    why it forgets, from checkpoints:          analyze --model DIR --what updates kl --text TASK --output OUT
  study      many runs, fronts, effects, verdicts:      study --config configs/studies/quickstart.yaml
  sequence   train on one task after the other:         sequence --config configs/sequences/quickstart.yaml
  check-optimizer  what a run expects of a class:       check-optimizer my_pkg.MyOpt --args.lr 1e-3
  import     a model of the hub or a folder:            import ORG/MODEL
  export     write a model for another library:         export --checkpoint_dir DIR --to hf --out_dir OUT
             or one between it and its base:          export ... --to litgpt --interpolate 0.5 --with BASE
             or the one that keeps to a budget:       export ... --to litgpt --interpolate auto --budget 'blimp<=0.02'
  completion a script with which a shell completes:     completion bash

`COMMAND --help` lists the options of a command. Configurations are composed left to right:
  fit --config configs/quickstart.yaml --config configs/optimizers/muon.yaml --trainer.max_steps 50
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 for a mistake in the call."""
    outlive_readers()
    _find_own_modules()
    args = list(sys.argv[1:] if args is None else args)
    die_with_parent()
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print(USAGE, end="")
    elif command == "--version":
        from lit_consistency import __version__

        print(__version__)
    elif command in FILES:
        if any(word.partition("=")[0] in ("--config", "-c") for word in args):
            args = _checked_configurations(args)
        if command in TRAINING and asks_for_help(args):
            print_help(args, lambda: _run(args))
        _run(args)
    else:
        print(f"error: command {command!r}: expected one of {', '.join(FILES)}; see --help", file=sys.stderr)
        sys.exit(2)


def _find_own_modules() -> None:
    """Let a class that stands in the working directory be named, also where the command is ``lit-consistency``.

    ``python -m`` looks there first. Here it comes last, so that a file of the user shadows no package.
    """
    if getattr(sys.flags, "safe_path", False):  # python -P asks for the opposite
        return
    with suppress(OSError):  # the folder may be gone
        if (here := os.getcwd()) not in sys.path and "" not in sys.path:
            sys.path.append(here)


def _run(args: list[str]) -> None:
    run = import_at_once(f"lit_consistency.cli.{FILES[args[0]]}").main
    run(args if args[0] in TRAINING else args[1:])


def _checked_configurations(args: list[str]) -> list[str]:
    """The words of a call whose configurations say one thing each; those that the package brings are found anywhere."""
    from lit_consistency.cli.mistakes import check_configurations, found_configurations, refuse

    args = found_configurations(args)
    try:
        check_configurations(args)
    except ValueError as error:
        refuse(error)
    return args


if __name__ == "__main__":
    main()
