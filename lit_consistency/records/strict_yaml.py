"""YAML that people write: a key that stands twice in a mapping is a mistake, of which yaml keeps the last."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    """Plain values only, every key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; ValueError names a key that stands twice, and where."""
        lines: dict[str, int] = {}
        for key, _ in node.value:  # before a merge key (<<) brings those of another mapping
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and lines.setdefault(key.value, line) != line:
                raise ValueError(f"{key.value} stands twice, in lines {lines[key.value]} and {line}; expected it once")
        return super().construct_mapping(node, deep)


def read_strict_yaml(path: Path) -> Any:
    """What a file of YAML holds.

    Args:
        path: of the file, in UTF-8.

    Raises:
        ValueError: it is no YAML, or a key stands twice in a mapping; names file, key and lines.
    """
    try:
        return deepcopy(_parsed(Path(path).read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """A file of several tasks is read for each of them, and parsing YAML takes longer than all else about it."""
    return yaml.load(text, Loader=_Strict)
