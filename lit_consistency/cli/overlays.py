"""How configurations compose: left to right, a class with its own options, named things by their names.

- When a ``class_path`` changes, nothing of the old class's ``init_args`` stays; the same class keeps its values.
- A dictionary of named things (classes or dataclasses, as ``forgetting.retain`` or the parts of a replay) merges by
  name: what a later file says of a name changes only the keys that it gives, ``NAME: null`` removes the thing, and
  ``--KEY.NAME.OPTION`` reaches into one of them. Where the things are dataclasses, a string stands for the first
  field, and a list names each after the last part of that string: ``[biographies/old_people, blimp]``. An empty
  mapping or list, ``{}`` or ``[]``, removes all that stood there.
- A list, and a dictionary of plain values, is one value: the later one takes the place of the earlier.

jsonargparse (4.37 to 4.41) decides all this in two functions that call themselves through their module. They are
replaced for the parsers of this package and left as they are for all others.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, _common, _typehints, _util
from jsonargparse._typehints import ActionTypeHint

from lit_consistency.cli.class_paths import REFUSED, check_class_path
from lit_consistency.cli.moved import refuse_moved
from lit_consistency.records.shipped import beside

UNIONS = (Union, UnionType)
_read_from: ContextVar[tuple[Path, Path] | None] = ContextVar("configuration's and working directory", default=None)

_discard = _typehints.discard_init_args_on_class_path_change
_adapt = _typehints.adapt_typehints


NAMED_HELP = (
    "Several configurations merge by name: NAME: null (or --KEY.NAME null) removes one, --KEY.NAME.OPTION changes one, "
    "{} removes all."
)


class OverlayParser(ArgumentParser):
    """A parser whose configurations compose as this file says.

    Attributes:
        builds_all: whether all classes of the configuration are built, also those in options without a type.
    """

    builds_all = False

    def parse_path(self, cfg_path: Any, *args: Any, **options: Any) -> Namespace:
        """Parse a configuration; the paths in it that are not in the working directory are looked for beside it."""
        here = Path.cwd()
        token = _read_from.set((here.joinpath(cfg_path).resolve().parent, here))
        try:
            return super().parse_path(cfg_path, *args, **options)
        finally:
            _read_from.reset(token)

    def _apply_actions(self, cfg: Any, *args: Any, **options: Any) -> Namespace:
        """Take over what was read; jsonargparse has made the configuration's folder the working directory by now."""
        where = _read_from.get()
        if where is None:
            return super()._apply_actions(cfg, *args, **options)
        token = _read_from.set(None)  # the parsers of classes inside are given what was found
        try:
            return super()._apply_actions(beside(cfg, *where), *args, **options)
        finally:
            _read_from.reset(token)

    def format_help(self) -> str:
        """The help, which says of named things how one of them is changed and removed."""
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            named = _kind_of_things(_optional_class(hint) or hint)
            if named and NAMED_HELP not in (action.help or ""):
                action.help = f"{action.help or ''} {NAMED_HELP}"
        return super().format_help()

    def _dump_delete_default_entries(self, subcfg: dict[str, Any], subdefaults: dict[str, Any]) -> None:
        """Leave out what equals a default, for ``--print_config=skip_default``; a class that was chosen stays.

        jsonargparse 4.41 fails where the default is null, and leaves out a chosen class whose options are its defaults.
        """
        chosen = [key for key, value in subcfg.items() if key in subdefaults and _is_other(value, subdefaults[key])]
        for value in (subcfg[key] for key in chosen):
            with _common.parser_context(parent_parser=self):
                parser = ActionTypeHint.get_class_parser(value["class_path"])
            self._dump_delete_default_entries(value.get("init_args") or {}, parser.get_defaults().as_dict())
            if not value.get("init_args"):
                value.pop("init_args", None)
        super()._dump_delete_default_entries(subcfg, {k: v for k, v in subdefaults.items() if k not in chosen})


def _is_other(value: Any, default: Any) -> bool:
    """Whether a value names a class that is not the default's."""
    if not isinstance(value, dict) or "class_path" not in value:
        return False
    return not isinstance(default, dict) or default.get("class_path") != value["class_path"]


def _is_ours() -> bool:
    return isinstance(_common.parent_parser.get(), OverlayParser)


def _discard_all(parser_or_action: Any, before: Any, now: Any) -> None:
    """Empty the options of the old class where the class changes; jsonargparse keeps those that fit the new one."""
    if not _is_ours():
        _discard(parser_or_action, before, now)
    elif before and "class_path" in before and not same_class(before["class_path"], now["class_path"]):
        for key in ("init_args", "dict_kwargs"):
            if key in before:
                del before[key]


def same_class(one: str, other: str) -> bool:
    """Whether two paths lead to one class, as that of its module and that of its package.

    What is no path, as the name ``auto`` where a class may stand too, is no class.
    """
    if one == other or "." not in one or "." not in other:
        return one == other
    return _util.import_object(one) is _util.import_object(other)


def _adapt_by_name(value: Any, hint: Any, *args: Any, **options: Any) -> Any:
    """``adapt_typehints`` with named things that merge, lists that do not, and a word for classes that moved."""
    if not _is_ours() or options.get("serialize"):
        return _adapt(value, hint, *args, **options)
    origin, optional = get_origin(hint), _optional_class(hint)
    if optional is not None and value not in (None, "null"):
        return _adapt_by_name(value, optional, *args, **options)  # its error alone, without that of the other choice
    check_class_path(value, hint, getattr(_common.parent_parser.get(), "builds_all", False))
    if options.get("instantiate_classes"):
        return _adapt(value, hint, *args, **options)
    if moved := refuse_moved(value):
        raise ValueError(REFUSED + moved)
    if kind := _kind_of_things(hint):
        named = _by_name(value, kind)
        return _adapt(value, hint, *args, **options) if named is None else _merge(named, kind, options)
    if origin in _typehints.sequence_origin_types and isinstance(value, list) and not options.get("append"):
        options["prev_val"] = None  # else the elements of a list as long inherit from those of the earlier one
    if isinstance(value, _util.NestedArg) and value.val is None and origin not in (*UNIONS, dict):
        value = _util.NestedArg(value.key, "null")  # jsonargparse would write "None" and read it as a string
    return _adapt(value, hint, *args, **options)


def _merge(named: dict[str, Any], kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What stood before, changed by what is given now; an empty mapping or list takes all of it away."""
    if not named:
        return {}
    before = options.get("prev_val")
    merged = dict(before) if isinstance(before, dict) else {}
    for name, entry in named.items():
        if entry is not None:
            try:
                merged[name] = _adapt_thing(entry, kind, {**options, "prev_val": merged.get(name)})
            except (TypeError, ValueError, ArgumentError) as error:
                raise ValueError(f'Parser key "{name}":\n{error}') from error
        elif merged.pop(name, None) is None:
            there = f"one of {', '.join(merged)}" if merged else "another value, nothing of any name stands before it"
            raise ValueError(f"{REFUSED}{name} = null: expected {there}")
    return merged


def _adapt_thing(entry: Any, kind: Any, options: dict[str, Any]) -> Any:
    """One of the named things, complete: what stood there before and what is given now."""
    nested = isinstance(entry, _util.NestedArg)
    if not is_dataclass(kind):
        entry = _util.NestedArg(entry.key.removeprefix("init_args."), entry.val) if nested else entry
        return _adapt_by_name(entry, kind, **options)
    # options of its own: jsonargparse would leave what stood before in them, as defaults of all other things
    parser = ActionTypeHint.get_class_parser(kind, sub_add_kwargs={})
    if nested:
        text = "null" if entry.val is None else entry.val
        return parser.parse_args([f"--{entry.key}={text}"], namespace=options["prev_val"])
    if isinstance(entry, str):
        entry = {fields(kind)[0].name: entry}
    if not isinstance(entry, Mapping | Namespace):
        raise ValueError(f"{REFUSED}{entry!r}: expected a name or a mapping")
    return parser.parse_object(entry, cfg_base=options["prev_val"])


def _optional_class(hint: Any) -> Any:
    """The class, or dictionary of things, of which this is an optional one; None for any other type."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if get_origin(hint) in UNIONS else []
    if len(kinds) != 1 or len(get_args(hint)) != 2:
        return None
    return kinds[0] if _kind_of_things(kinds[0]) or _is_class(kinds[0]) else None


def _kind_of_things(hint: Any) -> Any:
    """The class, or union of classes, of the values of a dictionary of things; None for any other type."""
    arguments = get_args(hint)
    if get_origin(hint) is not dict or arguments[0] is not str:
        return None
    kinds = get_args(arguments[1]) if get_origin(arguments[1]) in UNIONS else arguments[1:]
    return arguments[1] if all(_is_class(kind) for kind in kinds) else None


def _is_class(kind: Any) -> bool:
    return is_dataclass(kind) or ActionTypeHint.is_subclass_typehint(kind)


def _by_name(value: Any, kind: Any) -> dict[str, Any] | None:
    """Name -> what is given for it; None where it is no value of named things, for jsonargparse to say so."""
    if isinstance(value, _util.NestedArg):
        name, _, rest = value.key.partition(".")
        return {name: _util.NestedArg(rest, value.val) if rest else value.val}
    if not (isinstance(value, list | str) and is_dataclass(kind)):
        return value if isinstance(value, dict) else None
    if isinstance(value, str):
        raise ValueError(f"{REFUSED}{value}: expected a list, as [{value}], or a mapping of names")
    first = fields(kind)[0].name
    named: dict[str, Any] = {}
    for entry in value:
        text = entry.get(first) if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise ValueError(f"{REFUSED}{entry!r} has no name: expected a mapping of names instead of a list")
        name = last_part(text)
        if name in named:
            raise ValueError(f"{REFUSED}{name} stands twice in a list: expected a mapping of different names")
        named[name] = entry
    return named


def last_part(text: str) -> str:
    """The last part of a name or a path: ``old_people`` of ``biographies/old_people``, ``my`` of ``tasks/my.yaml``."""
    return re.split(r"[/:]", re.sub(r"\.ya?ml$", "", text))[-1]


_typehints.discard_init_args_on_class_path_change = _discard_all
_typehints.adapt_typehints = _adapt_by_name  # type: ignore[assignment]
