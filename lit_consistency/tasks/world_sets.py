"""A world's questions and true distributions as watched sets: learning and forgetting, counted during a run."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from lit_consistency.data.worlds.base import World
from lit_consistency.data.worlds.markov import MarkovChains
from lit_consistency.inference.items import Candidate, Item
from lit_consistency.tasks.choice import choice_item
from lit_consistency.tasks.watched import WatchedSet, check_choice, check_positive


class WorldProbes(WatchedSet):
    """Cloze questions of a world; ``exact`` is the share whose answer is the model's first choice out of all tokens.

    Args:
        world: The world.
        probes: One of the world's sets of questions.
        max_items: How many questions are asked; the sets are shuffled, so the first ones are a fair sample.
        metric: The number by which the set is judged, ``exact`` or ``loss``.
    """

    def __init__(self, world: World, probes: str, max_items: int = 500, metric: str = "exact") -> None:
        check_choice("probes", probes, world.probe_names)
        check_choice("metric", metric, ("exact", "loss"))
        check_positive("max_items", max_items)
        self.world = world
        self.probes = probes
        self.max_items = max_items
        self.metric = metric

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """One item a question, with the right answer as its only candidate."""
        questions = self.world.probes(self.probes)[: self.max_items]
        return [choice_item(tokenizer, q.prompt, [q.answer], 0, block_size) for q in questions]


class ChainSet(WatchedSet):
    """KL(true row || model) on fresh sequences of a world of Markov chains, in nats per symbol; zero is perfect.

    Args:
        world: The chains.
        kind: ``old`` chains (of the text) or ``new`` ones (of the task).
        max_documents: How many sequences are scored.
    """

    metric = "kl"

    def __init__(self, world: MarkovChains, kind: str = "old", max_documents: int = 60) -> None:
        check_choice("kind", kind, world.probe_names)
        check_positive("max_documents", max_documents)
        self.world = world
        documents = (
            world.documents("held_out") if kind == "old" else (p + c for p, c in world.rows("new_chain", "test"))
        )
        self.texts = list(islice(documents, max_documents))

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """One item a sequence; its tag is context."""
        found = []
        for text in self.texts:
            tokens = tokenizer.encode(text, bos=False).numpy()
            if len(tokens) > block_size + 1:
                raise ValueError(
                    f"block_size = {block_size}: expected at least {len(tokens) - 1}, the length of a document"
                )
            found.append(Item([Candidate(tokens, np.arange(len(tokens)) > 0, len(text.encode()))], gold=0))
        return found

    def truth(self, tokenizer: Tokenizer) -> Tensor:
        """True log-probabilities (P, V) of every symbol of every sequence."""
        return torch.cat([self.world.true_log_probs(text) for text in self.texts])
