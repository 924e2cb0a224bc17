"""The files of a tokenizer in a model folder: their names, whether a text begins with BOS, and how they are copied.

Whether BOS opens a text depends on the files alone. LitGPT looks at the folder's name first (``Llama-3*``,
``SmolLM2*Instruct``) and never at the post-processor, so a renamed model would be given other tokens. Where LitGPT
would not find the answer in the files, a copy states it as ``add_bos_token``. Given up: a model without BOS whose
folder the user names ``Llama-3*``; there LitGPT's own commands add BOS whatever the files say.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litgpt.utils import fix_and_load_json

from lit_consistency.records.model_folder import VOCABULARIES

TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)

# `add_bos_token` is true by default in these classes of transformers 4: models/llama, models/gemma, models/code_llama
CLASSES_WITH_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Contents of tokenizer_config.json; empty without the file."""
    return read_json(Path(folder) / "tokenizer_config.json", json.loads)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Contents of generation_config.json, of which some released ones are no valid JSON; empty without the file."""

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return fix_and_load_json(text)

    return read_json(Path(folder) / "generation_config.json", parse)


def chat_template_text(folder: Path) -> str | None:
    """The Jinja template: chat_template.jinja, or ``chat_template`` of the configuration (``default``, of several)."""
    file = Path(folder) / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def read_json(file: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """The object of a JSON file; empty without the file.

    Raises:
        ValueError: the file is damaged; it is named.
    """
    if not file.is_file():
        return {}
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged, expected JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: damaged, expected an object, found {type(content).__name__}")
    return content


def bos_text(folder: Path) -> str | None:
    """The text of the BOS token: ``bos_token`` of the configuration, else what the post-processor puts first."""
    named = read_tokenizer_config(folder).get("bos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return _first_special_token(folder) if named is None else named


def adds_bos(folder: Path) -> bool:
    """Whether the tokenizer in the folder puts BOS before a text.

    The first of these that says something decides: ``add_bos_token`` of tokenizer_config.json, the post-processor of
    tokenizer.json, the tokenizer's class. A tokenizer that knows no BOS adds none.
    """
    config, bos = read_tokenizer_config(folder), bos_text(folder)
    if isinstance(config.get("add_bos_token"), bool):
        has_bos = bos is not None or read_generation_config(folder).get("bos_token_id") is not None
        return config["add_bos_token"] and has_bos
    if bos is None:
        return False
    return (
        bos == _first_special_token(folder)
        or config.get("tokenizer_class", "").removesuffix("Fast") in CLASSES_WITH_BOS
    )


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy what LitGPT and transformers read of a tokenizer, and state in it whether a text begins with BOS.

    Raises:
        FileNotFoundError: ``source`` holds no vocabulary.
    """
    if not any((Path(source) / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"tokenizer_dir = {source}: missing {' or '.join(VOCABULARIES)}")
    for name in TOKENIZER_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(destination) / name)
    config, has_bos = read_tokenizer_config(source), adds_bos(source)
    if has_bos is not _litgpt_adds_bos(config):
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", **config, "add_bos_token": has_bos}
        if has_bos and config.get("bos_token") is None and (bos := bos_text(source)) is not None:
            stated["bos_token"] = bos
        (Path(destination) / "tokenizer_config.json").write_text(
            json.dumps(stated, indent=2, ensure_ascii=False), encoding="utf-8"
        )


def _litgpt_adds_bos(config: dict[str, Any]) -> bool:
    """``Tokenizer.check_if_bos_token_used`` of litgpt 0.5.13, litgpt/tokenizer.py, for a folder of any other name."""
    return bool(config.get("add_bos_token", config.get("tokenizer_class") == "LlamaTokenizer"))


def _first_special_token(folder: Path) -> str | None:
    """The special token that the post-processor of tokenizer.json puts before a text, or None."""
    post_processor = read_json(Path(folder) / "tokenizer.json").get("post_processor") or {}
    for processor in post_processor.get("processors", [post_processor]):
        if processor.get("type") == "TemplateProcessing":
            first = processor["single"][:1]
            return first[0]["SpecialToken"]["id"] if first and "SpecialToken" in first[0] else None
        if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
            return processor["cls"][0]
    return None
