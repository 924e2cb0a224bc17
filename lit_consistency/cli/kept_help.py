"""The help of the training commands, kept as text: making it imports torch and every class, which takes seconds.

What is kept is found by all that the text depends on: the words of the call, the package's sources, every distribution
that is installed (a parser lists the classes of those it has imported), Python, the width of the terminal, and the
variables of the environment that stand for options. Another of any of these is another file, so nothing is ever out of
date; the first call of each makes the text. Help of a class is kept where it is of this package; whoever's class stands
elsewhere may be changing it. Where nothing can be written the text is made every time.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path

from lit_consistency.records import fingerprints
from lit_consistency.records.kept_text import keep, read_kept
from lit_consistency.records.processes import PARENT

LIBRARIES = ("torch", "lightning", "jsonargparse", "litgpt")
"""That the parser is made of: also where they are no distribution but a folder on the path."""
OF_CLASS = re.compile(r"--[\w.]+\.help[= ]lit_consistency\.[\w.]+")
AT_MOST = 60
"""Texts kept; a tenth of a megabyte each."""


def print_help(args: Sequence[str], command: Callable[[], None]) -> None:
    """Print what a command says of itself, kept or made, and end as it does.

    Args:
        args: the call, for which ``asks_for_help``.
        command: carries it out.
    """
    file = _file(args)
    if (text := read_kept(file)) is None:
        said = io.StringIO()
        try:
            with redirect_stdout(said):
                command()
        except SystemExit as end:
            if end.code not in (0, None):
                print(said.getvalue(), end="")
                raise
        text = said.getvalue()
        if _file(args) == file:  # no source was written meanwhile
            keep(file, text, AT_MOST)
    print(text, end="")
    sys.exit(0)


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether a call asks for nothing but the help of a training command, or of a class of this package."""
    words = " ".join(args[1:])
    return words in ("-h", "--help") or OF_CLASS.fullmatch(words) is not None


def _file(args: Sequence[str]) -> Path:
    """Beside the tokens of the data; without a home there is no such folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "lit_consistency" / "help" / f"{fingerprints.fingerprint_of(_depends_on(args))}.txt"


def _depends_on(args: Sequence[str]) -> dict[str, object]:
    ours = {key: value for key, value in os.environ.items() if key.startswith("LIT_CONSISTENCY_")}
    return {
        "args": list(args),
        "package": fingerprints.package_sources(),
        "distributions": _distributions(),
        "libraries": [_state(name) for name in LIBRARIES],
        "python": sys.version,
        "width": shutil.get_terminal_size().columns,
        "terminal": sys.stdout.isatty(),
        "variables": {key: value for key, value in ours.items() if key != PARENT},  # it stands for no option
    }


def _distributions() -> list[str]:
    """Folders of metadata on the path, whose names have the versions."""
    names: set[str] = set()
    for folder in sys.path:
        with suppress(OSError):
            names |= {name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info"))}
    return sorted(names)


def _state(name: str) -> tuple[str, int, int] | None:
    """Where a library is, and when its main file was written; it is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None
    stat = os.stat(spec.origin)
    return spec.origin, stat.st_size, stat.st_mtime_ns
