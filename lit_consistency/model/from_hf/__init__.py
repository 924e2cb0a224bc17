"""From transformers' format to LitGPT's: configuration, weights, and the folder."""

from lit_consistency.model.from_hf.convert import Imported, import_model

__all__ = ["Imported", "import_model"]
