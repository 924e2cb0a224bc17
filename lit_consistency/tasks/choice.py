"""Questions with candidate answers: multiple choice, minimal pairs, and cloze questions from a table of facts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from litgpt.tokenizer import Tokenizer

from lit_consistency.data.sources.files import read_json_lines, take_text
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.tasks.watched import WatchedSet, check_choice, check_positive, not_empty


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
        """The first items of every file, in the files' order.

        Raises:
            ValueError: A row is bad, or has nothing to score; names file and line.
        """
        files = _row_files(self.path)
        quota = -(-self.max_items // max(len(files), 1))
        found = []
        for rows in files:
            for place, row in islice(rows, quota):
                prompt, choices, gold = _parse_choice(row, place)
                found.append(choice_item(tokenizer, prompt, choices, gold, block_size, place))
        return not_empty(found[: self.max_items], str(self.path))


class _Fact(NamedTuple):
    """A record of a table, the value that is asked for, and where the record stands."""

    record: dict[str, Any]
    answer: str
    place: str


class ClozeSet(WatchedSet):
    """Facts asked by cloze: a template filled from a table, the right value against other values of the same column.

    Args:
        path: JSONL, one record a line.
        prompt: template with the record's fields in braces, e.g. ``The capital of {country} is``.
        answer: the field that is asked for, e.g. ``capital``; records where it is absent, null or
            empty are left out. A number is asked for as it is written.
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
        """One question per record; the draw of wrong answers is a function of the seed alone.

        Raises:
            ValueError: The file holds no record or too few answers, a record is bad, or it lacks a field of the
                template; names file and line.
        """
        facts = self._facts()
        values = sorted({fact.answer for fact in facts})
        if len(values) < self.n_choices:
            raise ValueError(f"n_choices = {self.n_choices}: {self.path} has {len(values)} different {self.answer!r}")
        rng = np.random.default_rng(self.seed)
        found = []
        for fact in facts[: self.max_items]:
            wrong = [value for value in values if value != fact.answer]
            choices = [fact.answer, *rng.choice(wrong, self.n_choices - 1, replace=False)]
            order = rng.permutation(self.n_choices)
            texts = [" " + choices[i] for i in order]
            gold = int(np.flatnonzero(order == 0)[0])
            found.append(choice_item(tokenizer, self._question(fact), texts, gold, block_size, fact.place))
        return found

    def _facts(self) -> list[_Fact]:
        """The records with an answer."""
        found = []
        fields: set[str] = set()
        for place, record in read_json_lines(self.path):
            _check_object(record, place)
            fields |= record.keys()
            value = record.get(self.answer)
            if isinstance(value, (list, dict)):
                raise ValueError(f"{place}: {self.answer} is a {type(value).__name__}; expected text or a number")
            if value is not None and value != "":
                found.append(_Fact(record, str(value), place))
        if not fields:
            raise ValueError(f"path = {self.path}: holds no record; expected one JSON object a line")
        if self.answer not in fields:
            raise ValueError(f"answer = {self.answer!r}: {self.path} has the fields {sorted(fields)}")
        return found

    def _question(self, fact: _Fact) -> str:
        try:
            return self.prompt.format(**fact.record)
        except KeyError as error:
            raise ValueError(
                f"{fact.place}: no field {error} for prompt = {self.prompt!r}; it has {sorted(fact.record)}"
            ) from None
        except (IndexError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{fact.place}: prompt = {self.prompt!r}: {error}; expected names of fields in braces"
            ) from None


def choice_item(
    tokenizer: Tokenizer, prompt: str, choices: list[str], gold: int, block_size: int, place: str = "a question"
) -> Item:
    """An item from text. Prompt and answer are tokenized apart, so the boundary is exact; long ones lose their start.

    Without a prompt the first token of each candidate has no context and is not scored.

    Raises:
        ValueError: Of a candidate, no token is left to score; names the place.
    """
    head = tokenizer.encode(prompt).numpy() if prompt else np.empty(0, dtype=np.int64)
    candidates = []
    for choice in choices:
        answer = tokenizer.encode(choice, bos=False).numpy()
        tokens = np.concatenate([head, answer]).astype(np.int64)
        supervised = np.arange(len(tokens)) >= max(len(head), 1)
        if not supervised.any():
            raise ValueError(
                f"{place}: nothing to score in the candidate {choice!r}: expected at least "
                + ("one token" if prompt else "two tokens, the first of a candidate without a prompt is not scored")
            )
        keep = slice(-(block_size + 1), None)
        candidates.append(Candidate(tokens[keep], supervised[keep], len(choice.encode())))
    return Item(candidates, gold)


def _row_files(path: Path) -> list[Iterator[tuple[str, Any]]]:
    """The rows of every JSONL file at the path as (`file:line`, value), the files sorted by name."""
    if not zipfile.is_zipfile(path):
        return [read_json_lines(file) for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    with zipfile.ZipFile(path) as archive:
        names = [
            name
            for name in sorted(archive.namelist())
            if name.endswith(".jsonl") and not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        ]
        return [_zipped_rows(archive.read(name), f"{path}!{name}") for name in names]


def _zipped_rows(content: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """As ``read_json_lines`` reads a file of its own."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 ({error.reason}); expected text in UTF-8") from None
    # not splitlines: JSON may hold U+2028 and U+0085 as they are
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}:{number}: not JSON ({error})") from None
        yield f"{name}:{number}", value


def _check_object(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a {type(row).__name__}; expected a JSON object")


def _parse_choice(row: Any, place: str) -> tuple[str, list[str], int]:
    _check_object(row, place)
    if "sentence_good" in row and "sentence_bad" in row:
        return "", [take_text(row, key, place) for key in ("sentence_good", "sentence_bad")], 0
    prompt = next((key for key in ("prompt", "query", "question") if key in row), None)
    gold = next((row[key] for key in ("gold", "answer", "label") if key in row), None)
    choices = row.get("choices")
    if prompt is None or not isinstance(choices, list) or len(choices) < 2 or type(gold) is not int:
        raise ValueError(
            f"{place}: expected prompt, choices (at least two) and gold (an index), or sentence_good and "
            f"sentence_bad; found the fields {sorted(row)}"
        )
    if not 0 <= gold < len(choices):
        raise ValueError(f"{place}: gold = {gold}: expected 0 to {len(choices) - 1}")
    for choice in choices:
        if not isinstance(choice, str):
            raise ValueError(f"{place}: choices holds a {type(choice).__name__}; expected texts")
    texts = [choice if choice[:1].isspace() else " " + choice for choice in choices]
    return take_text(row, prompt, place), texts, gold
