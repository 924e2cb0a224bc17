"""The argument parser: errors in a few lines, with what was probably meant."""

from __future__ import annotations

import re
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn, get_args, get_type_hints

from lightning.pytorch.cli import LightningArgumentParser

# What jsonargparse 4.41 says of a string that a Literal of strings does not have, instead of what it has.
NO_TYPES = "Cannot take a Union of no types."


class Parser(LightningArgumentParser):
    """LightningArgumentParser that ends with exit status 2 and the error alone, not a hundred lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, a hint where there is one, and where the options are explained."""
        if not self.exit_on_error:
            super().error(message, ex)
        if NO_TYPES in message:
            message = message.replace(NO_TYPES, _choices(ex) or _choices_of_class(message) or NO_TYPES)
        hint = self._hint(message)
        sys.stderr.write(f"error: {message}\n{hint}the options are explained by --help\n")
        sys.exit(2)

    def _hint(self, message: str) -> str:
        """Names close to the one that is not known."""
        if found := re.search(r"module '(lit_consistency[\w.]*)' has no attribute '(\w+)'", message):
            return f"expected one of {', '.join(import_module(found[1]).__all__)}\n"
        found = re.search(r"Unrecognized arguments: --([\w.]+)", message) or re.search(
            r"Key '([\w.]+)' is not", message
        )
        if found is None:
            return ""
        known = sorted({option.lstrip("-") for action in self._actions for option in action.option_strings})
        close = get_close_matches(found[1], known) or get_close_matches(found[1].rpartition(".")[2], known)
        return f"did you mean {' or '.join(close)}?\n" if close else ""


def _choices(error: BaseException | None) -> str | None:
    """The value and what is allowed, from the place where the error was raised."""
    found = None
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__ if str(error) == NO_TYPES else None):
            if allowed := frame.f_locals.get("subtypehints"):
                found = f"{frame.f_locals['val']!r}: expected one of {', '.join(map(str, allowed))}"
        error = error.__cause__ or error.__context__
    return found


def _choices_of_class(message: str) -> str | None:
    """What is allowed, by the class that the message names: of an optional class jsonargparse drops the error."""
    found = re.search(r"given class_path '(lit_consistency[\w.]*)\.(\w+)':\s+Parser key \"(\w+)\"", message)
    if found is None:
        return None
    hints = get_type_hints(getattr(import_module(found[1]), found[2]).__init__)
    allowed = get_args(hints.get(found[3]))
    return f"expected one of {', '.join(map(str, allowed))}" if allowed else None
