"""Mistakes in a call that no parser sees: each would change what is done without a word.

A key that stands twice in a configuration, two configurations of which one takes back the other's method, a variable of
the environment that no option has, or that a configuration overrides. Looked at before a command imports torch.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lit_consistency.records.shipped import shipped
from lit_consistency.records.strict_yaml import read_strict_yaml

PREFIX = "LIT_CONSISTENCY_"
OTHERS = tuple(PREFIX + name for name in ("TRACEBACK", "TEST_DATA", "KILLS", "FAULT_SECONDS", "PARENT"))
"""Variables that are no options."""


def check_configurations(args: Sequence[str]) -> None:
    """See that the configurations of a call say one thing each, and together.

    Args:
        args: of the command line.

    Raises:
        ValueError: a key stands twice in a file, or two files choose different methods, of which the later would win.
    """
    chosen: dict[str, tuple[str, Path]] = {}
    for path in named_configurations(args):
        content = read_strict_yaml(path)
        model = content.get("model") if isinstance(content, Mapping) else None
        method = model.get("method") if isinstance(model, Mapping) else None
        name = method.get("class_path") if isinstance(method, Mapping) else method
        if not isinstance(name, str):
            continue
        before = chosen.setdefault("method", (name, path))
        if before[0].rpartition(".")[2] == "Full":  # as in a run's config.yaml; a method after it takes nothing back
            chosen["method"] = (name, path)
        elif before[0].rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(
                f"model.method: {before[1]} chooses {before[0]}, and {path} {name}, which would take its place; a run "
                "has one method: expected one of the two files"
            )


def found_configurations(args: Sequence[str]) -> list[str]:
    """The words of a call, with the full path of every configuration that stands in the package and not here."""
    found = list(args)
    for i, word in enumerate(found):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c") and equals:
            found[i] = f"{option}={shipped(value)}" if "/" in value else word
        elif option in ("--config", "-c") and i + 1 < len(found):
            found[i + 1] = str(shipped(found[i + 1])) if "/" in found[i + 1] else found[i + 1]
    return found


def named_configurations(args: Sequence[str]) -> Iterator[Path]:
    """The files that ``--config`` and ``-c`` name and that are there; of the others the parser speaks."""
    for i, word in enumerate(args):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            path = Path(value if equals else args[i + 1] if i + 1 < len(args) else "")
            if path.suffix in (".yaml", ".yml") and path.is_file():
                yield path


def variables(parsers: Mapping[str, ArgumentParser]) -> list[str]:
    """Names of the environment's variables of all options.

    Args:
        parsers: command -> its parser.
    """
    return [
        f"{PREFIX}{command.upper()}__{action.dest.replace('.', '__').upper()}"
        for command, parser in parsers.items()
        for action in parser._actions
    ]


def check_environment(known: Sequence[str], given: Mapping[str, str] = os.environ) -> None:
    """See that every variable with our prefix is one of an option.

    Args:
        known: names of the variables of all options.
        given: the environment.

    Raises:
        ValueError: one is not; names it and the nearest.
    """
    # a class has options that no parser lists; of other groups all are listed
    classes = [key for key in known if not any(other.startswith(f"{key}__") for other in known)]
    for name in given:
        below = any(name.startswith(f"{key}__") for key in classes)
        if not name.startswith(PREFIX) or name in (*known, *OTHERS) or below:
            continue
        near = get_close_matches(name, known, n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else "expected LIT_CONSISTENCY_COMMAND__KEY__KEY"
        raise ValueError(f"the environment's {name} is no option: {hint}")


def overridden(args: Sequence[str], command: str, given: Mapping[str, str] = os.environ) -> list[str]:
    """Lines on variables of the environment that have no effect, because a configuration of the call says otherwise."""
    lines = []
    files = [(path, read_strict_yaml(path)) for path in named_configurations(args)]
    prefix = f"{PREFIX}{command.upper()}__"
    for name, value in given.items():
        if not name.startswith(prefix):
            continue
        keys = name.removeprefix(prefix).lower().split("__")
        for path, content in files:
            found = _at(content, keys)
            if found is not None and str(found) != value:
                lines.append(f"the environment's {name}={value} has no effect: {path} says {'.'.join(keys)} = {found}")
    return lines


def refuse(error: ValueError) -> None:
    """End as a mistake in the call does."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _at(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        lower = {str(own).lower(): value for own, value in content.items()} if isinstance(content, Mapping) else {}
        content = lower.get(key)
    return content
