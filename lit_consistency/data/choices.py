"""Questions with candidate answers: multiple choice, minimal pairs, and cloze questions from a table of facts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from litgpt.tokenizer import Tokenizer

from lit_consistency.data.watch import Candidate, Item, WatchedSet, check_choice, check_positive, not_empty


class ChoiceSet(WatchedSet):
    """Questions with given answers, read from JSONL, or minimal pairs (BLiMP) from JSONL files or a zip of them.

    A row is ``{prompt | query | question, choices, gold | answer | label}`` (gold is an index), or ``{sentence_good,
    sentence_bad}``. The least summed negative log-likelihood wins.

    Args:
        path: a JSONL file, a folder of them, or a zip of them.
        max_items: how many items are scored, spread evenly over the files.
        metric: ``accuracy``, or ``accuracy_per_byte`` for answers of very different lengths.
    """

    def __init__(self, path: Path, max_items: int = 500, metric: str = "accuracy") -> None:
        check_positive("max_items", max_items)
        check_choice("metric", metric, ("accuracy", "accuracy_per_byte"))
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"path = {path}: no such file or folder")
        self.max_items = max_items
        self.metric = metric

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """The first items of every file, in the files' order."""
        files = list(_jsonl_files(self.path))
        quota = -(-self.max_items // max(len(files), 1))
        found = []
        for name, text in files:
            for number, line in enumerate(text.splitlines()[:quota], start=1):
                prompt, choices, gold = _parse_choice(json.loads(line), f"{name}:{number}")
                found.append(choice_item(tokenizer, prompt, choices, gold, block_size))
        return not_empty(found[: self.max_items], str(self.path))


class ClozeSet(WatchedSet):
    """Facts asked by cloze: a template filled from a table, the right value against other values of the same column.

    Args:
        path: JSONL, one record a line.
        prompt: template with the record's fields in braces, e.g. ``The capital of {country} is``.
        answer: the field that is asked for, e.g. ``capital``; records where it is empty are left out.
        n_choices: candidates per question; the wrong ones are drawn from the column, by ``seed``.
        max_items: how many questions are asked.
        seed: of the draw of wrong answers.
    """

    metric = "accuracy"

    def __init__(
        self, path: Path, prompt: str, answer: str, n_choices: int = 4, max_items: int = 500, seed: int = 0
    ) -> None:
        check_positive("max_items", max_items)
        if n_choices < 2:
            raise ValueError(f"n_choices = {n_choices}: expected at least 2")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"path = {path}: no such file")
        self.prompt, self.answer = prompt, answer
        self.n_choices, self.max_items, self.seed = n_choices, max_items, seed

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """One question per record; the draw of wrong answers is a function of the seed alone."""
        records = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for field in (self.answer,):
            if field not in records[0]:
                raise ValueError(f"answer = {field!r}: {self.path} has the fields {sorted(records[0])}")
        records = [record for record in records if record[self.answer]]
        values = sorted({record[self.answer] for record in records})
        if len(values) < self.n_choices:
            raise ValueError(f"n_choices = {self.n_choices}: {self.path} has {len(values)} different {self.answer!r}")
        rng = np.random.default_rng(self.seed)
        found = []
        for record in records[: self.max_items]:
            wrong = [value for value in values if value != record[self.answer]]
            choices = [record[self.answer], *rng.choice(wrong, self.n_choices - 1, replace=False)]
            order = rng.permutation(self.n_choices)
            texts = [" " + choices[i] for i in order]
            gold = int(np.flatnonzero(order == 0)[0])
            found.append(choice_item(tokenizer, self.prompt.format(**record), texts, gold, block_size))
        return not_empty(found, str(self.path))


def choice_item(tokenizer: Tokenizer, prompt: str, choices: list[str], gold: int, block_size: int) -> Item:
    """An item from text. Prompt and answer are tokenized apart, so the boundary is exact; long ones lose their start.

    Without a prompt the first token of each candidate has no context and is not scored.
    """
    head = tokenizer.encode(prompt).numpy() if prompt else np.empty(0, dtype=np.int64)
    candidates = []
    for choice in choices:
        answer = tokenizer.encode(choice, bos=False).numpy()
        tokens = np.concatenate([head, answer]).astype(np.int64)
        supervised = np.arange(len(tokens)) >= max(len(head), 1)
        keep = slice(-(block_size + 1), None)
        candidates.append(Candidate(tokens[keep], supervised[keep], len(choice.encode())))
    return Item(candidates, gold)


def _jsonl_files(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every JSONL file at the path, sorted by name."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
                if name.endswith(".jsonl") and not hidden:
                    yield f"{path}!{name}", archive.read(name).decode()
        return
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        yield str(file), file.read_text(encoding="utf-8")


def _parse_choice(row: dict[str, Any], place: str) -> tuple[str, list[str], int]:
    if "sentence_good" in row and "sentence_bad" in row:
        return "", [row["sentence_good"], row["sentence_bad"]], 0
    prompt = next((row[key] for key in ("prompt", "query", "question") if key in row), None)
    gold = next((row[key] for key in ("gold", "answer", "label") if key in row), None)
    choices = row.get("choices")
    if prompt is None or not isinstance(choices, list) or len(choices) < 2 or not isinstance(gold, int):
        raise ValueError(
            f"{place}: expected prompt, choices (at least two) and gold (an index), or sentence_good and "
            f"sentence_bad; found the fields {sorted(row)}"
        )
    if not 0 <= gold < len(choices):
        raise ValueError(f"{place}: gold = {gold}: expected 0 to {len(choices) - 1}")
    return prompt, [choice if choice[:1].isspace() else " " + choice for choice in choices], gold
