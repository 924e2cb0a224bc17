"""The argument parser: errors in a few lines, with what was probably meant."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class Parser(LightningArgumentParser):
    """LightningArgumentParser that ends with exit status 2 and the error alone, not a hundred lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, a hint where there is one, and where the options are explained."""
        if not self.exit_on_error:
            super().error(message, ex)
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
