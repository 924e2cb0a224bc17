"""From LitGPT's format to that of transformers: the family, its ``config.json``, and the weights' names."""

from lit_consistency.model.to_hf.families import family_of, hf_config
from lit_consistency.model.to_hf.weights import embedding_is_head, finite, hf_weights

__all__ = ["embedding_is_head", "family_of", "finite", "hf_config", "hf_weights"]
