"""From rows to questions: drawn, arranged, tokenized, fitted into the context.

Prompt and answer are encoded as one text, as in lm-evaluation-harness (``encode_pairs``). Where there is no
prompt (documents, minimal pairs) the model sees BOS, or EOS where there is no BOS, as in lm-evaluation-harness
(``prefix_token_id``), so that every token of the text is scored. What does not fit loses few-shot examples first, the
oldest one first, and then tokens from the left; both are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lit_consistency.data.tokens.chat_template import ChatTemplate
from lit_consistency.data.tokens.pairs import EncodedPair, encode_pairs
from lit_consistency.data.tokens.prompts import chat_template, end_of_turn
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.records.fingerprints import seed_of
from lit_consistency.tasks.definition import Task
from lit_consistency.tasks.few_shot import draw_shots_by_group, without_shots
from lit_consistency.tasks.formats import Format, check_format
from lit_consistency.tasks.question import Asked, AskedRows, read_asked
from lit_consistency.tasks.questions import Question, Questions


class ReadTask(NamedTuple):
    """A task with its rows, read once for all formats and numbers of examples."""

    task: Task
    scored: AskedRows
    training: AskedRows | None


class Built(NamedTuple):
    """Questions, their rows, and the rows that a few-shot example gave away and that are therefore not asked."""

    questions: Questions
    asked: list[Asked]
    given_away: list[Asked]


def read_task(task: Task, with_training: bool) -> ReadTask:
    """The rows of a task; those of its training split only where examples are wanted."""
    few_shot = task.few_shot if with_training else None
    return ReadTask(task, read_asked(task, task.data), read_asked(task, few_shot) if few_shot else None)


def build_questions(
    rows: ReadTask, form: Format, shots: int, tokenizer: Tokenizer, block_size: int, seed: int = 0, limit: int = 0
) -> Built:
    """The questions of a task, in the order of its rows.

    Args:
        rows: of the task.
        form: how they are arranged; documents and minimal pairs have no prompt and ignore it.
        shots: few-shot examples before each question; documents and minimal pairs have none.
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.
        seed: of the draw of examples and, with a limit, of the rows.
        limit: how many questions are asked at most, drawn by the seed; of documents the first windows; 0: all.

    Raises:
        ValueError: the format, or the number of examples, does not fit the task; nothing is left to score.
    """
    task = rows.task
    if task.kind == "text":
        windows = list(_windows(rows.scored.rows, tokenizer, block_size, limit))
        found = [question for question, _ in windows]
        parts = [row._replace(labels=question.labels, answer=question.labels[0]) for question, row in windows]
        return Built(Questions(task, "none", 0, found), parts, [])
    if task.kind == "pairs":
        asked = limited(rows.scored.rows, limit, seed)
        found = [_pair(row, tokenizer, block_size) for row in asked]
        return Built(Questions(task, "none", 0, found), asked, [])
    check_format(form, task)
    training = rows.training.rows if rows.training else None
    examples = draw_shots_by_group(task, rows.scored.rows, training, shots, seed)
    kept, given_away = without_shots(rows.scored.rows, [shot for shots_ in examples.values() for shot in shots_])
    if not kept:
        raise ValueError(f"task {task.name}: every row is a few-shot example too; nothing is left to score")
    fitted = _Fitted(task, form, examples, tokenizer, block_size)
    asked = limited(rows.scored.rows, limit, seed, given_away)
    questions = Questions(task, form.name, shots, [fitted.ask(row) for row in asked], fitted.end_tokens)
    return Built(questions, asked, given_away)


def limited(rows: Sequence[Asked], limit: int, seed: int, without: Sequence[Asked] = ()) -> list[Asked]:
    """So many of the rows, drawn by the seed, in their order; 0: all.

    Rows that are left out are left out of the draw of all, so that with and without examples the others stay the same.
    """
    left_out = {row.id for row in without}
    order = np.random.default_rng(seed_of(seed, "limit")).permutation(len(rows)) if limit else np.arange(len(rows))
    taken = [i for i in order if rows[i].id not in left_out]
    return [rows[i] for i in sorted(taken[: limit or None])]


class _Fitted:
    """Prompts of one task in one format, fitted into the context."""

    def __init__(
        self, task: Task, form: Format, shots: dict[str | None, list[Asked]], tokenizer: Tokenizer, block_size: int
    ) -> None:
        self.task, self.form, self.shots, self.tokenizer = task, form, shots, tokenizer
        self.block_size = block_size
        self.chat: ChatTemplate | None = None
        if form.chat:
            try:
                self.chat = chat_template(tokenizer)
            except ValueError as error:
                raise ValueError(f"format = {form.name!r}: {error}") from None
        self.end_tokens = end_of_turn(tokenizer, self.chat) if self.chat else ()
        if task.kind == "generation" and task.generation.max_new_tokens >= block_size:
            raise ValueError(
                f"task {task.name}: generation.max_new_tokens = {task.generation.max_new_tokens}: expected less than "
                f"the model's context of {block_size} tokens"
            )

    def ask(self, row: Asked) -> Question:
        if self.task.kind == "generation":
            room = self.block_size - self.task.generation.max_new_tokens
            prompt, tokens, lost, shots = self._fit(row, room)
            return self._question(row, prompt, lost, shots, tokens=tokens, references=row.references, labels=row.labels)
        texts = row.labels * len(row.contexts) if row.contexts else row.labels
        answers = [self.form.answer_text(self.task, text) for text in texts]
        contexts = row.contexts or (None,) * len(texts)
        prompts, encoded, shots = self._fit_pairs(row, contexts, answers)
        for text, (_, continuation) in zip(texts, encoded, strict=True):
            if not continuation:
                raise ValueError(f"{row.place}: no token in the candidate {text!r}; expected text to score")
        candidates = [
            candidate(np.asarray(head), np.asarray(continuation), len(answer.encode()), self.block_size)
            for (head, continuation), answer in zip(encoded, answers, strict=True)
        ]
        n_cut = [max(len(head) + len(continuation) - self.block_size - 1, 0) for head, continuation in encoded]
        n_lost = sum(n_cut) if row.contexts else max(n_cut)
        item = Item(candidates, row.gold)
        return self._question(row, prompts[row.gold], n_lost, shots, item=item, labels=row.contexts or texts)

    def _fit_pairs(
        self, row: Asked, contexts: Sequence[str | None], answers: Sequence[str]
    ) -> tuple[list[str], list[EncodedPair], list[Asked]]:
        """Of every candidate the prompt and its tokens with the answer's, and the examples that are left."""
        shots = list(self.shots[row.group])
        while True:
            of_context = {
                context: self.form.prompt(self.task, row, shots, self.chat, context)
                for context in dict.fromkeys(contexts)
            }
            prompts = [of_context[context] for context in contexts]
            pairs = list(zip(prompts, answers, strict=True))
            encoded = encode_pairs(self.tokenizer, pairs, special=self.chat is None)
            longest = max(len(head) + len(continuation) for head, continuation in encoded)
            if longest <= self.block_size + 1 or not shots:
                return prompts, encoded, shots
            del shots[0]

    def _fit(self, row: Asked, room: int) -> tuple[str, np.ndarray, int, list[Asked]]:
        """Prompt, its tokens, how many were cut, and the examples that are left."""
        shots = list(self.shots[row.group])
        while True:
            prompt = self.form.prompt(self.task, row, shots, self.chat)
            tokens = _encode(self.tokenizer, prompt, chat=self.chat is not None)
            if len(tokens) <= room or not shots:
                return prompt, tokens[-room:], max(len(tokens) - room, 0), shots
            del shots[0]

    def _question(
        self,
        row: Asked,
        prompt: str,
        lost: int,
        shots: list[Asked],
        item: Item | None = None,
        tokens: np.ndarray | None = None,
        references: tuple[str, ...] = (),
        labels: tuple[str, ...] = (),
    ) -> Question:
        ids = tuple(shot.id for shot in shots)
        return Question(row.id, row.place, row.group, prompt, item, tokens, references, labels, lost, ids)


def candidate(head: np.ndarray, answer: np.ndarray, n_bytes: int, block_size: int) -> Candidate:
    """A candidate of prompt and answer; one that is too long loses its start, and its first token is only context."""
    tokens = np.concatenate([head, answer])[-(block_size + 1) :]
    supervised = np.arange(len(tokens)) >= max(len(tokens) - len(answer), 1)
    return Candidate(tokens, supervised, n_bytes)


def _encode(tokenizer: Tokenizer, text: str, bos: bool | None = None, chat: bool = False) -> np.ndarray:
    """Tokens (T,) int64; of no text and of no prompt, the token that opens a document."""
    if chat:
        ids = tokenizer.processor.encode(text, add_special_tokens=False).ids
    else:
        ids = tokenizer.encode(text, bos=bos).tolist()
    if not ids and bos is None:
        ids = [opening_token(tokenizer)]
    return np.asarray(ids, dtype=np.int64)


def opening_token(tokenizer: Tokenizer) -> int:
    """What stands before a text that has no context: BOS, or EOS where there is none."""
    return int(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)


def _pair(row: Asked, tokenizer: Tokenizer, block_size: int) -> Question:
    head = np.asarray([opening_token(tokenizer)], dtype=np.int64)
    answers = [_encode(tokenizer, text, bos=False) for text in row.labels]
    item = Item(
        [
            candidate(head, answer, len(text.encode()), block_size)
            for answer, text in zip(answers, row.labels, strict=True)
        ],
        gold=row.gold,
    )
    lost = sum(max(len(answer) - block_size, 0) for answer in answers)
    return Question(row.id, row.place, row.group, "", item, None, (), row.labels, lost, ())


def _windows(
    rows: Sequence[Asked], tokenizer: Tokenizer, block_size: int, limit: int
) -> Iterator[tuple[Question, Asked]]:
    """Every document in windows of ``block_size`` scored tokens; the last one sees as much before it as fits.

    As the rolling windows of lm-evaluation-harness (``get_rolling_token_windows`` with ``context_len`` 1).
    """
    n_asked = 0
    for row in rows:
        text = row.labels[0]
        ids, ends = _encode_with_ends(tokenizer, text)
        tokens = np.concatenate([[opening_token(tokenizer)], ids])
        for start in range(0, len(ids), block_size):
            if limit and n_asked == limit:
                return
            n_asked += 1
            stop = min(start + block_size, len(ids))
            window = tokens[max(stop - block_size, 0) : stop + 1]
            part = text[ends[start] : ends[stop]]
            supervised = np.arange(len(window)) >= len(window) - (stop - start)
            item = Item([Candidate(window, supervised, len(part.encode()))], gold=0)
            before = text[ends[max(stop - block_size, 0)] : ends[start]] or text[: ends[start]][-1:]
            name = f"{row.id}+{start}"
            yield Question(name, row.place, row.group, before, item, None, (), (part,), 0, ()), row


def _encode_with_ends(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, list[int]]:
    """Tokens (T,), and T + 1 places in the text: token i stands between place i and place i + 1.

    Without the offsets of a Hugging Face tokenizer the places are spread evenly; their sum is exact all the same.
    """
    ids = _encode(tokenizer, text, bos=False)
    if tokenizer.backend == "huggingface":
        encoding = tokenizer.processor.encode(text, add_special_tokens=False)
        if len(encoding.ids) == len(ids):
            ends = [0, *np.maximum.accumulate([end for _, end in encoding.offsets]).tolist()]
            return ids, [*ends[:-1], len(text)]
    return ids, [round(len(text) * i / max(len(ids), 1)) for i in range(len(ids) + 1)]


def n_words(question: Question) -> int:
    """Words that begin in a window of a document."""
    text = question.labels[0]
    continues = question.prompt and not question.prompt[-1].isspace() and text and not text[0].isspace()
    return len(re.findall(r"\S+", text)) - bool(continues)
