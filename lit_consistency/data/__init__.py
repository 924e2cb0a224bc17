"""What the model is trained on: sources of text and rows, tokens on disk, packing, the order of samples."""

from lit_consistency.data.rows import Row, Rows
from lit_consistency.data.sources import Source

__all__ = ["Row", "Rows", "Source"]
