"""A task: what is asked, from which rows, and by which number it is judged; one small YAML file.

Four kinds. ``text``: log-likelihood of documents. ``choice``: the likeliest of given answers (a single candidate makes
a cloze: is it the model's first choice?). ``pairs``: of two sentences, the right one must be likelier.
``generation``: the model writes, and the text is compared with references. A task names its fields; how they are
arranged is a format's business (formats.py). Every key is checked when the file is read, before any model is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.metrics import NumberRule
from lit_consistency.tasks.templates import check_template

METRICS: dict[str, tuple[str, ...]] = {
    "text": ("bits_per_byte", "nats_per_token", "word_perplexity"),
    "choice": ("accuracy", "accuracy_per_byte", "balanced_accuracy", "exact", "nats_per_token"),
    "pairs": ("accuracy", "accuracy_per_byte"),
    "generation": ("exact_match", "rouge_l", "pass@K", "maj@K"),
}
"""Per kind; the first number of a task's `metrics` judges it. K is a number of samples."""
DEFAULT_METRICS = {**METRICS, "choice": ("accuracy", "accuracy_per_byte", "balanced_accuracy"), "generation": ()}
LOWER_IS_BETTER = METRICS["text"]
KINDS = tuple(METRICS)
OF_KIND = {
    "contexts": ("choice",),
    "choices": ("choice", "pairs"),
    "gold": ("choice",),
    "gold_values": ("choice",),
    "distractors": ("choice",),
    "shuffle": ("choice",),
    "text": ("text",),
    "references": ("generation",),
    "demonstration": ("generation",),
    "generation": ("generation",),
    "extraction": ("generation",),
    "numbers": ("generation",),
    "program": ("generation",),
}
"""Keys that only some kinds read."""
SINGLE_TEMPLATES = ("instruction", "gold", "text", "references", "demonstration", "program", "group", "id")
EXTRACTIONS = ("none", "gsm8k", "last_number", "first_line")


@dataclass(frozen=True)
class TaskData:
    """Where rows come from: files, or a split of a data set of the hub (extra ``hf``).

    Args:
        path: file, folder, glob pattern or zip: .jsonl, .json (a list, or an object with ``records``), .csv, .txt,
            .parquet, and .gz of the text formats.
        member: which files of a zip or folder count, as ``data/test/*.csv``.
        records: name of the list of rows in a .json object; the object's other fields belong to every row.
        columns: names of the columns of a .csv without a header.
        separator: text between two documents of a .txt; None: a file is a document.
        hub: name on the Hugging Face hub, in place of ``path``.
        config: configuration of the hub's data set.
        data_dir: folder of its repository; in the branch ``refs/convert/parquet``, which data sets that were once a
            script need, it names a configuration.
        split: its split.
        revision: its commit, tag or branch; None takes the newest.
    """

    path: str | None = None
    member: str | None = None
    records: str | None = None
    columns: tuple[str, ...] = ()
    separator: str | None = None
    hub: str | None = None
    config: str | None = None
    data_dir: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"path = {self.path}, hub = {self.hub}: expected exactly one of the two")
        if (self.split is None) != (self.hub is None):
            raise ValueError(
                f"split = {self.split}, hub = {self.hub}: expected a split with a name on the hub, else none"
            )


@dataclass(frozen=True)
class Task:
    r"""What is asked and how it is judged. Texts with ``{field}`` are templates of a row, see templates.py.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``; the file's name when not given.
        kind: ``text``, ``choice``, ``pairs`` or ``generation``.
        metrics: see ``METRICS``; the first one judges the task.
        data: the rows that are scored.
        few_shot: the training split: rows that examples are taken from, and that are never scored.
        shots_from_group: examples are of the question's own group (the subject of MMLU).
        extract: field -> regular expression, whose named groups become further fields of the row.
        requires: fields; a row where one of them is null or empty is no row of this task.
        fields: heading -> template: the parts of the question, in order. An empty heading is written in no format.
        instruction: a sentence that says what is to be done, for formats that give one.
        answer_heading: what stands before the answer; empty: the answer continues the last field.
        delimiter: white space between the question, or its answer heading, and the answer.
        choices: the answers: a template that is a list, or a list of templates; for pairs the right one first.
        contexts: in place of fields, one context per candidate (partial evaluation); ``choices`` is then the single
            text that is scored behind each of them.
        gold: template of the right answer: an index, or one of ``gold_values``, or the text of a choice.
        gold_values: what ``gold`` is for each choice, in their order: a list, or a template that is one.
        distractors: this many wrong choices are drawn from the golds of other rows (a cloze from a table of facts).
        shuffle: the order of the choices is drawn, by the row alone; for data whose right answer always comes first.
        text: template of the document.
        references: template of the accepted answer or answers; with ``program``, of the tests.
        demonstration: template of the answer in a few-shot example; the first reference when not given.
        generation: how the model is asked to write.
        extraction: of the answer from the text: one of ``EXTRACTIONS`` or a regular expression with one group.
        numbers: ``value`` (51 is 51.0, $29.00 is 29), or ``string``, as lm-evaluation-harness compares numbers.
        program: template of what stands before the answer in a program, which is run with the references as tests;
            needs ``--allow_code_execution``. Metrics are then pass@K, or exact_match for the share that passes.
        group: template of the phenomenon, subject or other part that is reported by itself.
        id: template of the row's id; the place in its file when not given.
    """

    name: str
    kind: str
    metrics: tuple[str, ...]
    data: TaskData
    few_shot: TaskData | None = None
    shots_from_group: bool = False
    extract: dict[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    instruction: str = ""
    answer_heading: str = "Answer"
    delimiter: str = " "
    choices: str | tuple[str, ...] = ()
    contexts: str | tuple[str, ...] = ()
    gold: str | None = None
    gold_values: str | tuple[Any, ...] = ()
    distractors: int = 0
    shuffle: bool = False
    text: str | None = None
    references: str | None = None
    demonstration: str | None = None
    generation: GenerationOptions = GenerationOptions()
    extraction: str = "none"
    numbers: NumberRule = "value"
    program: str | None = None
    group: str | None = None
    id: str | None = None

    @property
    def metric(self) -> str:
        """The number by which the task is judged."""
        return self.metrics[0]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name = {self.name!r}: expected letters, digits, '_', '-' and '.' only")
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r}: expected one of {', '.join(KINDS)}")
        for entry in fields(self):
            kinds = OF_KIND.get(entry.name, KINDS)
            if self.kind not in kinds and getattr(self, entry.name) != entry.default:
                raise ValueError(
                    f"{entry.name}: only tasks of kind {' or '.join(kinds)} have it, this one is {self.kind}"
                )
        self._check_metrics()
        self._check_kind()
        self._check_templates()

    def _check_metrics(self) -> None:
        allowed = METRICS[self.kind]
        if not self.metrics:
            raise ValueError(f"metrics: expected at least one of {', '.join(allowed)}")
        for metric in self.metrics:
            name, _, k = metric.partition("@")
            if (f"{name}@K" if k else name) not in allowed:
                raise ValueError(f"metrics: {metric!r}: expected one of {', '.join(allowed)}")
            if k and not (k.isdecimal() and 1 <= int(k) <= self.generation.n_samples):
                raise ValueError(f"metrics: {metric!r}: expected K from 1 to n_samples = {self.generation.n_samples}")

    def _check_kind(self) -> None:
        needs = {"text": "text", "choice": "choices", "pairs": "choices", "generation": "references"}[self.kind]
        if self.distractors:
            needs = "gold"
        if not getattr(self, needs):
            raise ValueError(f"{needs}: expected a template, a task of kind {self.kind} needs it")
        if self.kind == "pairs" and len(self.choices) != 2:
            raise ValueError(f"choices: {len(self.choices)} of them; expected a pair, the right one first")
        if self.kind == "choice":
            self._check_choice()
        if self.shots_from_group and not self.group:
            raise ValueError("shots_from_group: expected a template in the key group")
        if self.kind == "generation":
            self._check_generation()

    def _check_generation(self) -> None:
        if not self.fields:
            raise ValueError("fields: expected at least one")
        for key in ("max_new_tokens", "n_samples"):
            if getattr(self.generation, key) < 1:
                raise ValueError(f"generation.{key} = {getattr(self.generation, key)}: expected at least 1")
        if self.program and not all(metric.startswith(("pass@", "exact_match")) for metric in self.metrics):
            raise ValueError(f"metrics = {list(self.metrics)}: of programs, expected pass@K or exact_match")
        if self.generation.n_samples > 1 and self.generation.temperature <= 0:
            raise ValueError("generation.n_samples: greedy samples are all the same; expected temperature above 0")

    def _check_choice(self) -> None:
        if self.gold is None and (len(self.choices) != 1 or self.contexts):
            raise ValueError("gold: expected a template, only a single choice needs none")
        if self.contexts and (isinstance(self.choices, str) or len(self.choices) != 1):
            raise ValueError("choices: expected a list of one template, contexts are the candidates")
        if not self.gold and set(self.metrics) - {"exact", "nats_per_token"}:
            raise ValueError(f"metrics = {list(self.metrics)}: of a single choice, expected exact or nats_per_token")
        if bool(self.fields) == bool(self.contexts):
            raise ValueError("fields, contexts: expected exactly one of the two")

    def _check_templates(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("choices", "contexts"):
                for template in [value] if isinstance(value, str) else value:
                    check_template(entry.name, template)
            elif entry.name in SINGLE_TEMPLATES and value is not None:
                check_template(entry.name, value)
        for heading, template in self.fields.items():
            check_template(f"fields.{heading}", template)
        patterns = {f"extract.{name}": pattern for name, pattern in self.extract.items()}
        if self.extraction not in EXTRACTIONS:
            patterns["extraction"] = self.extraction
        for key, pattern in patterns.items():
            check_pattern(key, pattern)


def check_pattern(key: str, pattern: str) -> None:
    """ValueError that names the key unless the pattern is a regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{key} = {pattern!r}: no regular expression ({error})") from None
    if key == "extraction" and groups != 1:
        raise ValueError(f"{key} = {pattern!r}: expected one of {', '.join(EXTRACTIONS)}, or a pattern with one group")
    if not groups:
        raise ValueError(f"{key} = {pattern!r}: expected a group in parentheses")
