"""A task: what is asked, from which rows, and by which number it is judged; one small YAML file.

Four kinds, a class each. ``text`` (text.py): log-likelihood of documents. ``choice`` (choice.py): the likeliest of
given answers; ``pairs``, in the same file, of two sentences the right one. ``completion`` (completion.py): how likely
the right answer is, and whether it is the model's first choice. ``generation`` (generation.py): the model writes, and
the text is compared with references. A task names its fields; how they are arranged is a format's business
(formats.py). Every key is checked when the file is read, before any model is loaded.

The way of a row: rows.py reads its fields, ``Task.read`` makes a ``Question`` of them, ``Task.questions`` encodes it
for one model in one format (``EncodedQuestion``), ``Task.measure`` asks the model and returns ``Measured``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import nn

from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks.formats import Format
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.templates import check_template

Advance = Callable[[int], object]
"""Called with the number of questions that are done, for a progress bar."""


@dataclass(frozen=True)
class Asking:
    """How the rows of a task are asked of one model.

    Args:
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.
        form: how questions are arranged.
        shots: few-shot examples before each question; documents and minimal pairs have none.
        seed: of the draw of examples and, with a limit, of the rows.
        limit: how many questions are asked at most, drawn by the seed; of documents the first windows; 0: all.
    """

    tokenizer: Tokenizer
    block_size: int
    form: Format
    shots: int = 0
    seed: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Engine:
    """A model that is asked, and how it is fed.

    Args:
        model: a LitGPT model of this package, or a module around one, in evaluation mode.
        tokenizer: of the model.
        batch_tokens: budget of padded tokens in one forward, or of cached tokens where the model writes.
        device: where the model is.
        allow_code_execution: the user's word that generated programs may run on this machine.
        allow_unconfined_code: also where no walls can be built around them.
        advance: called with the number of questions that are done.
    """

    model: nn.Module
    tokenizer: Tokenizer
    batch_tokens: int
    device: torch.device
    allow_code_execution: bool = False
    allow_unconfined_code: bool = False
    advance: Advance = lambda n: None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    r"""What is asked and how it is judged. Texts with ``{field}`` are templates of a row, see templates.py.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``; the file's name when not given.
        data: the rows that are scored.
        metrics: names of the kind's ``METRICS``; the first one judges the task.
        extract: field -> regular expression, whose named groups become further fields of the row.
        requires: fields; a row where one of them is null or empty is no row of this task.
        group: template of the phenomenon, subject or other part that is reported by itself.
        cluster: template of what belongs together and is drawn together for intervals, as a person or a document; the
            group when not given.
        id: template of the row's id; the place in its file when not given.
    """

    kind: ClassVar[str]
    METRICS: ClassVar[tuple[str, ...]]
    DEFAULT_METRICS: ClassVar[tuple[str, ...]]
    TEMPLATES: ClassVar[tuple[str, ...]] = ("group", "cluster", "id")
    prompted: ClassVar[bool] = False
    """Whether formats and few-shot examples apply."""

    name: str
    data: TaskData
    metrics: tuple[str, ...] = ()
    extract: dict[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    group: str | None = None
    cluster: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name = {self.name!r}: expected letters, digits, '_', '-' and '.' only")
        if not self.metrics:
            object.__setattr__(self, "metrics", self.DEFAULT_METRICS)
        if not self.metrics:
            raise ValueError(f"metrics: expected at least one of {', '.join(self.METRICS)}")
        for metric in self.metrics:
            self._check_metric(metric)
        self._check()
        for key in self.TEMPLATES:
            value = getattr(self, key)
            for template in value if isinstance(value, tuple) else [value]:
                if isinstance(template, str):
                    check_template(key, template)
        for name, pattern in self.extract.items():
            check_pattern(f"extract.{name}", pattern)

    def _check_metric(self, metric: str) -> None:
        if metric not in self.METRICS:
            raise ValueError(f"metrics: {metric!r}: expected one of {', '.join(self.METRICS)}")

    @abstractmethod
    def _check(self) -> None:
        """ValueError, naming the key, where the keys do not fit each other."""

    def _needs(self, key: str) -> None:
        if not getattr(self, key):
            raise ValueError(f"{key}: expected a template, a task of kind {self.kind} needs it")

    @property
    def runs_code(self) -> bool:
        """Whether asking it runs programs that the model writes, which needs the user's word."""
        return False

    @property
    def metric(self) -> str:
        """The number by which the task is judged."""
        return self.metrics[0]

    def conversations(self, data: TaskData) -> Rows | None:
        """The rows of the data where they are conversations, which no template reads."""
        return data.rows

    def is_labelled(self, row: TaskRow) -> bool:
        """Whether the row says what is right; of most kinds every row does."""
        return True

    @abstractmethod
    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """What the rows ask.

        Raises:
            ValueError: a row lacks a field, or what it says does not fit; names file and row.
        """

    def check_asked(self, form: Format, shots: int) -> None:
        """ValueError where the task cannot be asked in this format, or with so many examples."""
        if shots:
            raise ValueError(f"shots = {shots}: task {self.name} is of kind {self.kind}; expected 0")

    @abstractmethod
    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """The questions for one model, in the order of the rows.

        Args:
            rows: of the task.
            asking: how they are asked; documents and minimal pairs have no prompt, and ignore the format.

        Raises:
            ValueError: the format, or the number of examples, does not fit the task; nothing is left to score.
        """

    @abstractmethod
    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Ask a model all questions. On several ranks every rank asks, and all have the same numbers in the end.

        Args:
            encoded: the questions.
            engine: the model, in evaluation mode, and how it is fed.

        Raises:
            ValueError: the task runs programs, and they may not run.
        """


@dataclass(frozen=True)
class ReadTask:
    """A task with its rows, read once for all formats and numbers of examples.

    Args:
        task: the task.
        scored: the labelled rows of its data.
        training: those of its training split; None where no examples are wanted or there is none.
        n_unlabelled: rows without a label, which are left out.
    """

    task: Task
    scored: list[Question]
    training: list[Question] | None = None
    n_unlabelled: int = 0


@dataclass(frozen=True)
class EncodedTask:
    """The questions of a task in one format, with so many few-shot examples.

    Args:
        task: the task.
        format: name of the format, ``none`` for texts and pairs.
        shots: few-shot examples before each question.
        questions: encoded for one model.
        rows: of each question the row it was made of.
        given_away: rows that a few-shot example gave away, and that are therefore not asked.
        end_tokens: what ends a turn in the format, and a text that is written.
    """

    task: Task
    format: str
    shots: int
    questions: list[EncodedQuestion]
    rows: list[Question] = field(default_factory=list)
    given_away: list[Question] = field(default_factory=list)
    end_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptedTask(Task):
    """A task whose rows are questions, which a format arranges into a prompt.

    Args:
        few_shot: the training split: rows that examples are taken from, and that are never scored.
        shots_from_group: examples are of the question's own group (the subject of MMLU).
        fields: heading -> template: the parts of the question, in order. An empty heading is written in no format.
        instruction: a sentence that says what is to be done, for formats that give one.
        answer_heading: what stands before the answer; empty: the answer continues the last field.
        delimiter: white space between the question, or its answer heading, and the answer.
    """

    prompted: ClassVar[bool] = True
    TEMPLATES: ClassVar[tuple[str, ...]] = (*Task.TEMPLATES, "instruction")

    few_shot: TaskData | None = None
    shots_from_group: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    instruction: str = ""
    answer_heading: str = "Answer"
    delimiter: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots_from_group and not self.group:
            raise ValueError("shots_from_group: expected a template in the key group")
        for heading, template in self.fields.items():
            check_template(f"fields.{heading}", template)

    def check_asked(self, form: Format, shots: int) -> None:
        """ValueError where the task has nothing that the format needs, or no training split for examples."""
        if form.instruction and not self.instruction:
            raise ValueError(f"format = {form.name!r}: task {self.name} has no key `instruction`; it needs one")
        if shots and self.few_shot is None:
            raise ValueError(f"shots = {shots}: task {self.name} has no key `few_shot`; expected 0")


def check_pattern(key: str, pattern: str) -> None:
    """ValueError that names the key unless the pattern is a regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{key} = {pattern!r}: no regular expression ({error})") from None
    if not groups:
        raise ValueError(f"{key} = {pattern!r}: expected a group in parentheses")


def keys_of(task: Task) -> dict[str, Any]:
    """What the questions of a task depend on beside its data, as JSON.

    A field with ``metadata={"added": True}`` came later than results did: it counts only where it is set.
    """
    values = {entry: getattr(task, entry.name) for entry in fields(task) if entry.name not in ("data", "few_shot")}
    kept = {entry.name: value for entry, value in values.items() if value or not entry.metadata.get("added")}
    return {"kind": task.kind, **kept}
