"""Token sequences put together as trees, so that what several of them begin with is computed once.

Sequences are sorted, so that common beginnings are neighbours; neighbours are put into one tree, whose nodes
stand in depth-first order, and a node sees its ancestors only. A question with its candidates, the pairs of BLiMP, and
the few-shot head of a whole task are all the same case. Identical tokens with identical beginnings are one node, and a
token asked for at one node is asked once.

How much goes into a tree is decided by cost. A tree of n nodes costs n (1 + n / s): matrices are linear, attention
under a mask is quadratic, and s is the length at which both are equal. A tree whose sequences all begin with the same
c tokens and have x nodes of their own pays x^2 / s for nodes that look past one another; a new tree would pay
c (1 + c / s) for the beginning once more. The cost of a node of one's own is least where both are equal, and there a
tree ends. Texts that share nothing stay alone, without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Query(NamedTuple):
    """A sequence to score: ``fed`` (T,) int64, and ``targets`` (T,) int64, -100 where nothing is asked."""

    fed: np.ndarray
    targets: np.ndarray


class PrefixTree(NamedTuple):
    """A tree of N tokens in depth-first order, a row of a batch, with Q questions.

    Args:
        tokens: (N,) int64.
        positions: (N,) int64, depth of the node.
        ends: (N,) int64, one past the node's last descendant: i sees j if j <= i < ends[j].
        nodes: (Q,) int64, ascending: where each question is asked.
        targets: (Q,) int64: the token it asks for.
        members: (M,) int64, for every supervised token of every sequence of the tree, the sequence.
        questions: (M,) int64, and the question that it is.
    """

    tokens: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    nodes: np.ndarray
    targets: np.ndarray
    members: np.ndarray
    questions: np.ndarray

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children: then causal attention is the same."""
        return bool((self.ends == len(self.ends)).all())


def prefix_trees(queries: Sequence[Query], budget: int, equal_cost: float) -> list[PrefixTree]:
    """Trees that hold all sequences that ask something.

    Args:
        queries: the sequences.
        budget: most nodes of a tree that holds more than one path; a longer sequence stands alone.
        equal_cost: nodes at which attention costs as much as the matrices; 0 where no mask can be given, then only
            sequences that continue one another share a tree.
    """
    keys = {i: query.fed.astype(">i8").tobytes() for i, query in enumerate(queries) if (query.targets >= 0).any()}
    finished: list[PrefixTree] = []
    tree = _Builder(equal_cost)
    for i in sorted(keys, key=lambda i: (keys[i], i)):
        # what comes after the last target is not needed
        n = int(np.flatnonzero(queries[i].targets >= 0)[-1]) + 1
        query = Query(queries[i].fed[:n], queries[i].targets[:n])
        if tree.sequences and not tree.welcomes(query, budget):
            finished.append(tree.finish())
            tree = _Builder(equal_cost)
        tree.add(i, query)
    return [*finished, tree.finish()] if tree.sequences else finished


class _Builder:
    """A tree in the making: pieces of nodes, and the path to the last sequence's end."""

    def __init__(self, equal_cost: float) -> None:
        self.equal_cost = equal_cost
        self.n = 0
        self.common = 0  # tokens that all sequences begin with
        self.last = np.empty(0, dtype=np.int64)
        self.path = np.empty(0, dtype=np.int64)
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.closed: list[tuple[np.ndarray, int]] = []
        self.sequences: list[int] = []
        self.targets: list[tuple[np.ndarray, np.ndarray]] = []

    def welcomes(self, query: Query, budget: int) -> bool:
        """Whether the sequence is better computed here than in a tree of its own."""
        shared = _shared(self.last, query.fed)
        n = self.n + len(query.fed) - shared
        if n == self.n or shared == self.n:  # adds nothing, or continues the only path
            return True
        common = min(self.common, shared)
        return n <= budget and (n - common) ** 2 <= common * (self.equal_cost + common) and self.equal_cost > 0

    def add(self, number: int, query: Query) -> None:
        """Append the nodes that are not there yet."""
        shared = _shared(self.last, query.fed)
        fresh = np.arange(self.n, self.n + len(query.fed) - shared)
        self.common = len(query.fed) if shared == self.n else min(self.common, shared)
        self.closed.append((self.path[shared:], self.n))
        self.path = np.concatenate([self.path[:shared], fresh])
        self.tokens.append(query.fed[shared:])
        self.positions.append(np.arange(shared, len(query.fed)))
        self.n += len(fresh)
        self.last = query.fed
        taken = np.flatnonzero(query.targets >= 0)
        self.sequences.append(number)
        self.targets.append((self.path[taken], query.targets[taken]))

    def finish(self) -> PrefixTree:
        """The tree."""
        ends = np.full(self.n, self.n)
        for nodes, end in self.closed:
            ends[nodes] = end
        nodes = np.concatenate([nodes for nodes, _ in self.targets])
        targets = np.concatenate([targets for _, targets in self.targets])
        width = int(targets.max()) + 1
        distinct, questions = np.unique(nodes * width + targets, return_inverse=True)
        return PrefixTree(
            tokens=np.concatenate(self.tokens),
            positions=np.concatenate(self.positions),
            ends=ends,
            nodes=distinct // width,
            targets=distinct % width,
            members=np.repeat(self.sequences, [len(nodes) for nodes, _ in self.targets]),
            questions=questions.reshape(-1),
        )


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n
