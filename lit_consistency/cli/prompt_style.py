"""``data.init_args.prompt_style: null`` in a parsed call: what the base has stands in the configuration from here on.

A run's ``config.yaml``, the comparison on a resume and the identity of a study's cell see the style itself, so a cell
or a checkpoint from before there was null, in which ``default`` stands, is the same as long as ``default`` is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object

from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.tokens.base_style import taken_style
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.records.model_folder import VOCABULARIES
from lit_consistency.records.shipped import shipped
from lit_consistency.tasks.training_rows import TaskRows


def settle_prompt_style(section: Namespace) -> tuple[str, str] | None:
    """Write the style that is taken into the options of a command, in place of null.

    Args:
        section: The options of ``fit``, ``validate``, ``test`` or ``predict``; changed in place.

    Returns:
        The style, and why; None where one is given, where the data have none, or where the base's folder holds no
        tokenizer, of which the model speaks.
    """
    data = section["data"]
    if data is None or not issubclass(import_object(data["class_path"]), SFTData):
        return None
    given = data["init_args"]
    if given.get("prompt_style", "unknown to a class of the user's own") is not None:
        return None
    folder = given.get("tokenizer_dir") or section["model"]["checkpoint_dir"]
    if folder is not None:
        folder = shipped(folder) if given.get("tokenizer_dir") else base_folder(Path(folder))
        if not any((folder / name).is_file() for name in VOCABULARIES):
            return None
    styles = set(_styles(given["rows"])) if given.get("rows") else {None}
    style, why = taken_style(styles.pop() if len(styles) == 1 else None, folder)
    given["prompt_style"] = style
    return style, why


def _styles(rows: Any) -> Iterator[str | None]:
    """``Rows.prompt_style`` of the rows that a configuration names; of a mixture that of every set."""
    kind, options = import_object(rows["class_path"]), rows.get("init_args", Namespace())
    if "sets" in options:
        for one in options["sets"].values():
            yield from _styles(one)
    elif issubclass(kind, TaskRows):
        yield kind(**options.as_dict()).prompt_style  # reads the task's file alone
    else:
        yield kind.prompt_style
