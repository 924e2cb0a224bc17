"""The prompt style that a base brings with it, for rows of which nobody has said how they are written.

One place for ``fit`` and its siblings, ``data`` and ``init``. Files are read, no tokenizer is loaded.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from litgpt.prompts import Default, prompt_styles

from lit_consistency.model.tokenizer_files import chat_template_text

STYLE_FILE = "prompt_style.yaml"
"""In which LitGPT keeps the style by which a model is prompted."""


def style_of_base(folder: Path | None) -> tuple[str, str]:
    """A prompt style, and why: the tokenizer's chat template, else what ``prompt_style.yaml`` names, else ``default``.

    Args:
        folder: Of the model, or of its tokenizer; None: there is no base.
    """
    if folder is None:
        return "default", "prompt and answer as they stand: there is no base"
    # offsets of characters, which the mask of a template needs, are only known to tokenizer.json
    if chat_template_text(folder) is not None and (folder / "tokenizer.json").is_file():
        return "chat_template", "the tokenizer's own"
    if (folder / STYLE_FILE).is_file():
        # compared as a text: what a file names is not imported
        content = yaml.safe_load((folder / STYLE_FILE).read_text(encoding="utf-8"))
        named = content.get("class_path") if isinstance(content, dict) else None
        own = {f"{kind.__module__}.{kind.__name__}": name for name, kind in prompt_styles.items() if kind != Default}
        if named in own:
            return own[named], f"the base is prompted so, by its {STYLE_FILE}"
    return "default", "prompt and answer as they stand: the base has no chat template"


def taken_style(of_rows: str | None, folder: Path | None) -> tuple[str, str]:
    """The style of rows that are written in one, else the base's; and why.

    Args:
        of_rows: ``Rows.prompt_style``.
        folder: As of ``style_of_base``.
    """
    if of_rows is not None:
        return of_rows, "the rows are written as their task asks them"
    return style_of_base(folder)
