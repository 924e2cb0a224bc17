"""Holding out: which documents or rows train and which validate, decided by their content.

Membership is a function of the text alone. The same document is never in both parts, whatever the order of the files,
and adding files moves nothing from one part to the other. The price: the share holds in expectation, not exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_consistency.records.fingerprints import seed_of

Part = Literal["all", "train", "validation"]


@dataclass(frozen=True)
class HoldOut:
    """A part of the data.

    Args:
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, 0 <= share < 1; must be above 0 where `part` is not `all`.
    """

    part: Part = "all"
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        if self.part not in ("all", "train", "validation"):
            raise ValueError(f"part = {self.part!r}: expected all, train or validation")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share = {self.validation_share}: expected 0 <= validation_share < 1")
        if self.part != "all" and self.validation_share == 0:
            raise ValueError(f"part = {self.part} with validation_share = 0: expected 0 < validation_share < 1")

    def keeps(self, text: str) -> bool:
        """Whether the document or row with this text belongs to the part."""
        if self.part == "all":
            return True
        held_out = seed_of(text) < self.validation_share * 2**64
        return held_out == (self.part == "validation")

    def fingerprint(self) -> dict[str, Any]:
        """The two options, as JSON."""
        return asdict(self)
