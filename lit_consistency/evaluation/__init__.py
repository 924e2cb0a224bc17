"""What is asked of the model: watched sets in, scores per item out."""

from lit_consistency.evaluation.divergence import forward_kl, log_probabilities
from lit_consistency.evaluation.prepared import PreparedSet
from lit_consistency.evaluation.score import score_items
from lit_consistency.evaluation.state import untouched

__all__ = ["PreparedSet", "forward_kl", "log_probabilities", "score_items", "untouched"]
