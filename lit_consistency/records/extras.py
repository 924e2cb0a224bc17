"""Packages that only some options need."""

from __future__ import annotations

from importlib.util import find_spec


def require(module: str, used_by: str, extra: str = "hf") -> None:
    """ValueError that names the extra to install when an optional package is absent."""
    if find_spec(module) is None:
        raise ValueError(f"{used_by} needs the package {module}; install it by: pip install 'lit_consistency[{extra}]'")
