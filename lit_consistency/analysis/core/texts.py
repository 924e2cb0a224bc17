"""Texts on which models are analysed: tasks of ``evaluate`` by their names, or files, as tokens of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.items import Item
from lit_consistency.inference.score import score_items, shift
from lit_consistency.model import IGNORE
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.question import EncodedQuestion
from lit_consistency.tasks.watched import PreparedTask, WatchedTask

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".zip")
"""Endings of files that are texts by themselves; anything else is the name of a task, or its YAML file."""


@dataclass(frozen=True)
class Reading:
    """How texts are read.

    Args:
        limit: items of each at most, drawn by the seed (of documents the first windows); 0: all.
        seed: of the draw.
        world: fields of the world that tasks of a world ask of, where they differ from the task file's.
        data_dir: takes the place of the folder ``data/`` of task files.
    """

    limit: int = 0
    seed: int = 0
    world: Mapping[str, Any] | None = None
    data_dir: Path | None = None


class Text:
    """A task, or a file of text, encoded for one tokenizer: items with tokens, of which some are scored.

    Args:
        name: of a task in ``configs/evaluation``, as ``biographies/old_people``; a task's YAML file; or a file of text.
        tokenizer: of the model.
        block_size: longest input of the model, in tokens.
        reading: how it is read.

    Attributes:
        items: questions with their candidates; of a document one candidate, itself.
        clusters: of every item, what it is drawn together with, as its document.

    Raises:
        FileNotFoundError: there is no such task or file.
        ValueError: it does not fit the model, or has nothing to score.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, block_size: int, reading: Reading) -> None:
        self.name = name
        self.prepared = _prepare(name, tokenizer, block_size, reading)
        self.questions: list[EncodedQuestion] = [q for q in self.prepared.encoded.questions if q.item is not None]
        self.items: list[Item] = [question.item for question in self.questions if question.item is not None]
        self.clusters = [str(question.cluster) for question in self.questions]
        if not self.items:
            raise ValueError(
                f"text = {name!r}: nothing in it is scored by its likelihood; expected texts, or questions with answers"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Of all tokens."""
        rows = [[tokens.tolist(), targets.tolist()] for tokens, targets in self.rows]
        return fingerprint_of([self.name, rows, self.clusters])

    @cached_property
    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Of the right answer of every item: tokens (T,) int64 and targets (T,), -100 where nothing is scored."""
        return [shift(*item.candidates[item.gold][:2]) for item in self.items]

    @property
    def tokens(self) -> list[Tensor]:
        """Of every item, what a model reads, (T,) int64."""
        return [tokens for tokens, _ in self.rows]

    @property
    def n_scored(self) -> int:
        """Scored tokens."""
        return sum(int((targets != IGNORE).sum()) for _, targets in self.rows)

    @property
    def n_tokens(self) -> int:
        """Tokens that a model reads, scored or not."""
        return sum(len(tokens) for tokens, _ in self.rows)

    def nll(self, model: nn.Module, batch_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of every item's right answer: summed negative log-likelihood (I,) float64 in nats, and scored tokens (I,)."""
        right = [Item([item.candidates[item.gold]], gold=0) for item in self.items]
        with evaluation_mode(model):
            scores = score_items(model, right, batch_tokens=batch_tokens, device=device)
        return scores.nll, scores.n_tokens

    def loss(self, model: nn.Module, batch_tokens: int, device: torch.device) -> float:
        """Mean negative log-likelihood in nats per scored token."""
        nll, n_tokens = self.nll(model, batch_tokens, device)
        return float(nll.sum() / n_tokens.sum())

    def measure(self, model: nn.Module, batch_tokens: int, device: torch.device) -> Measured:
        """The task's own numbers, as ``evaluate`` reports them."""
        with evaluation_mode(model):
            return self.prepared.measure(model, batch_tokens=batch_tokens, device=device)


def _prepare(name: str, tokenizer: Tokenizer, block_size: int, reading: Reading) -> PreparedTask:
    keys: str | dict[str, Any] = name
    if Path(name).suffix in SUFFIXES:
        keys = {"kind": "text", "data": {"path": name}, "metrics": ["nats_per_token", "bits_per_byte"]}
    watched = WatchedTask(
        task=keys,
        limit=reading.limit,
        seed=reading.seed,
        data_dir=reading.data_dir,
        world=reading.world,  # type: ignore[arg-type]
    )
    return watched.prepare(Path(name).stem if isinstance(keys, dict) else name, tokenizer, block_size)
