"""How likely the right answer is, and whether it is the model's first choice, token by token.

Questions with a known continuation (LAMBADA, the questions of a world), or conversations as SFTData trains on them.
``nats_per_token`` is over all that is learned, the end of a turn included, as the loss of training is;
``bits_per_byte`` is over the answer's own text: nats of its tokens, without the end of a turn, over its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lit_consistency.data.sources.rows import Conversation, RowFiles, Rows
from lit_consistency.data.tokens.prompts import PromptEncoder, check_style
from lit_consistency.inference.items import Candidate, Item, text_bytes
from lit_consistency.stats.intervals import ratio
from lit_consistency.tasks.formats import Format
from lit_consistency.tasks.likelihoods import likelihoods_measured, score_questions
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.prompts import ask_in_format
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow, limited
from lit_consistency.tasks.reading import headed_question, read_texts
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, PromptedTask, ReadTask
from lit_consistency.tasks.task_data import TaskData

READ_BY_TEMPLATES = ("few_shot", "instruction", "extract", "requires", "group", "cluster", "id")
READ_BY_FILES = ("member", "records", "columns", "separator", "validation_share")
"""Keys of a task and of its data that say how a row is read where it is no conversation."""


@dataclass(frozen=True, kw_only=True)
class CompletionTask(PromptedTask):
    """Right answers.

    Args:
        completion: template of the right answer, behind the prompt of the ``fields``.
        prompt_style: in place of fields and completion: the rows are conversations as SFTData reads them (``prompt``
            and ``completion``, ``messages``, ...), in this style; every answer of the assistant is scored.
        parse_special_tokens: as of SFTData, for such rows.
    """

    kind: ClassVar[str] = "completion"
    METRICS: ClassVar[tuple[str, ...]] = ("nats_per_token", "bits_per_byte", "exact")
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = METRICS
    TEMPLATES: ClassVar[tuple[str, ...]] = (*PromptedTask.TEMPLATES, "completion")

    completion: str | None = None
    prompt_style: str | None = None
    parse_special_tokens: bool = field(default=False, metadata={"added": True})

    def _check(self) -> None:
        if (self.completion is None) == (self.prompt_style is None):
            raise ValueError(
                f"completion = {self.completion}, prompt_style = {self.prompt_style}: expected exactly one of the two"
            )
        if bool(self.fields) != (self.completion is not None):
            raise ValueError("fields: expected them with completion, and none with prompt_style")
        if self.prompt_style is None:
            if self.parse_special_tokens:
                raise ValueError("parse_special_tokens = true: expected it with prompt_style only")
            return
        check_style(self.prompt_style)
        if self.data.rows is None and self.data.path is None:
            raise ValueError("prompt_style: expected data.path, a file of conversations")
        idle = [key for key in READ_BY_TEMPLATES if getattr(self, key)]
        idle += [f"data.{key}" for key in READ_BY_FILES if getattr(self.data, key)]
        if idle:
            raise ValueError(f"{idle[0]}: expected none with prompt_style, whose rows are read as SFTData reads them")

    def conversations(self, data: TaskData) -> Rows | None:
        """With a ``prompt_style`` the rows of the files, as SFTData reads them."""
        return data.rows if self.prompt_style is None or data.path is None else RowFiles(data.path)

    @property
    def prompted(self) -> bool:  # type: ignore[override]
        """Conversations have a style in place of a format."""
        return self.prompt_style is None

    def check_asked(self, form: Format, shots: int) -> None:
        """Conversations have a style in place of a format, and no examples."""
        if self.prompt_style is None:
            super().check_asked(form, shots)
        elif shots:
            raise ValueError(f"shots = {shots}: task {self.name} has a prompt_style; expected 0")

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """Fields and answer of every row."""
        answers = [(row, read_texts((str(self.completion),), "completion", row)) for row in rows]
        return [headed_question(self, row)._replace(labels=labels, answer=labels[0]) for row, labels in answers]

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every answer behind its prompt; a conversation that is too long is cut at its end, as in training."""
        if self.prompt_style is None:
            return ask_in_format(self, rows, asking, lambda fitter, row: fitter.scored(row, row.labels, (), 0))
        self.check_asked(asking.form, asking.shots)
        encoder = PromptEncoder(asking.tokenizer, self.prompt_style, parse_special_tokens=self.parse_special_tokens)
        asked, questions = [], []
        for row in limited(rows.scored, asking.limit, asking.seed):
            question = _encode_conversation(row, encoder, asking.block_size)
            if question is not None:
                asked.append(row)
                questions.append(question)
        if not questions:
            raise ValueError(
                f"{self.data.origin}: no answer within {asking.block_size} tokens; task {self.name} is empty"
            )
        return EncodedTask(self, "none", 0, questions, asked)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Score the answers; see the file's beginning for the metrics."""
        likelihoods = score_questions(encoded, engine)
        # the last candidate is the answer's own text; where nothing ends a turn there is only one
        own = [(nll[-1] / math.log(2), n[-1]) for nll, n in zip(likelihoods.nll, likelihoods.n_bytes, strict=True)]
        ratios = {
            "nats_per_token": likelihoods.of_gold(),
            "bits_per_byte": ratio([bits for bits, _ in own], [n for _, n in own]),
            "exact": ratio(likelihoods.greedy),
        }
        return likelihoods_measured(encoded, likelihoods, ratios)


def _encode_conversation(row: Question, encoder: PromptEncoder, block_size: int) -> EncodedQuestion | None:
    """Two candidates: all that is learned, and of it the answers' own text; None where no answer is left."""
    assert row.conversation is not None
    example = encoder.encode(row.conversation)
    tokens, supervised = example.tokens[: block_size + 1].astype(np.int64), example.supervised[: block_size + 1]
    n_cut = len(example.tokens) - len(tokens)
    if not supervised[1:].any():
        return None
    ends = sorted({*encoder.tokenizer.special_ids, encoder.tokenizer.eos_id} - {None})  # no text of the answer
    own = supervised & ~np.isin(tokens, ends)
    whole = None if n_cut else _answer_bytes(row.conversation)
    n_bytes = text_bytes(encoder.tokenizer, tokens[1:][own[1:]]) if whole is None else whole
    candidates = [Candidate(tokens, supervised, n_bytes)]
    if (own != supervised).any():
        candidates.append(Candidate(tokens, own, n_bytes))
    prompt = "\n".join(text for _, text in row.fields[:-1])
    return EncodedQuestion(
        row.id, row.place, row.group, row.cluster, prompt, Item(candidates, 0), (row.answer,), n_truncated=n_cut
    )


def _answer_bytes(row: Conversation) -> int | None:
    """Bytes of the answers that are learned; None where a template writes more of them than their words."""
    answers = [turn for turn in row.messages if turn["role"] == "assistant" and turn.get("learned", True)]
    if any(turn.get("tool_calls") or turn.get("reasoning_content") for turn in answers):
        return None
    return sum(len(turn["content"].encode()) for turn in answers)
