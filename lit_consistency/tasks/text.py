"""Log-likelihood of documents: every token is scored, the first one behind the token that opens a document.

As the rolling windows of lm-evaluation-harness (``get_rolling_token_windows`` with ``context_len`` 1). Bits per byte
are the nats of the text's own tokens over its own bytes. Of a world of Markov chains the true distribution is known,
and ``kl`` is KL(truth || model) in nats per symbol: zero is perfect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lit_consistency.data.tokens.pairs import opening_token
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.data.worlds.markov import MarkovChains
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.kl import forward_kl, log_probabilities
from lit_consistency.stats.intervals import Ratio, ratio
from lit_consistency.tasks.likelihoods import likelihoods_measured, score_questions
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.prompts import encode
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow
from lit_consistency.tasks.reading import named_question
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, ReadTask, Task
from lit_consistency.tasks.templates import render

LEAST_EXCERPT = 2000
"""Bytes of a document; a shorter beginning is mostly what is said once, as a title or a name."""


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Documents.

    Args:
        text: template of the document.
        max_bytes: how much is scored at most, in UTF-8 bytes, the same of every document from its start (see
            ``even_shares``); 0: all.
    """

    kind: ClassVar[str] = "text"
    METRICS: ClassVar[tuple[str, ...]] = ("bits_per_byte", "nats_per_token", "word_perplexity", "kl")
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = ("bits_per_byte", "nats_per_token", "word_perplexity")
    TEMPLATES: ClassVar[tuple[str, ...]] = (*Task.TEMPLATES, "text")

    text: str = "{text}"
    max_bytes: int = 0

    def _check(self) -> None:
        self._needs("text")
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes = {self.max_bytes}: expected 0 (all) or more")
        if "kl" in self.metrics and not isinstance(self.data.world, MarkovChains):
            raise ValueError(
                "metrics: 'kl': expected data of a world of MarkovChains, whose true distribution is known"
            )
        if "kl" in self.metrics and self.max_bytes:
            raise ValueError(f"max_bytes = {self.max_bytes}: expected 0 with 'kl', which is of whole documents")

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """The documents, cut to ``max_bytes``."""
        texts = [render(self.text, row.fields, row.place) for row in rows]
        shares = even_shares([len(text.encode()) for text in texts], self.max_bytes) if self.max_bytes else None
        questions = []
        for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
            kept = text if shares is None else text.encode()[: shares[i]].decode(errors="ignore")
            if kept:
                questions.append(named_question(self, row)._replace(labels=(kept,), answer=kept))
        if not questions:
            raise ValueError(f"{self.data.origin}: every document is empty; task {self.name} has nothing to score")
        return questions

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every document in windows of ``block_size`` scored tokens; the last one sees as much before it as fits."""
        self.check_asked(asking.form, asking.shots)
        questions: list[EncodedQuestion] = []
        asked: list[Question] = []
        own = self.data.world.tokenizer() if "kl" in self.metrics and self.data.world else None
        for row in rows.scored:
            windows = list(_windows(row, asking.tokenizer, asking.block_size))
            # a later window of a document has no tag, without which its chain is not known
            if own and (len(windows) > 1 or _scored_ids(windows[0]) != own.encode(row.labels[0]).ids):
                raise ValueError(
                    f"{row.place}: 'kl': expected a whole document in the context and the world's own tokenizer"
                )
            for window in windows:
                if asking.limit and len(questions) == asking.limit:
                    return EncodedTask(self, "none", 0, questions, asked)
                questions.append(window)
                asked.append(row._replace(labels=window.labels, answer=window.labels[0]))
        return EncodedTask(self, "none", 0, questions, asked)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Score the windows; see the file's beginning for the metrics."""
        likelihoods = score_questions(encoded, engine)
        nll = [float(sums[0]) for sums in likelihoods.nll]
        ratios = {
            "nats_per_token": ratio(nll, [float(n[0]) for n in likelihoods.n_tokens]),
            "bits_per_byte": ratio([nats / math.log(2) for nats in nll], [float(n[0]) for n in likelihoods.n_bytes]),
            "word_perplexity": ratio(nll, [n_words(question) for question in encoded.questions]),
        }
        if "kl" in self.metrics:
            ratios["kl"] = self._kl(encoded, engine)
        return likelihoods_measured(encoded, likelihoods, ratios)

    def _kl(self, encoded: EncodedTask, engine: Engine) -> Ratio:
        """KL(truth || model) of every document, summed over its symbols; a document begins with its tag."""
        world = self.data.world
        assert isinstance(world, MarkovChains)
        texts = [question.labels[0] for question in encoded.questions]
        truths = [world.true_log_probs(text) for text in texts]
        tokens = [encode(engine.tokenizer, text, bos=False) for text in texts]
        items = [Item([Candidate(ids, np.arange(len(ids)) > 0, 0)], gold=0) for ids in tokens]
        n_positions = sum(map(len, truths))
        predicted = log_probabilities(
            engine.model, items, n_positions=n_positions, batch_tokens=engine.batch_tokens, device=engine.device
        )
        parts = zip(truths, predicted.split([len(truth) for truth in truths]), strict=True)
        return ratio([forward_kl(truth, log_probs) * len(truth) for truth, log_probs in parts], list(map(len, truths)))


def even_shares(lengths: Sequence[int], budget: int, least: int = LEAST_EXCERPT) -> list[int]:
    """How much of each document is taken so that all together are at most ``budget``.

    The same of each, or all of a short one, whose rest goes to the others. Where that would be less than ``least``,
    documents spread evenly over the set are taken and the others are left out: the beginnings of many documents are
    other text than documents are.

    >>> even_shares([5, 100, 40], 65, least=10)
    [5, 30, 30]
    >>> even_shares([20, 20, 20, 20], 40, least=20)
    [20, 0, 20, 0]
    """
    n, needed = len(lengths), sum(min(length, least) for length in lengths)
    n_taken = n if needed <= budget else max(1, n * budget // needed)
    taken = {i * n // n_taken for i in range(n_taken)}
    shares = [0] * n
    left = budget
    for rank, i in enumerate(sorted(taken, key=lambda i: (lengths[i], i))):
        shares[i] = min(lengths[i], left // (n_taken - rank))
        left -= shares[i]
    return shares


def n_words(question: EncodedQuestion) -> int:
    """Words that begin in a window of a document."""
    text = question.labels[0]
    continues = question.prompt and not question.prompt[-1].isspace() and text and not text[0].isspace()
    return len(re.findall(r"\S+", text)) - bool(continues)


def _windows(row: Question, tokenizer: Tokenizer, block_size: int) -> Iterator[EncodedQuestion]:
    text = row.labels[0]
    ids, ends = _encode_with_ends(tokenizer, text)
    tokens = np.concatenate([[opening_token(tokenizer)], ids])
    for start in range(0, len(ids), block_size):
        stop = min(start + block_size, len(ids))
        window = tokens[max(stop - block_size, 0) : stop + 1]
        scored = text[ends[start] : ends[stop]]
        supervised = np.arange(len(window)) >= len(window) - (stop - start)
        item = Item([Candidate(window, supervised, len(scored.encode()))], gold=0)
        before = text[ends[max(stop - block_size, 0)] : ends[start]] or text[: ends[start]][-1:]
        yield EncodedQuestion(f"{row.id}+{start}", row.place, row.group, row.cluster, before, item, (scored,))


def _scored_ids(window: EncodedQuestion) -> list[int]:
    assert window.item is not None
    candidate = window.item.candidates[0]
    return candidate.tokens[candidate.supervised].tolist()


def _encode_with_ends(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, list[int]]:
    """Tokens (T,), and T + 1 places in the text: token i stands between place i and place i + 1.

    Without the offsets of a Hugging Face tokenizer the places are spread evenly; their sum is exact all the same.
    """
    ids = encode(tokenizer, text, bos=False)
    if tokenizer.backend == "huggingface":
        encoding = tokenizer.processor.encode(text, add_special_tokens=False)
        if len(encoding.ids) == len(ids):
            ends = [0, *np.maximum.accumulate([end for _, end in encoding.offsets]).tolist()]
            return ids, [*ends[:-1], len(text)]
    return ids, [round(len(text) * i / max(len(ids), 1)) for i in range(len(ids) + 1)]
