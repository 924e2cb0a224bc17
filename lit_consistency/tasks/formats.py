"""Formats: how a question's fields are arranged into a prompt. Data, not code: prompt_formats/*.yaml, or a user's file.

A format knows no task, and a task no format, so that the same rows can be asked in several ways: how much a score
depends on that is itself a result (Sun & Dredze, arXiv 2408.06663). White space between question and answer belongs
to the answer, as the tokens of most vocabularies start with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from lit_consistency.data.tokens.chat_template import ChatTemplate
from lit_consistency.records.strict_yaml import read_strict_yaml
from lit_consistency.tasks.question import Question
from lit_consistency.tasks.templates import check_template, render

FOLDER = Path(__file__).parent / "prompt_formats"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


class Headed(Protocol):
    """What a format reads of a task."""

    @property
    def answer_heading(self) -> str:
        """What stands before the answer."""

    @property
    def delimiter(self) -> str:
        """White space before the answer."""


@dataclass(frozen=True)
class Format:
    """An arrangement of fields.

    Args:
        name: the file's name.
        field: template of a field, of ``heading`` and ``value``; a field with an empty heading is its value.
        between_fields: text between two fields.
        answer: template of what asks for the answer, of ``heading``; empty: nothing does.
        between_examples: text between a few-shot example and what follows.
        delimiter: white space before the answer; None takes the task's.
        instruction: whether the prompt opens with the task's instruction; a task without one is refused.
        chat: whether prompt and answers are turns of the tokenizer's chat template; an instruction opens the first.
    """

    name: str
    field: str
    between_fields: str
    answer: str
    between_examples: str
    delimiter: str | None = None
    instruction: bool = False
    chat: bool = False

    def question(self, task: Headed, row: Question, context: str | None = None) -> str:
        """The question alone, up to where the answer begins; ``context`` takes the place of the fields."""
        if context is not None:
            return context
        parts = [
            render(self.field, {"heading": heading, "value": value}, row.place) if heading else value
            for heading, value in row.fields
        ]
        if task.answer_heading and self.answer:
            parts.append(render(self.answer, {"heading": task.answer_heading}, row.place))
        return self.between_fields.join(parts)

    def answer_text(self, task: Headed, text: str) -> str:
        """An answer with the white space before it; one that continues its question keeps the task's own."""
        delimiter = task.delimiter if self.delimiter is None or not task.answer_heading else self.delimiter
        return ("" if self.chat else delimiter) + text

    def prompt(
        self,
        task: Headed,
        row: Question,
        shots: Sequence[Question],
        chat: ChatTemplate | None = None,
        context: str | None = None,
    ) -> str:
        """Instruction, examples and question.

        Raises:
            ValueError: the chat template refuses the turns; names the row.
        """
        if not self.chat:
            opening = [row.instruction] if self.instruction and row.instruction else []
            question = self.question(task, row, context)
            texts = [*opening, *(q + a for q, a in self._examples(task, shots)), question]
            return self.between_examples.join(texts)
        assert chat is not None
        try:
            return chat.render(self.messages(task, row, shots, context), add_generation_prompt=True)
        except ValueError as error:
            raise ValueError(f"{row.place}: format = {self.name!r}: {error}") from None

    def messages(
        self, task: Headed, row: Question, shots: Sequence[Question] = (), context: str | None = None
    ) -> list[dict[str, str]]:
        """The turns of a chat, up to the last question; the instruction opens the first."""
        examples = self._examples(task, shots)
        turns = [(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
        turns.append(("user", self.question(task, row, context)))
        messages = [{"role": role, "content": text} for role, text in turns]
        if row.instruction:
            messages[0]["content"] = f"{row.instruction}{self.between_examples}{messages[0]['content']}"
        return messages

    def _examples(self, task: Headed, shots: Sequence[Question]) -> list[tuple[str, str]]:
        """Questions of the examples with their answers."""
        return [(self.question(task, s, right_context(s)), self.answer_text(task, s.answer)) for s in shots]


def right_context(row: Question) -> str | None:
    """Of a partial evaluation the context of the right candidate, else None."""
    return row.contexts[row.gold] if row.contexts else None


def load_format(name: str) -> Format:
    """A format by its name, or from a YAML file.

    Raises:
        ValueError: there is no such format, or its file has a bad key; names what is allowed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"format = {name!r}: expected one of {', '.join(NAMES)}, or a YAML file")
    content: Any = read_strict_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}; expected a mapping of keys")
    known = {entry.name: entry.type for entry in fields(Format) if entry.name != "name"}
    for key, value in content.items():
        if key not in known:
            raise ValueError(f"{path}: {key}: no such key; expected one of {', '.join(known)}")
        if not isinstance(value, bool if known[key] == "bool" else str):
            raise ValueError(f"{path}: {key} = {value!r}: expected {known[key]}")
    for key in ("field", "answer"):
        check_template(f"{path}: {key}", content.get(key, ""))
    missing = [key for key in ("field", "between_fields", "answer", "between_examples") if key not in content]
    if missing:
        raise ValueError(f"{path}: no key {missing[0]!r}; a format needs it")
    return Format(name=path.stem, **content)
