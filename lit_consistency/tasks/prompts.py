"""Questions of a task as prompts, fitted into a model's context.

Prompt and answer are encoded as one text, as in lm-evaluation-harness (``encode_pairs``). Where there is no
prompt (documents, minimal pairs) the model sees BOS, or EOS where there is no BOS, as in lm-evaluation-harness
(``prefix_token_id``), so that every token of the text is scored. What does not fit loses few-shot examples first, the
oldest one first, and then tokens from the left; both are counted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lit_consistency.data.tokens.chat_template import ChatTemplate
from lit_consistency.data.tokens.pairs import EncodedPair, encode_pairs, opening_token
from lit_consistency.data.tokens.prompts import chat_template, end_of_turn
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.tasks.few_shot import draw_shots_by_group, without_shots
from lit_consistency.tasks.formats import Format
from lit_consistency.tasks.question import EncodedQuestion, Question, limited
from lit_consistency.tasks.task import Asking, EncodedTask, PromptedTask, ReadTask


class Fitter:
    """Prompts of one task in one format, fitted into the context.

    Args:
        task: the task.
        form: how its questions are arranged.
        shots: the few-shot examples of each group.
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.

    Raises:
        ValueError: the format is a chat, and the tokenizer has no template for one.
    """

    def __init__(
        self,
        task: PromptedTask,
        form: Format,
        shots: dict[str | None, list[Question]],
        tokenizer: Tokenizer,
        block_size: int,
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

    def prompt(self, row: Question, room: int) -> tuple[str, np.ndarray, int, tuple[str, ...]]:
        """Prompt, its tokens (T,), how many were cut, and the ids of the examples that are left."""
        shots = list(self.shots[row.group])
        while True:
            prompt = self.form.prompt(self.task, row, shots, self.chat)
            tokens = encode(self.tokenizer, prompt, chat=self.chat is not None)
            if len(tokens) <= room or not shots:
                ids = tuple(shot.id for shot in shots)
                return prompt, tokens[-room:], max(len(tokens) - room, 0), ids
            del shots[0]

    def answer(self, row: Question, text: str) -> np.ndarray:
        """Tokens (T,) of an answer behind its prompt; ValueError where there is none."""
        answer = encode(self.tokenizer, self.form.answer_text(self.task, text), bos=False)
        if not len(answer):
            raise ValueError(f"{row.place}: no token in the candidate {text!r}; expected text to score")
        return answer

    def scored(self, row: Question, texts: tuple[str, ...], contexts: tuple[str, ...], gold: int) -> EncodedQuestion:
        """The question with its candidates: each text behind the prompt, or the one text behind each context."""
        texts = texts * len(contexts) if contexts else texts
        prompts, encoded, shots = self._pairs(row, texts, contexts)
        for text, (_, continuation) in zip(texts, encoded, strict=True):
            if not continuation:
                raise ValueError(f"{row.place}: no token in the candidate {text!r}; expected text to score")
        item = Item(
            [
                candidate(np.asarray(head), np.asarray(continuation), len(text.encode()), self.block_size)
                for (head, continuation), text in zip(encoded, texts, strict=True)
            ],
            gold,
        )
        n_cut = [max(len(head) + len(continuation) - self.block_size - 1, 0) for head, continuation in encoded]
        prompt, n_lost = prompts[gold], sum(n_cut) if contexts else max(n_cut)
        return EncodedQuestion(
            row.id,
            row.place,
            row.group,
            row.cluster,
            prompt,
            item,
            contexts or texts,
            n_truncated=n_lost,
            shot_ids=shots,
        )

    def _pairs(
        self, row: Question, texts: tuple[str, ...], contexts: tuple[str, ...]
    ) -> tuple[list[str], list[EncodedPair], tuple[str, ...]]:
        """Of every candidate the prompt and the tokens with the answer's, and the ids of the examples that are left."""
        answers = [self.form.answer_text(self.task, text) for text in texts]
        shots = list(self.shots[row.group])
        while True:
            prompts = [self.form.prompt(self.task, row, shots, self.chat, context) for context in contexts or (None,)]
            prompts = prompts if contexts else prompts * len(texts)
            encoded = encode_pairs(self.tokenizer, list(zip(prompts, answers, strict=True)), special=self.chat is None)
            longest = max(len(head) + len(continuation) for head, continuation in encoded)
            if longest <= self.block_size + 1 or not shots:
                return prompts, encoded, tuple(shot.id for shot in shots)
            del shots[0]


def ask_in_format(
    task: PromptedTask, rows: ReadTask, asking: Asking, encode_row: Callable[[Fitter, Question], EncodedQuestion]
) -> EncodedTask:
    """The questions of a task with prompts: examples drawn, rows chosen, each encoded by ``encode_row``.

    Raises:
        ValueError: the format does not fit the task, or every row is an example.
    """
    form, shots, seed = asking.form, asking.shots, asking.seed
    task.check_asked(form, shots)
    examples = draw_shots_by_group(task, rows.scored, rows.training, shots, seed)
    kept, given_away = without_shots(rows.scored, [shot for drawn in examples.values() for shot in drawn])
    if not kept:
        raise ValueError(f"task {task.name}: every row is a few-shot example too; nothing is left to score")
    fitter = Fitter(task, form, examples, asking.tokenizer, asking.block_size)
    asked = limited(rows.scored, asking.limit, seed, given_away)
    questions = [encode_row(fitter, row) for row in asked]
    return EncodedTask(task, form.name, shots, questions, asked, given_away, fitter.end_tokens)


def candidate(head: np.ndarray, answer: np.ndarray, n_bytes: int, block_size: int) -> Candidate:
    """A candidate of prompt and answer; one that is too long loses its start, and its first token is only context."""
    tokens = np.concatenate([head, answer])[-(block_size + 1) :]
    supervised = np.arange(len(tokens)) >= max(len(tokens) - len(answer), 1)
    return Candidate(tokens, supervised, n_bytes)


def encode(tokenizer: Tokenizer, text: str, bos: bool | None = None, chat: bool = False) -> np.ndarray:
    """Tokens (T,) int64; of no text and of no prompt, the token that opens a document."""
    if chat:
        ids = tokenizer.processor.encode(text, add_special_tokens=False).ids
    else:
        ids = tokenizer.encode(text, bos=bos).tolist()
    if not ids and bos is None:
        ids = [opening_token(tokenizer)]
    return np.asarray(ids, dtype=np.int64)
