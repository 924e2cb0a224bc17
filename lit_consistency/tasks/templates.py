"""Templates with the fields of a row in braces: ``{question}``, ``{choices.text.0}``; ``{{`` and ``}}`` are braces.

Not ``str.format``: it would reach attributes of Python objects, and a field's name may hold spaces here. Given up:
conditions and loops; data that needs them is reshaped by ``extract`` (see task.py) or beforehand.
"""

from __future__ import annotations

import re
from typing import Any

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def check_template(key: str, template: str) -> None:
    """ValueError that names the key where a brace stands alone or holds nothing."""
    for piece in PIECE.finditer(template):
        if piece[0] in ("{", "}"):
            raise ValueError(
                f"{key} = {template!r}: a lone {piece[0]!r}; expected fields as {{name}}, and {{{{ for a {{"
            )


def render(template: str, row: dict[str, Any], place: str) -> str:
    """The template with the row's values.

    Raises:
        ValueError: A field is absent, or is neither text, number nor truth value; names place, field and what there is.
    """

    def value(piece: re.Match[str]) -> str:
        return piece[0][0] if piece[1] is None else as_text(look_up(row, piece[1], place), piece[1], place)

    return PIECE.sub(value, template)


def take(template: str, row: dict[str, Any], place: str) -> Any:
    """The value itself where the template is a single field, as a list or a number; else the rendered text."""
    piece = PIECE.fullmatch(template)
    return look_up(row, piece[1], place) if piece and piece[1] else render(template, row, place)


def look_up(row: dict[str, Any], path: str, place: str) -> Any:
    """The value of a field; dots go into objects and, as numbers, into lists."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ValueError(f"{place}: no field {path!r}; it has {', '.join(map(repr, row)) or 'no fields'}")
    return value


def as_text(value: Any, name: str, place: str) -> str:
    """Text as it is, a number or truth value as written; ValueError for anything else."""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{place}: {name} is a {type(value).__name__}; expected text or a number")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: {name} holds half a character; expected text that UTF-8 can hold") from None
    return text
