"""Numbers from tensors: sums and counts first, division last."""

from lit_consistency.metrics.items import ItemScores, summarize
from lit_consistency.metrics.token_loss import TokenLoss, bits_per_byte, nats_per_token

__all__ = ["ItemScores", "TokenLoss", "bits_per_byte", "nats_per_token", "summarize"]
