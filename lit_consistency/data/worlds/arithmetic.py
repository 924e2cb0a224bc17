"""World of modular arithmetic: held-out problems and a share of wrong labels tell the rule from rote memory.

Power et al., "Grokking" (arXiv 2201.02177): a part of all pairs trains, the rest asks for the rule. A wrong label can
only be learned by heart, so the three accuracies (clean, noisy, held out) tell rule from rote. It gives up language: a
document is one problem, e.g. ``12 + 45 = 4``. Commutative twins (a, b) and (b, a) may stand on both sides of the
split, as in the paper.

A wrong label drawn from all wrong ones would stand in its row (a, .) and its column (., b) beside the right one of the
same value: 1.6 copies where a right label has 1.07, so that a model of rows and columns alone would learn the noise
first. It is therefore drawn from the answers of held-out problems: those that the right table has in the row and in the
column, and the text does not show there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lit_consistency.data.worlds.base import PARTS, SPLITS, Probe, World, check_choice, check_range, shuffled, stream
from lit_consistency.data.worlds.vocabulary import word_tokenizer

# how an operation is written: one token each
SYMBOLS = {"+": "+", "-": "-", "x": "x", "a2b2": "@"}


class Problem(NamedTuple):
    """A problem of ``a`` and ``b``: ``truth`` is right, ``label`` is what the text says, which may be wrong."""

    a: int
    b: int
    truth: int
    label: int

    @property
    def is_noisy(self) -> bool:
        """Whether the label is wrong."""
        return self.label != self.truth


@dataclass(frozen=True)
class ModularArithmetic(World):
    """All ``p * p`` problems of one operation modulo p, divided into train and held out.

    Parts of the text: ``train`` (wrong labels included) and ``held_out`` (right). Task: ``problems``, the same as
    rows, with the splits ``train`` and ``test`` (held out). Probes: ``train_clean``, ``train_noisy`` (the answer is the
    wrong label of the text) and ``held_out``. Worlds of the same p share the tokenizer, whatever the operation: a base
    of one operation can be finetuned on another.

    Args:
        p: The modulus; numbers are 0 to p - 1.
        operation: ``+``, ``-``, ``x`` or ``a2b2`` (a * a + b * b, written ``a @ b``).
        train_share: Share of the problems that train; a greater share holds the problems of a smaller one.
        noise_share: Share of the train problems that the text tells with a wrong answer.
        seed: Seed of the division and of the wrong labels; the division is the same for all operations.
    """

    p: int = 53
    operation: str = "+"
    train_share: float = 0.6
    noise_share: float = 0.1
    seed: int = 0

    tasks = ("problems",)
    generation: ClassVar[int] = 2  # 1 drew wrong labels from all wrong ones

    def __post_init__(self) -> None:
        check_range("p", self.p, 3, 997)
        check_choice("operation", self.operation, SYMBOLS)
        check_range("train_share", self.train_share, 1 / self.p**2, 1 - 1 / self.p**2)
        check_range("noise_share", self.noise_share, 0, 1)

    @property
    def probe_names(self) -> tuple[str, ...]:
        """Names of the sets of questions that are not empty."""
        n_noisy, n_train = self._n_noisy, len(self.train)
        clean = ("train_clean",) if n_noisy < n_train else ()
        noisy = ("train_noisy",) if n_noisy else ()
        return (*clean, *noisy, "held_out")

    @cached_property
    def train(self) -> list[Problem]:
        """The problems of ``train`` in shuffled order."""
        wrong = self._wrong_labels()
        problems = [self._right(a, b) for a, b in self._pairs[: self._n_train]]
        return [problem._replace(label=wrong.get(problem[:2], problem.truth)) for problem in problems]

    @cached_property
    def held_out(self) -> list[Problem]:
        """The other problems, all right."""
        return [self._right(a, b) for a, b in self._pairs[self._n_train :]]

    def _wrong_labels(self) -> dict[tuple[int, int], int]:
        """(a, b) -> wrong label, one after the other in an order of their own: more noise keeps those there are.

        ``room[a, y]`` counts how often the right table has y in row (or column) a more than the text. A wrong label
        is drawn with the product of the room in its row and in its column, as the answers of held-out problems are
        distributed; where there is none (few are held out, or the row has one answer only), where most room is.
        """
        rows, columns = (np.zeros((self.p, self.p), dtype=np.int64) for _ in range(2))
        for problem in self.held_out:
            rows[problem.a, problem.truth] += 1
            columns[problem.b, problem.truth] += 1
        trained = set(self._pairs[: self._n_train])
        order = [pair for pair in shuffled(self._pairs, "arithmetic", self.seed, "noise") if pair in trained]
        labels = {}
        for a, b in order[: self._n_noisy]:
            truth = self._right(a, b).truth
            rows[a, truth] += 1
            columns[b, truth] += 1
            weights = rows[a].clip(min=0) * columns[b].clip(min=0)
            weights[truth] = 0
            if not weights.any():
                room = rows[a] + columns[b]
                weights = (room == np.delete(room, truth).max()).astype(np.int64)
                weights[truth] = 0
            rng = stream("arithmetic", self.seed, "wrong", a, b)
            label = rng.choices(range(self.p), weights.tolist())[0]
            rows[a, label] -= 1
            columns[b, label] -= 1
            labels[a, b] = label
        return labels

    def documents(self, part: str = "train") -> Iterator[str]:
        """Yields one problem a document."""
        check_choice("part", part, PARTS)
        for problem in self.train if part == "train" else self.held_out:
            yield self._prompt(problem) + f" {problem.label}"

    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        """Pairs of problem and answer; ``test`` are the held-out problems."""
        check_choice("task", task, self.tasks)
        check_choice("split", split, SPLITS)
        return [(self._prompt(q), f" {q.label}") for q in (self.train if split == "train" else self.held_out)]

    def probes(self, name: str) -> list[Probe]:
        """Questions with all p numbers as choices; tag ``operation``."""
        check_choice("probes", name, self.probe_names)
        problems = self.held_out if name == "held_out" else self.train
        choices = tuple(f" {number}" for number in range(self.p))
        return [
            Probe(
                prompt=self._prompt(q),
                answer=f" {q.label}",
                choices=choices,
                # twins share the fact, whatever side they are told from
                cluster=f"{min(q.a, q.b)} {max(q.a, q.b)}",
                tags={"operation": self.operation},
            )
            for q in problems
            if q.is_noisy == (name == "train_noisy")
        ]

    def tokenizer(self) -> Tokenizer:
        """One token for every number and every operation."""
        return word_tokenizer([" ".join([*SYMBOLS.values(), "=", *map(str, range(self.p))])])

    def optimum(self) -> dict[str, float]:
        """The best numbers that a model can reach.

        Returns:
            ``accuracy`` 1 on each set of questions (the noisy ones by heart); ``noisy_accuracy_by_rule`` 0, what the
            rule alone gives there; ``chance`` 1 / p; and ``document_nats``, the entropy of a document of ``train``,
            which is the least loss summed over a document.
        """
        return {
            "accuracy": 1.0,
            "noisy_accuracy_by_rule": 0.0,
            "chance": 1 / self.p,
            "document_nats": math.log(len(self.train)),
        }

    @property
    def _n_train(self) -> int:
        return round(self.train_share * self.p**2)

    @property
    def _n_noisy(self) -> int:
        return round(self.noise_share * self._n_train)

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        pairs = [(a, b) for a in range(self.p) for b in range(self.p)]
        return shuffled(pairs, "arithmetic", self.seed, "division")

    def _right(self, a: int, b: int) -> Problem:
        results = {"+": a + b, "-": a - b, "x": a * b, "a2b2": a * a + b * b}
        truth = results[self.operation] % self.p
        return Problem(a, b, truth, truth)

    def _prompt(self, problem: Problem) -> str:
        return f"{problem.a} {SYMBOLS[self.operation]} {problem.b} ="
