"""Where two nested mappings differ, key by key: configurations, fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> what it was and what it is, for every key that differs."""
    old, new = flatten(before), flatten(now)
    return {
        key: f"{key}: {old.get(key, 'absent')!r} in the checkpoint, {new.get(key, 'absent')!r} now"
        for key in sorted({*old, *new})
        if old.get(key, "absent") != new.get(key, "absent")
    }


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    if isinstance(value, Mapping) and value:
        branches = (flatten(entry, f"{prefix}.{key}" if prefix else str(key)) for key, entry in value.items())
        return {key: leaf for branch in branches for key, leaf in branch.items()}
    return {prefix: value}
