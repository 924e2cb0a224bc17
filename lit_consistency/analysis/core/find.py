"""Which analyses there are: every file beside ``core/`` and ``linalg/`` is one, found without being imported."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract
from pathlib import Path

from lit_consistency.analysis.core.analysis import Analysis

FOLDER = Path(__file__).resolve().parent.parent


def names() -> list[str]:
    """Names of all analyses, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def find(name: str) -> type[Analysis]:
    """The class of an analysis.

    Raises:
        ValueError: there is none of this name; names those that are close, or all.
    """
    if name not in names():
        close = get_close_matches(name, names()) or names()
        raise ValueError(f"what: {name!r}: expected one of {', '.join(close)}")
    module = import_module(f"lit_consistency.analysis.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Analysis) and value.__module__ == module.__name__
    ]
    (found,) = [value for value in classes if not isabstract(value)]
    return found
