"""Holding out: which documents or conversations train and which validate, decided by their content.

Membership is a function of a text alone: a document's own, or the prompt of a conversation, so that several answers to
one question are wholly on one side. The same text is never on both, whatever the order of the files, and adding files
moves nothing from one side to the other. The price: the share holds in expectation, not exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_consistency.records.fingerprints import seed_of

Part = Literal["all", "train", "validation"]


def counted(things: Iterable[object], what: str) -> str:
    """How many there are, as ``1 document`` or ``1,200 documents``."""
    n = sum(1 for _ in things)
    return f"{n:,} {what}{'s' * (n != 1)}"


def is_held_out(seed: int, validation_share: float) -> bool:
    """Whether the text with this ``seed_of`` is held out."""
    return seed < validation_share * 2**64


@dataclass(frozen=True)
class HoldOut:
    """One side of the data, or all of it.

    Args:
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share held out, 0 <= share < 1; must be above 0 where ``part`` is not ``all``.
        by: Whose text decides: the ``document`` itself, or the ``prompt`` of a conversation.
    """

    part: Part = "all"
    validation_share: float = 0.0
    by: Literal["document", "prompt"] = "document"

    def __post_init__(self) -> None:
        if self.part not in ("all", "train", "validation"):
            raise ValueError(f"part = {self.part!r}: expected all, train or validation")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share = {self.validation_share}: expected 0 <= validation_share < 1")
        if self.part != "all" and self.validation_share == 0:
            raise ValueError(f"part = {self.part} with validation_share = 0: expected 0 < validation_share < 1")
        if self.part == "all" and self.validation_share > 0:
            raise ValueError(
                f"validation_share = {self.validation_share} with part = all: expected part train or validation, or "
                "the option of that name of the data, which divides them into both"
            )

    def keeps(self, text: str) -> bool:
        """Whether what this text stands for, a document or a prompt, belongs to the part."""
        if self.part == "all":
            return True
        return is_held_out(seed_of(text), self.validation_share) == (self.part == "validation")

    def about(self) -> str:
        """The side in words, behind a number of what is divided; empty for all."""
        return (
            "" if self.part == "all" else f", divided by validation_share = {self.validation_share}, part {self.part}"
        )

    def fingerprint(self) -> dict[str, Any]:
        """The options, as JSON; ``by`` only where it decides anything, so that tokens of whole sets stay valid."""
        options = asdict(self)
        if self.part == "all" or self.by == "document":
            del options["by"]
        return options
