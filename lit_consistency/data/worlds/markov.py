"""World of Markov chains: every tag has a chain of its own, so the true distribution of the next symbol is known.

Forgetting of a domain is KL(true row || model), in nats, with a known optimum of zero and next to no noise of
evaluation. Chains as data for language models: Edelman et al. (arXiv 2402.11004), Bietti et al. (arXiv 2306.00802). It
gives up everything beyond one symbol of memory.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lit_consistency.data.worlds.base import PARTS, SPLITS, Probe, World, check_choice, check_range, shuffled, stream
from lit_consistency.data.worlds.vocabulary import word_tokenizer

SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou")
N_HELD_OUT = 50  # held-out documents, rows or questions per chain: 50 * 63 transitions
N_TAGS = 40  # tags in the tokenizer, whatever the number of chains


@dataclass(frozen=True)
class MarkovChains(World):
    """Documents of a tag and ``length`` symbols, e.g. ``BA ko ri ko ...``, drawn from the chain of the tag.

    A chain starts in its stationary distribution, so every position of a document weighs the rows of the chain alike.
    Parts of the text: ``train`` and ``held_out`` (fresh sequences), both of the old chains. Task: ``new_chain``, whose
    prompt is a new tag and the first symbol. Probes: ``old`` and ``new``: the beginning of a fresh sequence, asked for
    the most probable next symbol, tag ``chain``.

    Args:
        n_symbols: States of every chain.
        n_chains: Number of old chains, which are in the text.
        n_new: Number of new chains, which are in the task.
        concentration: Parameter of the symmetric Dirichlet distribution from which the rows of a chain are drawn; small
            values make it nearly deterministic.
        length: Symbols in a document; the context needs one token more for the tag.
        n_documents: Documents per chain in ``train``.
        seed: Seed of the chains and the sequences; more chains or documents leave the first ones as they are.
    """

    n_symbols: int = 32
    n_chains: int = 6
    n_new: int = 1
    concentration: float = 0.15
    length: int = 64
    n_documents: int = 2000
    seed: int = 0

    tasks = ("new_chain",)

    def __post_init__(self) -> None:
        check_range("n_symbols", self.n_symbols, 2, len(SYLLABLES))
        check_range("n_chains", self.n_chains, 1, N_TAGS // 2)
        check_range("n_new", self.n_new, 1, N_TAGS // 2)
        check_range("concentration", self.concentration, 0.01, 100)
        check_range("length", self.length, 2, 100_000)
        check_range("n_documents", self.n_documents, 1, 10_000_000)

    @property
    def probe_names(self) -> tuple[str, ...]:
        """Names of the sets of questions."""
        return ("old", "new")

    def chains(self, kind: str = "old") -> list[str]:
        """Tags of the old or the new chains."""
        check_choice("kind", kind, self.probe_names)
        first, n = (0, self.n_chains) if kind == "old" else (N_TAGS // 2, self.n_new)
        return [syllable.upper() for syllable in SYLLABLES[first : first + n]]

    @cached_property
    def transitions(self) -> dict[str, np.ndarray]:
        """Tag -> true rows (n_symbols, n_symbols) float64; [i, j] is the probability of symbol j after symbol i."""
        return {tag: self._draw_chain(tag) for kind in self.probe_names for tag in self.chains(kind)}

    @cached_property
    def stationary(self) -> dict[str, np.ndarray]:
        """Tag -> stationary distribution (n_symbols,) float64, from which every document draws its first symbol."""
        return {tag: _stationary(rows) for tag, rows in self.transitions.items()}

    @cached_property
    def entropy_rate(self) -> dict[str, float]:
        """Tag -> nats per symbol: the least loss on the transitions of the chain."""
        return {tag: float(self.stationary[tag] @ _entropy(rows)) for tag, rows in self.transitions.items()}

    def documents(self, part: str = "train") -> Iterator[str]:
        """Yields sequences of the old chains in shuffled order."""
        check_choice("part", part, PARTS)
        n = self.n_documents if part == "train" else N_HELD_OUT
        sequences = [(tag, i) for tag in self.chains() for i in range(n)]
        for tag, i in shuffled(sequences, "markov", self.seed, part, "order"):
            yield " ".join([tag, *self._sequence(tag, part, i)])

    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        """Pairs of ``TAG symbol`` and the rest of the sequence: every token of a completion is a transition."""
        check_choice("task", task, self.tasks)
        check_choice("split", split, SPLITS)
        n = self.n_documents if split == "train" else N_HELD_OUT
        sequences = [(tag, self._sequence(tag, split, i)) for tag in self.chains("new") for i in range(n)]
        pairs = [(f"{tag} {symbols[0]}", " " + " ".join(symbols[1:])) for tag, symbols in sequences]
        return shuffled(pairs, "markov", self.seed, task, split, "order")

    def probes(self, name: str) -> list[Probe]:
        """Questions for the most probable next symbol of a fresh sequence, with all symbols as choices."""
        check_choice("probes", name, self.probe_names)
        choices = tuple(f" {symbol}" for symbol in self._symbols)
        probes = []
        for tag in self.chains(name):
            for i in range(N_HELD_OUT):
                cut = stream("markov", self.seed, "cut", i).randrange(1, self.length)
                seen = self._sequence(tag, "probes", i)[:cut]
                best = int(self.transitions[tag][self._symbols.index(seen[-1])].argmax())
                # after the same symbol the answer is the same: one row of the chain, one fact
                cluster = f"{tag} {seen[-1]}"
                probes.append(Probe(" ".join([tag, *seen]), choices[best], choices, cluster, {"chain": tag}))
        return shuffled(probes, "markov", self.seed, "probes", name, "order")

    def tokenizer(self) -> Tokenizer:
        """One token for every symbol and every tag."""
        tags = [syllable.upper() for syllable in SYLLABLES[:N_TAGS]]
        return word_tokenizer([" ".join([*SYLLABLES, *tags])])

    def optimum(self) -> dict[str, float]:
        """The best numbers that a model can reach.

        Returns:
            ``kl`` 0; ``accuracy`` 1 and ``chance`` 1 / n_symbols of the questions; ``nats_per_token/<tag>``, the
            entropy rate of each chain.
        """
        rates = {f"nats_per_token/{tag}": rate for tag, rate in self.entropy_rate.items()}
        return {"kl": 0.0, "accuracy": 1.0, "chance": 1 / self.n_symbols, **rates}

    def true_log_probs(self, document: str) -> Tensor:
        """True log-probabilities at every token of a document but the tag.

        Args:
            document: ``TAG symbol symbol ...`` of an old or a new chain, or the beginning of one.

        Returns:
            (T - 1, V) float32 for T tokens: entry [t, v] is the log-probability of token v at position t + 1, minus
            infinity for tokens that are no symbol.
        """
        tag, *symbols = document.split()
        states = [self._symbols.index(symbol) for symbol in symbols]
        rows = np.vstack([self.stationary[tag], self.transitions[tag][states[:-1]]])
        truth = torch.full((len(rows), self._vocab_size), -torch.inf, dtype=torch.float32)
        truth[:, self._symbol_ids] = torch.from_numpy(rows).log().float()
        return truth

    def kl(self, log_probs: np.ndarray, kind: str = "old") -> dict[str, float]:
        """Mean of KL(true row || model) per chain, weighted by the chain's true stationary distribution.

        Args:
            log_probs: (n, n_symbols, n_symbols), the model's log-probability of symbol j after symbol i for each chain
                of the kind; rows need not sum to one over the symbols if the model gives probability to other tokens.
            kind: ``old`` or ``new`` chains.

        Returns:
            Tag -> nats per symbol.
        """
        tags = self.chains(kind)
        if np.shape(log_probs) != (expected := (len(tags), self.n_symbols, self.n_symbols)):
            raise ValueError(f"log_probs has the shape {np.shape(log_probs)}: expected {expected}")
        return {
            tag: float(self.stationary[tag] @ _kl(self.transitions[tag], table))
            for tag, table in zip(tags, log_probs, strict=True)
        }

    @torch.no_grad()
    def model_kl(
        self, model: Callable[[Tensor], Tensor], kind: str = "old", device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """Mean of KL(true row || model) per chain over all transitions of fresh sequences.

        Sequences start in the stationary distribution, so in expectation every position weighs the rows by it.

        Args:
            model: Maps tokens (B, T) int64 to logits (B, T, V) of the next token; T is ``length``, B 50.
            kind: ``old`` or ``new`` chains.
            device: Where the model wants its tokens.

        Returns:
            Tag -> nats per symbol.
        """
        tokenizer = self.tokenizer()
        by_chain = {}
        for tag in self.chains(kind):
            sequences = [self._sequence(tag, "kl", i) for i in range(N_HELD_OUT)]
            tokens = torch.tensor([tokenizer.encode(" ".join([tag, *symbols[:-1]])).ids for symbols in sequences])
            # to the CPU first: not every device has float64
            log_probs = torch.log_softmax(model(tokens.to(device)).cpu().double(), dim=-1)[:, 1:, self._symbol_ids]
            states = [[self._symbols.index(symbol) for symbol in symbols[:-1]] for symbols in sequences]
            by_chain[tag] = float(_kl(self.transitions[tag][np.array(states)], log_probs.numpy()).mean())
        return by_chain

    @property
    def _symbols(self) -> tuple[str, ...]:
        return SYLLABLES[: self.n_symbols]

    @cached_property
    def _symbol_ids(self) -> list[int]:
        return self.tokenizer().encode(" ".join(self._symbols)).ids

    @cached_property
    def _vocab_size(self) -> int:
        return self.tokenizer().get_vocab_size()

    def _draw_chain(self, tag: str) -> np.ndarray:
        # gammavariate and the linear algebra may differ between platforms by a rounding; a symbol changes only where a
        # uniform draw falls into that gap, some 1e-15 of them
        rng = stream("markov", self.seed, "chain", tag)
        weights = [[rng.gammavariate(self.concentration, 1) for _ in self._symbols] for _ in self._symbols]
        table = np.array(weights)
        return table / table.sum(1, keepdims=True)

    @cached_property
    def _cumulative(self) -> dict[str, tuple[list[float], list[list[float]]]]:
        """Tag -> cumulative sums of the stationary distribution and of the rows, without the last, which is 1."""
        return {
            tag: (self.stationary[tag].cumsum()[:-1].tolist(), rows.cumsum(1)[:, :-1].tolist())
            for tag, rows in self.transitions.items()
        }

    def _sequence(self, tag: str, *name: object) -> list[str]:
        """The symbols of one document; every document has its own stream."""
        rng = stream("markov", self.seed, tag, *name)
        start, rows = self._cumulative[tag]
        states = [bisect(start, rng.random())]
        while len(states) < self.length:
            states.append(bisect(rows[states[-1]], rng.random()))
        return [self._symbols[state] for state in states]


def _stationary(rows: np.ndarray) -> np.ndarray:
    """The distribution pi with ``pi @ rows = pi``, by least squares with the sum as one more equation."""
    n = len(rows)
    equations = np.vstack([rows.T - np.eye(n), np.ones(n)])
    pi = np.linalg.lstsq(equations, np.append(np.zeros(n), 1.0), rcond=None)[0].clip(min=0)
    return pi / pi.sum()


def _entropy(rows: np.ndarray) -> np.ndarray:
    """Entropy of each row, in nats."""
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)


def _kl(rows: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """KL of each row, in nats; what has probability zero in truth counts nothing, whatever the model says."""
    return -_entropy(rows) - (rows * np.where(rows > 0, log_probs, 0)).sum(-1)
