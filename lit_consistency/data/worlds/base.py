"""The contract of a synthetic world: text to pretrain on, rows to finetune on, questions to ask, and a known optimum.

A world is a frozen dataclass and everything it yields is a pure function of its fields: the same bytes in every process
and on every platform. Each part draws from its own stream of random numbers, named by a string, so that changing one
part never changes another. It gives up realism: what can be known is counted exactly instead.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

from tokenizers import Tokenizer

PARTS = ("train", "held_out")
SPLITS = ("train", "test")

T = TypeVar("T")


class Probe(NamedTuple):
    """One cloze question.

    Attributes:
        prompt: Text up to the answer; it ends without a space.
        answer: The right continuation, with the space before it: one token of the world's tokenizer.
        choices: All values that could stand there, the answer among them, each one token; chance is
            ``1 / len(choices)``.
        cluster: Name of what it has in common with other questions that are right or wrong together: a person, a pair
            of numbers, a state of a chain. Standard errors count clusters, not questions.
        tags: Where the question belongs, e.g. ``{"attribute": "hobby"}``, to report accuracy by group.
    """

    prompt: str
    answer: str
    choices: Sequence[str]
    cluster: str
    tags: dict[str, str]


class World(ABC):
    """A generator of text, rows and questions whose truth is known.

    Attributes:
        tasks: Names of the finetuning tasks; each has the splits ``train`` and ``test``.
        generation: In the fingerprint, so that no cache keeps old text: raised when the same fields give other text,
            which the golden hashes of the tests notice.
    """

    tasks: tuple[str, ...]
    generation: ClassVar[int] = 1

    @property
    @abstractmethod
    def probe_names(self) -> tuple[str, ...]:
        """Names of the sets of questions."""

    @abstractmethod
    def documents(self, part: str = "train") -> Iterator[str]:
        """Yields the documents of a part, ``train`` or ``held_out``, once and in a fixed, shuffled order.

        Raises:
            ValueError: The world has no such part.
        """

    @abstractmethod
    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        """Pairs of prompt and completion in a fixed, shuffled order; a completion begins with its space.

        Raises:
            ValueError: The world has no such task or split.
        """

    @abstractmethod
    def probes(self, name: str) -> list[Probe]:
        """Every question of a set, in one fixed, shuffled order: the first k of them are a fair sample.

        Raises:
            ValueError: The world has no such set.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """A tokenizer in which every word of the world is one token; the same for all seeds and sizes."""

    @abstractmethod
    def optimum(self) -> dict[str, float]:
        """What a perfect model reaches and what guessing reaches: accuracies as shares of 1, losses in nats."""

    def fingerprint(self) -> dict[str, Any]:
        """Name, generation and fields of the world, as JSON: equal fingerprints, equal text."""
        own = {"world": type(self).__name__, "generation": self.generation}
        return {**own, **dataclasses.asdict(cast(Any, self))}


def stream(*name: object) -> random.Random:
    """A random stream of its own for every name.

    The seed is a string, which Python hashes with SHA-512, independent of the process and of PYTHONHASHSEED.
    """
    return random.Random("/".join(str(part) for part in name))


def shuffled(items: Collection[T], *name: object) -> list[T]:
    """The items in an order that depends on the name of the stream alone."""
    order = list(items)
    stream(*name).shuffle(order)
    return order


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside of ``low <= value <= high``.

    Raises:
        ValueError: Names key, value and what is allowed.
    """
    if not low <= value <= high:
        raise ValueError(f"{key} = {value}: expected {low} <= {key} <= {high}")


def check_choice(key: str, value: str | None, allowed: Collection[str]) -> None:
    """Refuses a value that is not among those allowed.

    Raises:
        ValueError: Names key, value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{key} = {value!r}: expected one of {', '.join(allowed)}")
