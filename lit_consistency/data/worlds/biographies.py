"""World of biographies: facts about people in varied words, asked by cloze, so that knowledge is counted exactly.

After bioS of Allen-Zhu & Li, "Physics of Language Models" 3.1 (arXiv 2309.14316: knowledge must be told in several
wordings to be extractable) and 3.3 (arXiv 2404.05405: bits of knowledge per parameter). Finetuning on new people is the
setting in which Zucchet et al. (arXiv 2503.21676) see old facts corrupted. It gives up grammar, pronouns and facts that
depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer

from lit_consistency.data.worlds.base import PARTS, SPLITS, Probe, World, check_choice, check_range, shuffled, stream
from lit_consistency.data.worlds.people import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    MIDDLE_NAMES,
    N_TEMPLATES,
    ask,
    every_word,
)
from lit_consistency.data.worlds.vocabulary import word_tokenizer


class Person(NamedTuple):
    """A name (first, middle, last) and one value for each of ``ATTRIBUTES``."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Biographies(World):
    """People with six attributes, in shuffled order and in one of four wordings each.

    Parts of the text: ``train`` (``n_exposures`` biographies of every base person) and ``held_out`` (one more of each,
    worded anew). Tasks: ``new_people`` (sentences about new people, completed from the value on; ``train`` has each
    fact in three wordings, ``test`` in the fourth) and ``qa`` (questions about base people; ``train`` asks one half of
    them, ``test`` the other). Probes: ``base_cloze``, ``new_cloze`` (in the wording of ``test``), ``qa_train`` and
    ``qa_test``; each asks every fact of its people once.

    Args:
        n_people: Number of base people, who are in the text.
        n_new: Number of new people, who are in the task ``new_people``.
        n_exposures: Biographies per base person, on average if there is skew.
        skew: Zipf exponent s: a person has biographies in proportion to rank ** -s, at least one; 0: all as many.
        seed: Seed of everything; with the same seed, worlds of other sizes have the same first people.
    """

    n_people: int = 500
    n_new: int = 100
    n_exposures: int = 40
    skew: float = 0.0
    seed: int = 0

    tasks = ("new_people", "qa")

    def __post_init__(self) -> None:
        check_range("n_people", self.n_people, 2, 100_000)
        check_range("n_new", self.n_new, 1, 100_000)
        check_range("n_exposures", self.n_exposures, 1, 100_000)
        check_range("skew", self.skew, 0, 4)

    @property
    def probe_names(self) -> tuple[str, ...]:
        """Names of the sets of questions."""
        return ("base_cloze", "new_cloze", "qa_train", "qa_test")

    @cached_property
    def people(self) -> list[Person]:
        """The base people, those with most biographies first."""
        return _draw_people(self.n_people, 0, self.seed)

    @cached_property
    def new_people(self) -> list[Person]:
        """The people of the task ``new_people``; none of them has the name of a base person, whatever the sizes."""
        return _draw_people(self.n_new, 1, self.seed)

    @cached_property
    def exposures(self) -> list[int]:
        """Number of biographies of each base person in ``train``."""
        weights = [(rank + 1) ** -self.skew for rank in range(self.n_people)]
        scale = self.n_people * self.n_exposures / sum(weights)
        return [max(1, round(scale * weight)) for weight in weights]

    def documents(self, part: str = "train") -> Iterator[str]:
        """Yields biographies in shuffled order: six sentences with the full name each."""
        check_choice("part", part, PARTS)
        counts = self.exposures if part == "train" else [1] * self.n_people
        biographies = [(person, exposure) for person, count in enumerate(counts) for exposure in range(count)]
        for person, exposure in shuffled(biographies, "biographies", self.seed, part, "order"):
            rng = stream("biographies", self.seed, part, person, exposure)
            sentences = [
                self._sentence(self.people[person], a, rng.randrange(N_TEMPLATES)) for a in range(len(ATTRIBUTES))
            ]
            rng.shuffle(sentences)
            yield " ".join(prompt + rest for prompt, rest in sentences)

    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        """Pairs of prompt and completion; the completion is the value and the full stop."""
        check_choice("task", task, self.tasks)
        check_choice("split", split, SPLITS)
        if task == "qa":
            pairs = [self._question(person, a) for _, person, a in self._asked(split)]
        else:
            pairs = [
                self._sentence(person, a, wording)
                for i, person in enumerate(self.new_people)
                for a in range(len(ATTRIBUTES))
                for wording in range(N_TEMPLATES)
                if (wording == self._wording("new", i, a)) == (split == "test")
            ]
        return shuffled(pairs, "biographies", self.seed, task, split, "order")

    def probes(self, name: str) -> list[Probe]:
        """Questions with all values as choices; tags ``attribute``, ``person`` and, for base people, ``frequency``."""
        check_choice("probes", name, self.probe_names)
        if name.startswith("qa"):
            split = name.removeprefix("qa_")
            probes = [self._probe(i, a, self._question(person, a)[0]) for i, person, a in self._asked(split)]
        else:
            kind = name.removesuffix("_cloze")
            people = self.people if kind == "base" else self.new_people
            probes = [
                self._probe(i, a, self._sentence(person, a, self._wording(kind, i, a))[0], kind)
                for i, person in enumerate(people)
                for a in range(len(ATTRIBUTES))
            ]
        return shuffled(probes, "biographies", self.seed, "probes", name)

    def tokenizer(self) -> Tokenizer:
        """One token for every name, value and word."""
        return word_tokenizer(every_word())

    def optimum(self) -> dict[str, float]:
        """The best numbers that a model can reach.

        Returns:
            ``accuracy`` 1; ``chance`` (mean) and ``chance/<attribute>`` of a cloze question by guessing among the
            values; ``attribute_nats``, the entropy of one person's values; ``document_nats``, the entropy of a document
            of ``train`` for a model that knows all base people (which person, order of the sentences, wordings), which
            is the least loss summed over a document, end of text included; and ``ignorant_document_nats`` for a model
            that knows the words but no person's values.
        """
        shares = [count / sum(self.exposures) for count in self.exposures]
        form = math.log(math.factorial(len(ATTRIBUTES))) + len(ATTRIBUTES) * math.log(N_TEMPLATES)
        values = sum(math.log(len(attribute.values)) for attribute in ATTRIBUTES)
        known = form - sum(share * math.log(share) for share in shares)
        chances = {f"chance/{attribute.name}": 1 / len(attribute.values) for attribute in ATTRIBUTES}
        return {
            "accuracy": 1.0,
            "chance": sum(chances.values()) / len(chances),
            **chances,
            "attribute_nats": values,
            "document_nats": known,
            "ignorant_document_nats": known + values,
        }

    def _sentence(self, person: Person, attribute: int, wording: int) -> tuple[str, str]:
        """A sentence, cut before the value and its space."""
        before, after = ATTRIBUTES[attribute].templates[wording].split(" {value}")
        return before.format(name=person.name), f" {person.values[attribute]}{after}"

    def _question(self, person: Person, attribute: int) -> tuple[str, str]:
        return ask(ATTRIBUTES[attribute].question.format(name=person.name)), f" {person.values[attribute]}."

    def _asked(self, split: str) -> list[tuple[int, Person, int]]:
        """Number, person and attribute of the questions: people of even rank for training, of odd rank for the test."""
        half = range(SPLITS.index(split), self.n_people, 2)
        return [(i, self.people[i], a) for i in half for a in range(len(ATTRIBUTES))]

    def _wording(self, kind: str, person: int, attribute: int) -> int:
        """The wording in which a fact is asked; a fact of a new person is never told in it."""
        return stream("biographies", self.seed, "wording", kind, person, attribute).randrange(N_TEMPLATES)

    def _probe(self, i: int, a: int, prompt: str, kind: str = "base") -> Probe:
        people = self.people if kind == "base" else self.new_people
        tags = {"attribute": ATTRIBUTES[a].name, "person": str(i)}
        if kind == "base":
            tags["frequency"] = ("head", "middle", "tail")[3 * i // self.n_people] if self.skew else "uniform"
        return Probe(prompt, " " + people[i].values[a], _CHOICES[a], people[i].name, tags)


_CHOICES = tuple(tuple(" " + value for value in attribute.values) for attribute in ATTRIBUTES)


def _draw_people(n: int, parity: int, seed: int) -> list[Person]:
    """Draws people whose names have indices of the given parity in sum: two parities never meet."""
    names = stream("biographies", seed, "names", parity)
    values = stream("biographies", seed, "values", parity)
    people: dict[str, Person] = {}
    while len(people) < n:
        i, j, k = (names.randrange(len(words)) for words in (FIRST_NAMES, MIDDLE_NAMES, LAST_NAMES))
        name = f"{FIRST_NAMES[i]} {MIDDLE_NAMES[j]} {LAST_NAMES[k]}"
        if (i + j + k) % 2 == parity and name not in people:
            people[name] = Person(name, tuple(values.choice(attribute.values) for attribute in ATTRIBUTES))
    return list(people.values())
