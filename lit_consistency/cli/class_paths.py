"""A ``class_path`` names a class of the kind that its key takes; a function is refused before it is called.

Configurations are passed around, and jsonargparse calls whatever is callable: ``model.optimizer.class_path: os.system``
with ``init_args: {command: ...}`` runs the command, as do a function for a callback, any class in an option without a
type, and the name of a function as a value. Here every name of a configuration is looked up and compared with the kind
first. What it gives up: factories, functions as values (``ddp_comm_hook``), and classes of other kinds in options
without a type. Naming a class imports its module, as everywhere in Python; a module that is installed, or lies in the
working folder, may run code when it is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from jsonargparse import Namespace
from jsonargparse._typehints import (
    ActionTypeHint,
    callable_origin_types,
    get_callable_return_type,
    get_subclass_types,
    is_instance_factory_protocol,
    is_subclass_or_implements_protocol,
    is_subclass_spec,
    resolve_class_path_by_name,
)
from jsonargparse._util import NestedArg, import_object

REFUSED = "refused: "
"""Before an error of ours: the parser shows what follows instead of jsonargparse's account of all that it tried."""


def check_class_path(value: Any, hint: Any, builds_all: bool) -> None:
    """See that a value names a class of the kind that the annotation asks for.

    Args:
        value: as it stands in the configuration: a path or name, a mapping with ``class_path``, or anything else.
        hint: the annotation of the option.
        builds_all: whether the command builds every class of its configuration, also where an option has no type. Other
            commands hold options of ``fit`` there, as a study does, and leave the kinds of the classes to it.

    Raises:
        ValueError: it names something else. What cannot be imported is left to jsonargparse, whose error says why.
    """
    if hint is Any:
        for nested in _nested_paths(value):
            _check_untyped(nested, builds_all)
        return
    is_factory = (get_origin(hint) or hint) in callable_origin_types or is_instance_factory_protocol(hint)
    kind = get_callable_return_type(hint) if is_factory else hint
    path = _given_path(value)
    if path is None or not (is_factory or ActionTypeHint.is_subclass_typehint(kind, all_subtypes=False)):
        return
    kinds = get_subclass_types(kind) if kind is not None else None
    if not kinds:
        raise ValueError(f"{REFUSED}{path}: expected it unset; a configuration names classes, and this takes functions")
    named = _imported(path, kind)
    if named is not None and not (
        inspect.isclass(named) and any(is_subclass_or_implements_protocol(named, one) for one in kinds)
    ):
        expected = " or ".join(f"{one.__module__}.{one.__qualname__}" for one in kinds)
        raise ValueError(f"{REFUSED}class_path = {path}: expected a subclass of {expected}, this is {_what(named)}")


def _check_untyped(path: str, builds_all: bool) -> None:
    """Of an option without a type: worlds alone, which the keys of an inline task hold, are built."""
    named = _imported(path)
    if named is None:
        return
    if not inspect.isclass(named):
        raise ValueError(f"{REFUSED}class_path = {path}: expected a class, this is {_what(named)}")
    if builds_all:
        from lit_consistency.data.worlds import World  # torch, which the other commands' parsers do not wait for

        if not issubclass(named, World):
            raise ValueError(
                f"{REFUSED}class_path = {path}: expected another value; of options without a type, an "
                "inline task's world alone is built"
            )


def _given_path(value: Any) -> str | None:
    """What names the class: the text itself, or ``class_path`` of a mapping or of the command line."""
    if isinstance(value, NestedArg):
        return value.val if value.key == "class_path" and isinstance(value.val, str) else None
    if isinstance(value, Mapping | Namespace):
        value = value.get("class_path")
    return value if isinstance(value, str) else None


def _nested_paths(value: Any) -> Iterator[str]:
    """Every ``class_path`` at any depth of a value that jsonargparse would take for a class."""
    if isinstance(value, Namespace | Mapping):
        content = vars(value) if isinstance(value, Namespace) else value
        if is_subclass_spec(value) and isinstance(content["class_path"], str):
            yield content["class_path"]
        value = list(content.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _nested_paths(entry)


def _imported(path: str, kind: Any = None) -> Any:
    """What a path, or the name of a subclass of the kind, leads to; None where it leads nowhere."""
    try:
        return import_object(resolve_class_path_by_name(kind, path) if kind else path)
    except Exception:  # a module may raise anything when it is imported
        return None


def _what(named: Any) -> str:
    return f"the class {named.__qualname__}" if inspect.isclass(named) else f"a {type(named).__name__}"
