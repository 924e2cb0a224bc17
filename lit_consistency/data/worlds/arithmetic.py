"""World of modular arithmetic: held-out problems and a share of wrong labels tell the rule from rote memory.

Power et al., "Grokking" (arXiv 2201.02177): a part of all pairs trains, the rest asks for the rule. A wrong label can
only be learned by heart, so the three accuracies (clean, noisy, held out) tell rule from rote. It gives up language: a
document is one problem, e.g. `12 + 45 = 4`. Commutative twins (a, b) and (b, a) may stand on both sides of the split,
as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer

from lit_consistency.data.worlds.base import PARTS, SPLITS, Probe, World, check_choice, check_range, shuffled, stream
from lit_consistency.data.worlds.vocabulary import word_tokenizer

# how an operation is written: one token each
SYMBOLS = {"+": "+", "-": "-", "x": "x", "a2b2": "@"}


class Problem(NamedTuple):
    """`told` is what the text says of `a` and `b`, `truth` what is right; they differ where the label is wrong."""

    a: int
    b: int
    truth: int
    told: int


@dataclass(frozen=True)
class ModularArithmetic(World):
    """All `p * p` problems of one operation modulo p, divided into train and held out.

    Parts of the text: `train` (as told, wrong labels included) and `held_out` (right). Task: `problems`, the same as
    rows, with the splits `train` and `test` (held out). Probes: `train_clean`, `train_noisy` (the answer is the wrong
    label that was told) and `held_out`. Worlds of the same p share the tokenizer, whatever the operation: a base of one
    operation can be finetuned on another.

    Args:
        p: The modulus; numbers are 0 to p - 1.
        operation: `+`, `-`, `x` or `a2b2` (a * a + b * b, written `a @ b`).
        train_share: Share of the problems that train; a greater share holds the problems of a smaller one.
        noise_share: Share of the train problems told with a wrong answer, drawn uniformly from the wrong ones.
        seed: Of the division and of the wrong labels; the same for all operations.
    """

    p: int = 53
    operation: str = "+"
    train_share: float = 0.6
    noise_share: float = 0.1
    seed: int = 0

    tasks = ("problems",)

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
        """The problems of `train` in shuffled order."""
        pairs = self._pairs[: self._n_train]
        # which problems are noisy has an order of its own, so that more noise keeps the wrong labels there are
        kept = set(pairs)
        order = shuffled(self._pairs, "arithmetic", self.seed, "noise")
        noisy = set([pair for pair in order if pair in kept][: self._n_noisy])
        return [self._problem(a, b, (a, b) in noisy) for a, b in pairs]

    @cached_property
    def held_out(self) -> list[Problem]:
        """The other problems, all right."""
        return [self._problem(a, b, False) for a, b in self._pairs[self._n_train :]]

    def documents(self, part: str = "train") -> Iterator[str]:
        """Yields one problem a document."""
        check_choice("part", part, PARTS)
        for problem in self.train if part == "train" else self.held_out:
            yield self._prompt(problem) + f" {problem.told}"

    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        """Pairs of problem and answer; `test` are the held-out problems."""
        check_choice("task", task, self.tasks)
        check_choice("split", split, SPLITS)
        return [(self._prompt(q), f" {q.told}") for q in (self.train if split == "train" else self.held_out)]

    def probes(self, name: str) -> list[Probe]:
        """Questions with all p numbers as choices; tag `operation`."""
        check_choice("probes", name, self.probe_names)
        problems = self.held_out if name == "held_out" else self.train
        found = [q for q in problems if (q.told != q.truth) == (name == "train_noisy")]
        choices = tuple(f" {number}" for number in range(self.p))
        return [Probe(self._prompt(q), f" {q.told}", choices, {"operation": self.operation}) for q in found]

    def tokenizer(self) -> Tokenizer:
        """One token for every number and every operation."""
        return word_tokenizer([" ".join([*SYMBOLS.values(), "=", *map(str, range(self.p))])])

    def optimum(self) -> dict[str, float]:
        """What can be reached.

        Returns:
            `accuracy` 1 on each set of questions (the noisy ones by heart); `noisy_accuracy_by_rule` 0, what the rule
            alone gives there; `chance` 1 / p; and `document_nats`, the entropy of a document of `train`, which is the
            least loss summed over a document.
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

    def _problem(self, a: int, b: int, noisy: bool) -> Problem:
        results = {"+": a + b, "-": a - b, "x": a * b, "a2b2": a * a + b * b}
        truth = results[self.operation] % self.p
        wrong = stream("arithmetic", self.seed, "wrong", a, b).randrange(1, self.p)
        return Problem(a, b, truth, (truth + wrong) % self.p if noisy else truth)

    def _prompt(self, problem: Problem) -> str:
        return f"{problem.a} {SYMBOLS[self.operation]} {problem.b} ="
