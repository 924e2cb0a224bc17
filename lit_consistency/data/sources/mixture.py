"""Several sets of rows, or of documents, in one training, each with its weight.

Every set has tokens and counts of its own; which of its rows an epoch holds is decided in ``loading/mixed_rows.py``.
Read one after the other (``rows``, ``documents``), as for validation, a mixture is its sets, whole and in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from tokenizers import Tokenizer

from lit_consistency.data.sources.documents import HeldOutDocuments, Source
from lit_consistency.data.sources.rows import Conversation, HeldOutRows, Rows

Set = TypeVar("Set", Source, Rows)


class Mixture(Generic[Set]):
    """Named sets with weights."""

    def __init__(self, sets: dict[str, Set], weights: dict[str, float] | None) -> None:
        if not sets or "" in sets:
            raise ValueError(f"sets = {', '.join(map(repr, sets)) or '{}'}: expected at least one, each with a name")
        if nested := [name for name, one in sets.items() if isinstance(one, Mixture)]:
            raise ValueError(f"sets.{nested[0]}: a mixture in a mixture; expected its sets here")
        if weights is not None:
            if weights.keys() != sets.keys():
                raise ValueError(f"weights = {weights}: expected a number for each of {', '.join(sets)}")
            if bad := [name for name, weight in weights.items() if not 0 < weight < float("inf")]:
                raise ValueError(f"weights.{bad[0]} = {weights[bad[0]]}: expected a number above 0")
        self.sets: dict[str, Set] = sets
        self.weights = weights

    def shares(self) -> dict[str, float] | None:
        """Each set's share of the learned tokens of an epoch; None: what it has."""
        if self.weights is None:
            return None
        return {name: weight / sum(self.weights.values()) for name, weight in self.weights.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Weights, and what each set depends on."""
        sets: dict[str, Any] = {name: one.fingerprint() for name, one in self.sets.items()}
        return {"kind": type(self).__name__, "weights": self.weights, "sets": sets}

    def default_tokenizer(self) -> Tokenizer | None:
        """That of the first set that brings one."""
        own = (one.default_tokenizer() for one in self.sets.values())
        return next((tokenizer for tokenizer in own if tokenizer is not None), None)


class RowMixture(Mixture[Rows], Rows):
    """Several sets of rows in one training.

    Args:
        sets: Name -> rows.
        weights: Name -> relative share of the learned tokens of an epoch, for each set: an epoch is as long as all
            sets together, of some sets it holds a part (the next epoch the next part), others it repeats. None takes
            every row of every set once.
    """

    def __init__(self, sets: dict[str, Rows], weights: dict[str, float] | None = None) -> None:
        super().__init__(sets, weights)
        styles = {one.prompt_style for one in sets.values()}
        self.prompt_style = styles.pop() if len(styles) == 1 else None

    def rows(self) -> Iterator[Conversation]:
        """Yields the rows of every set once, set after set."""
        for one in self.sets.values():
            yield from one.rows()


class TextMixture(Mixture[Source], Source):
    """Several sources of documents in one training.

    Args:
        sets: Name -> source.
        weights: As of ``RowMixture``.
    """

    def __init__(self, sets: dict[str, Source], weights: dict[str, float] | None = None) -> None:
        super().__init__(sets, weights)

    def documents(self) -> Iterator[str]:
        """Yields the documents of every source once, source after source."""
        for one in self.sets.values():
            yield from one.documents()


def divide(data: Source | Rows, validation_share: float) -> tuple[Source | Rows, Source | Rows]:
    """What trains and what is held out: of documents by their text, of rows by their prompts; of a mixture set by set.

    Raises:
        ValueError: The data are a part of something already.
    """
    if isinstance(data, Mixture):
        pairs = {name: divide(one, validation_share) for name, one in data.sets.items()}
        kind: Any = type(data)
        train = kind({name: pair[0] for name, pair in pairs.items()}, data.weights)
        return train, kind({name: pair[1] for name, pair in pairs.items()})  # what is measured has no weights
    part = getattr(getattr(data, "hold_out", None), "part", "all")
    if part != "all":
        raise ValueError(
            f"validation_share = {validation_share}: {type(data).__name__} is divided already (part = {part}); "
            "expected part: all"
        )
    whole: Any = data
    divided: Any = HeldOutDocuments if isinstance(data, Source) else HeldOutRows
    return divided(whole, "train", validation_share), divided(whole, "validation", validation_share)
