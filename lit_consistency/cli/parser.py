"""What every command's parser has in common: a mistake ends with the error alone, and with what was probably meant.

Imports neither torch nor Lightning, so that ``--help`` and a mistake do not wait for them.
"""

from __future__ import annotations

import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter, Namespace

from lit_consistency.cli.class_paths import REFUSED
from lit_consistency.cli.overlays import OverlayParser

NAMED_BY = (
    "expected the path of a class, as my_pkg.MyOpt, whose module stands in the working directory (my_pkg.py, or a "
    "folder my_pkg), in PYTHONPATH or among the installed packages"
)


class ShortErrors(OverlayParser):
    """Ends with exit status 2 and the error in a few lines, not with a hundred lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, a hint where there is one, and where the options are explained."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = plain_types(one_line(self.in_words(message, ex)))
        sys.stderr.write(f"error: {text}\n{self.hint(text)}the options are explained by --help\n")
        sys.exit(2)

    def in_words(self, message: str, ex: Exception | None) -> str:
        """The message as it is shown."""
        return message

    def hint(self, message: str) -> str:
        """Names close to the one that is not known."""
        if match := re.search(r"module '(lit_consistency[\w.]*)' has no attribute '(\w+)'", message):
            return f"expected one of {', '.join(import_module(match[1]).__all__)}\n"
        if re.search(r"No module named '([\w.]+)'\. Got value: \1\.|Unexpected import path format: ", message):
            return f"{NAMED_BY}\n"
        match = re.search(r"Unrecognized arguments: --([\w.]+)", message) or re.search(
            r"Key '([\w.]+)' is not", message
        )
        if match is None:
            return ""
        known = sorted({option.lstrip("-") for action in self._actions for option in action.option_strings})
        close = get_close_matches(match[1], known) or get_close_matches(match[1].rpartition(".")[2], known)
        return f"did you mean {' or '.join(close)}?\n" if close else ""


# jsonargparse's account of an error has a line for every level of the key
STEP = re.compile(
    r"\s*(?:Parser key \"(?P<key>[^\"]+)\"(?: element \d+)?:"
    r"|(?P<init_args>Problem with given class_path '.*':|Type \S*Callable\S.*? expects a function or a callable class:)"
    r"|Validation failed:|- Expected a config path but .* either not accessible or invalid\n\s*- )\s*"
)
CHOICES = re.compile(r"Does not validate against any of the Union subtypes\s+Subtypes: .*\s+Errors:\n(.*)", re.DOTALL)


def one_line(message: str) -> str:
    """The key in full and what is wrong with its value, for jsonargparse's account of an error."""
    key, rest = "", message
    while step := STEP.match(rest):
        key += f".{step['key']}" if step["key"] else ".init_args" if step["init_args"] else ""
        rest = rest[step.end() :]
    return f"{key.removesuffix('.init_args')[1:]}: {reason(rest)}" if key else message


def reason(text: str) -> str:
    """What is wrong with a value, without jsonargparse's account of all that it has tried."""
    rest = text.partition(REFUSED)[2].partition("\n")[0] or text.strip()
    rest = re.sub(r"\. Got value: Namespace\(.*\)$", "", rest, flags=re.DOTALL)
    if choices := CHOICES.match(rest):
        reasons, _, given = choices[1].partition("Given value type:")
        texts = [" ".join(text.split()) for text in re.split(r"^\s*- ", reasons, flags=re.MULTILINE) if text.strip()]
        rest = f"{'; or '.join(texts)}. Got value: {given.partition('Given value:')[2].strip()}"
    return rest


TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "tuple": "[A, B]"}
"""What jsonargparse calls a class of Python -> what a user calls it."""
EXPECTED = re.compile(r"Expected a <class '(\w+)'>")
NO_UNION = "Cannot take a Union of no types."


def plain_types(text: str) -> str:
    """``KEY: VALUE: expected a whole number``, for what jsonargparse says of a value of another type."""
    head, got, value = text.rpartition(". Got value: ")
    key, colon, said = head.partition(": ")
    if not got or not colon or "Expected a <class" not in said:
        return text
    parts = [part.strip().rstrip(".") for part in said.split("; or ")]
    kinds = [match[1] for part in parts if (match := EXPECTED.fullmatch(part))]
    if len(kinds) < len([part for part in parts if f"{part}." != NO_UNION]):
        return text  # one of the reasons says more
    words = list(dict.fromkeys(TYPES.get(kind, kind) for kind in kinds if kind != "NoneType"))
    others = ["one of the words in --help"] if len(kinds) < len(parts) else []
    others += ["null"] if "NoneType" in kinds else []
    return f"{key}: {value}: expected {' or '.join([*words, *others])}"


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


def command_parser(command: str, description: str) -> ShortErrors:
    """A parser for a command of its own, beside those that Lightning makes."""
    return ShortErrors(prog=f"lit_consistency {command}", description=description, formatter_class=HelpFormatter)


def add_options(
    command: ShortErrors, options: Sequence[tuple[str, Any, Any, str]], flags: Sequence[tuple[str, str]]
) -> None:
    """Add a table of options, (name, type, default, help), lists by words behind one another, and of flags."""
    for name, kind, default, text in options:
        several: dict[str, Any] = {"nargs": "*"} if getattr(kind, "__origin__", None) is list else {}
        kind = kind.__args__[0] if several else kind
        command.add_argument(f"--{name}", type=kind, default=default, help=text, **several)
    for name, text in flags:
        command.add_argument(f"--{name}", action="store_true", help=text)


def plain_options(value: Any) -> Any:
    """What was parsed, with mappings for jsonargparse's namespaces at any depth."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: plain_options(entry) for key, entry in value.items()}
    return [plain_options(entry) for entry in value] if isinstance(value, list) else value
