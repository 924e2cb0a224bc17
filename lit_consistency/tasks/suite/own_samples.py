r"""Texts that the base itself wrote at the start of a run, and how far the model's predictions along them have moved.

They need no data, and there are some for every model: draws at temperature 1 from the token that opens a document are
a sample of all that the base says by itself. With p of the base and q of the model, on a text's tokens x,

.. math::
    \frac{\sum_{x} \sum_{t} KL(p(\cdot \mid x_{<t}) \| q(\cdot \mid x_{<t}))}{\sum_{x} |x|}

estimates the divergence of the two models in nats per token, 0 at step 0; its error is by text. Shenfeld, Pari and
Agrawal (arXiv 2509.04259) find the divergence on the new task to foretell forgetting; this is that on the old ones.
Given up: what a text says beyond 128 tokens, and positions that do not fit into ``MEMORY``, see ``KLToBase``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.tokens.pairs import opening_token
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import generate
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.inference.kl import MEMORY, KLTerms, KLToBase
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.stats.intervals import ratio
from lit_consistency.tasks.likelihoods import record_of
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.question import EncodedQuestion, Question, TaskRow
from lit_consistency.tasks.reading import named_question
from lit_consistency.tasks.suite import OWN_SAMPLES
from lit_consistency.tasks.task import Asking, EncodedTask, Engine, ReadTask, Task
from lit_consistency.tasks.task_data import TaskData

N_TEXTS = 64
LENGTH = 128
"""Tokens of a text; less where the context is shorter."""


class Samples(Source):
    """Texts that a model wrote, with what it predicts along them.

    Args:
        texts: tokens of each, behind the one that opens it; the one that ended it belongs to it.
        tokenizer: of the model.
    """

    def __init__(self, texts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
        self.texts = [list(text) for text in texts]
        self.tokenizer = tokenizer
        self.kl: KLToBase | None = None
        self._has_read = False

    def documents(self) -> Iterator[str]:
        """Yields the texts, special tokens and all."""
        for text in self.texts:
            yield self.tokenizer.decode_tokens(text[1:], special=True)

    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the texts are."""
        return {"kind": "Samples", "tokens": fingerprint_of(self.texts)}

    def prepare(self, *, n_vocab: int, batch_tokens: int, device: torch.device) -> None:
        """Choose the positions at which is compared; until ``read_base`` the model that is asked is the base."""
        tokens = [np.asarray(text, dtype=np.int64) for text in self.texts]
        items = [Item([Candidate(ids, np.arange(len(ids)) > 0, 0)], gold=0) for ids in tokens]
        self.kl = KLToBase(items, n_vocab=n_vocab, memory=MEMORY // 2, batch_tokens=batch_tokens, device=device)

    def read_base(self, model: nn.Module) -> None:
        """Keep what the base predicts along its texts; the caller has put it into evaluation mode."""
        assert self.kl is not None, "prepare comes first"
        self.kl.read_base(model)
        self._has_read = True

    def terms(self, model: nn.Module) -> KLTerms:
        """The divergence of a model in evaluation mode from the base; see ``prepare``."""
        assert self.kl is not None, "prepare comes first"
        return self.kl.terms(model) if self._has_read else self.kl.terms_of_base()


def draw_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    n_texts: int = N_TEXTS,
    length: int = LENGTH,
    seed: int = 0,
    batch_tokens: int,
    device: torch.device,
) -> list[list[int]]:
    """Texts that the model writes by itself; the same on every rank, and a function of the seed and the weights.

    Raises:
        ValueError: it writes nothing: it ends every text with its first token.
    """
    opening = opening_token(tokenizer)
    written = generate(
        model,
        [np.asarray([opening])] * n_texts,
        GenerationOptions(max_new_tokens=length, temperature=1.0, seed=seed),
        tokenizer,
        batch_tokens=batch_tokens,
        device=device,
    )
    texts = [sample.tokens for (sample,) in written]
    if not any(texts):
        raise ValueError(f"the base writes nothing: it ends each of {n_texts} texts with its first token")
    # which of several ends it was is of no account: whole distributions are compared, also where the text ends
    ends = [[tokenizer.eos_id] if sample.finished == "eos" else [] for (sample,) in written]
    return [[opening, *text, *end] for text, end in zip(texts, ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class OwnSamplesTask(Task):
    """KL(base || model) along the base's own texts, which are the task's ``source``."""

    kind: ClassVar[str] = OWN_SAMPLES
    METRICS: ClassVar[tuple[str, ...]] = ("kl",)
    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = METRICS

    def _check(self) -> None:
        if not isinstance(self.data.source, Samples):
            raise ValueError("data.source: expected Samples")

    @property
    def samples(self) -> Samples:
        """The texts."""
        assert isinstance(self.data.source, Samples)
        return self.data.source

    def read(self, rows: Sequence[TaskRow]) -> list[Question]:
        """The texts."""
        texts = [(row, str(row.fields["text"])) for row in rows]
        return [named_question(self, row)._replace(labels=(text,), answer=text) for row, text in texts]

    def questions(self, rows: ReadTask, asking: Asking) -> EncodedTask:
        """Every text; it has no right answer, its tokens are those that the base drew."""
        self.check_asked(asking.form, asking.shots)
        questions = [
            EncodedQuestion(row.id, row.place, row.group, row.cluster, "", None, row.labels) for row in rows.scored
        ]
        return EncodedTask(self, "none", 0, questions, rows.scored)

    def measure(self, encoded: EncodedTask, engine: Engine) -> Measured:
        """Compare the model with the base."""
        terms = self.samples.terms(engine.model)
        sums, counts = np.zeros(len(encoded.questions)), np.zeros(len(encoded.questions))
        np.add.at(sums, terms.items.numpy(), terms.forward.numpy())
        np.add.at(counts, terms.items.numpy(), 1.0)
        engine.advance(len(encoded.questions))
        records = [
            {**record_of(encoded, question), "score": nats / n if n else math.nan, "weight": n, "kl": nats}
            for question, nats, n in zip(encoded.questions, sums.tolist(), counts.tolist(), strict=True)
        ]
        return Measured({"kl": ratio(sums, counts)}, records, (), (), {})


def own_samples_task(name: str, samples: Samples) -> OwnSamplesTask:
    """The task of a run's own samples."""
    return OwnSamplesTask(name=name, data=TaskData(source=samples))
