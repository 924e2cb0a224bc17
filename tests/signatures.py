"""Signatures and docstrings are read once per process instead of once per parser: half of what a tiny run costs.

A command builds about ninety parsers, and for each jsonargparse reads source code and docstrings of a class anew. A
user's process does so once or twice, the tests some thousand times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
from jsonargparse import _signatures


def _source(owner: Any, name: str | None) -> Any:
    """The function whose parameters are asked for, which a test may have replaced."""
    return inspect.getattr_static(owner, name or "__init__", None) if inspect.isclass(owner) else owner


def _remembered(read: Callable[..., Any]) -> Callable[..., Any]:
    answers: dict[Any, Any] = {}

    def answer(owner: Any, name: str | None = None, logger: Any = True) -> Any:
        key = owner, name, _source(owner, name)
        if key not in answers:
            answers[key] = read(owner, name, logger=logger)
        known = answers[key]
        return [copy(parameter) for parameter in known] if isinstance(known, list) else known

    return answer


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jsonargparse answer from memory what it has read of a class or a function before."""
    for name in ("get_signature_parameters", "get_doc_short_description"):
        monkeypatch.setattr(_signatures, name, _remembered(getattr(_signatures, name)))
