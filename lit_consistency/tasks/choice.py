"""The likeliest of given answers must be the right one: multiple choice, and minimal pairs of sentences.

``accuracy`` compares summed log-likelihoods, ``accuracy_per_byte`` divides them by the UTF-8 bytes of the choice,
without the white space before it (lm-evaluation-harness's ``acc`` and ``acc_norm``, whose characters are bytes here).
Summed likelihoods favour short answers: a model that knows nothing takes the one with the fewest tokens, so the
accuracy of doing just that, ``shortest``, stands beside chance and majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lit_consistency.data.tokens.pairs import opening_token
from lit_consistency.inference.items import Item
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.stats.intervals import by_class, ratio
from lit_consistency.tasks.likelihoods import Likelihoods, likelihoods_measured, score_questions
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.prompts import Fitter, ask_in_format, candidate, encode
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow, limited
from lit_consistency.tasks.reading import headed_question, named_question, read_texts
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, PromptedTask, ReadTask, Task
from lit_consistency.tasks.templates import render, take

UNLABELLED = (None, -1, "", "-1", "-")


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(PromptedTask):
    """Multiple choice.

    Args:
        choices: the answers: a template that is a list, or a list of templates.
        contexts: in place of fields, one context per candidate (partial evaluation); ``choices`` is then the single
            text that is scored behind each of them.
        gold: template of the right answer: an index, or one of ``gold_values``, or the text of a choice.
        gold_values: what ``gold`` is for each choice, in their order: a list, or a template that is one.
        distractors: this many wrong choices are drawn from the golds of other rows (a cloze from a table of facts).
        shuffle: the order of the choices is drawn, by the row alone; for data whose right answer always comes first.
    """

    kind: ClassVar[str] = "choice"
    METRICS: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "accuracy_per_byte",
        "balanced_accuracy",
        "nats_per_token",
        "exact",
    )
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_per_byte", "balanced_accuracy")
    TEMPLATES: ClassVar[tuple[str, ...]] = (*PromptedTask.TEMPLATES, "choices", "contexts", "gold")

    choices: str | tuple[str, ...] = ()
    contexts: str | tuple[str, ...] = ()
    gold: str | None = None
    gold_values: str | tuple[Any, ...] = ()
    distractors: int = 0
    shuffle: bool = False

    def _check(self) -> None:
        if self.distractors < 0:
            raise ValueError(f"distractors = {self.distractors}: expected 0 (none are drawn) or more")
        if self.distractors and (idle := [key for key in ("choices", "contexts", "gold_values") if getattr(self, key)]):
            raise ValueError(
                f"distractors, {idle[0]}: expected one of the two; distractors are the golds of other rows"
            )
        if self.shuffle and self.contexts:
            raise ValueError("shuffle, contexts: expected one of the two; contexts are asked in their order")
        if not self.distractors:
            self._needs("choices")
        self._needs("gold")
        if self.contexts and (isinstance(self.choices, str) or len(self.choices) != 1):
            raise ValueError("choices: expected a list of one template, contexts are the candidates")
        if isinstance(self.choices, tuple) and len(self.choices) == 1 and not self.contexts:
            raise ValueError("choices: a single one; expected several, or kind: completion with the key completion")
        if bool(self.fields) == bool(self.contexts):
            raise ValueError("fields, contexts: expected exactly one of the two")

    def is_labelled(self, row: TaskRow) -> bool:
        """Whether ``gold`` is there: neither null nor empty nor -1, unless ``gold_values`` names it."""
        value = take(str(self.gold), row.fields, row.place)
        if isinstance(value, (list, dict)):
            raise ValueError(f"{row.place}: {self.gold} is a {type(value).__name__}; expected an index or a text")
        named = isinstance(self.gold_values, tuple) and str(value) in map(str, self.gold_values)
        unlabelled = (value is none or (value == none and not isinstance(value, bool)) for none in UNLABELLED)
        return named or not any(unlabelled)

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """Fields, choices and the right one of every row."""
        pool = sorted({self._answer(row) for row in rows}) if self.distractors else []
        if self.distractors and len(pool) <= self.distractors:
            raise ValueError(
                f"{self.data.origin}: {len(pool)} different {self.gold}; expected more than {self.distractors}"
            )
        return [self._read(row, pool) for row in rows]

    def _read(self, row: TaskRow, pool: list[str]) -> Question:
        contexts = read_texts(self.contexts, "contexts", row)
        if pool:
            labels, gold = self._draw(row, pool)
        else:
            labels = read_texts(self.choices, "choices", row)
            gold = self._gold(row, contexts or labels)
        if self.shuffle:
            labels, gold = _shuffled(labels, gold, np.random.default_rng(seed_of(self.name, row.id)))
        return headed_question(self, row)._replace(
            contexts=contexts, labels=labels, gold=gold, answer=labels[0 if contexts else gold]
        )

    def _gold(self, row: TaskRow, labels: tuple[str, ...]) -> int:
        value: Any = take(str(self.gold), row.fields, row.place)
        values = self.gold_values
        if isinstance(values, str):
            values = tuple(take(values, row.fields, row.place))
        if values:
            allowed = [str(entry) for entry in values]
            index = allowed.index(str(value)) if str(value) in allowed else None
            expected = f"one of {', '.join(allowed)}"
        elif isinstance(value, int) and not isinstance(value, bool):
            index, expected = value, f"0 to {len(labels) - 1}"
        else:
            text = str(value).strip()
            index = labels.index(text) if text in labels else None
            expected = f"an index, or one of {', '.join(map(repr, labels))}"
        if index is None or not 0 <= index < len(labels):
            raise ValueError(f"{row.place}: gold = {value!r}: expected {expected}")
        return index

    def _answer(self, row: TaskRow) -> str:
        return render(str(self.gold), row.fields, row.place).strip()

    def _draw(self, row: TaskRow, pool: list[str]) -> tuple[tuple[str, ...], int]:
        """The right answer among wrong ones of the column; a function of the row alone, so all runs ask the same."""
        answer = self._answer(row)
        rng = np.random.default_rng(seed_of(self.name, row.id))
        wrong = [value for value in pool if value != answer]
        labels = [answer, *(wrong[i] for i in rng.choice(len(wrong), self.distractors, replace=False))]
        return _shuffled(labels, 0, rng)

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every question with its choices behind the prompt."""

        def encode_row(fitter: Fitter, row: Question) -> EncodedQuestion:
            return fitter.scored(row, row.labels, row.contexts, row.gold)

        return ask_in_format(self, rows, asking, encode_row)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Score the choices; see the file's beginning for the metrics."""
        likelihoods = score_questions(encoded, engine)
        return measure_choices(encoded, likelihoods)


@dataclass(frozen=True, kw_only=True)
class PairsTask(Task):
    """Minimal pairs: of two sentences, each behind the token that opens a document, the right one must be likelier.

    Args:
        choices: the two sentences, the right one first.
    """

    kind: ClassVar[str] = "pairs"
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_per_byte")
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = METRICS
    TEMPLATES: ClassVar[tuple[str, ...]] = (*Task.TEMPLATES, "choices")

    choices: tuple[str, ...] = ()

    def _check(self) -> None:
        if len(self.choices) != 2:
            raise ValueError(f"choices: {len(self.choices)} of them; expected a pair, the right one first")

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """The two sentences of every row."""
        pairs = [(row, read_texts(self.choices, "choices", row)) for row in rows]
        return [named_question(self, row)._replace(labels=labels, answer=labels[0]) for row, labels in pairs]

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every pair; a sentence that is too long loses its start."""
        self.check_asked(asking.form, asking.shots)
        head = np.asarray([opening_token(asking.tokenizer)], dtype=np.int64)
        asked = limited(rows.scored, asking.limit, asking.seed)
        questions = []
        for row in asked:
            answers = [encode(asking.tokenizer, text, bos=False) for text in row.labels]
            sentences = zip(answers, row.labels, strict=True)
            size = asking.block_size
            item = Item([candidate(head, ids, len(text.encode()), size) for ids, text in sentences], gold=0)
            n_lost = sum(max(len(answer) - size, 0) for answer in answers)
            named = (row.id, row.place, row.group, row.cluster)
            questions.append(EncodedQuestion(*named, "", item, row.labels, n_truncated=n_lost))
        return EncodedTask(self, "none", 0, questions, asked)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Score both sentences."""
        likelihoods = score_questions(encoded, engine)
        return measure_choices(encoded, likelihoods)


def measure_choices(encoded: EncodedTask, likelihoods: Likelihoods) -> Measured:
    """Numbers of candidates of which one is right."""
    per_byte = [nll / np.maximum(n, 1) for nll, n in zip(likelihoods.nll, likelihoods.n_bytes, strict=True)]
    wins = _wins(likelihoods.nll, likelihoods.gold)
    ratios = {
        "accuracy": ratio(wins),
        "accuracy_per_byte": ratio(_wins(per_byte, likelihoods.gold)),
        "balanced_accuracy": by_class(wins, likelihoods.gold.tolist()),
        "nats_per_token": likelihoods.of_gold(),
        "exact": ratio(likelihoods.greedy),
    }
    predictions = [int(np.argmin(np.nan_to_num(nll, nan=np.inf))) for nll in likelihoods.nll]
    return likelihoods_measured(encoded, likelihoods, ratios, predictions, _baselines(encoded, likelihoods))


def _wins(costs: Sequence[np.ndarray], golds: np.ndarray) -> np.ndarray:
    """(N,) 1.0 where the right candidate costs strictly less than every other, else 0.0."""
    return np.asarray(
        [float((np.delete(c, g) > c[g]).all() and c[g] == c[g]) for c, g in zip(costs, golds, strict=True)]
    )


def _baselines(encoded: EncodedTask, likelihoods: Likelihoods) -> dict[str, float]:
    """Chance: one over the number of candidates. Majority: always the class that is right most often.

    Of the balanced accuracy that is one over the number of classes. Shortest: always the candidate with the fewest
    tokens, of several one by lot.
    """
    n_candidates = [len(nll) for nll in likelihoods.nll]
    baselines = {"chance": float(np.mean([1 / n for n in n_candidates]))}
    lengths = zip(likelihoods.n_tokens, likelihoods.gold, strict=True)
    baselines["shortest"] = float(np.mean([(n[g] == n.min()) / (n == n.min()).sum() for n, g in lengths]))
    if encoded.task.prompted:
        counts = Counter(likelihoods.gold.tolist())
        baselines["majority"] = counts.most_common(1)[0][1] / len(n_candidates)
        baselines["balanced_majority"] = 1 / len(counts)
    return baselines


def _shuffled(labels: Sequence[str], gold: int, rng: np.random.Generator) -> tuple[tuple[str, ...], int]:
    order = rng.permutation(len(labels))
    return tuple(labels[i] for i in order), int(np.flatnonzero(order == gold)[0])
