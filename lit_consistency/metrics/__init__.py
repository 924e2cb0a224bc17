"""Numbers from tensors: sums and counts first, division last."""

from lit_consistency.metrics.generation import (
    AnswerRule,
    NumberRule,
    exact_match,
    extract,
    maj_at_k,
    majority,
    mean_over_samples,
    normalize,
    number_value,
    pass_at_k,
)
from lit_consistency.metrics.items import ItemScores
from lit_consistency.metrics.rouge import rouge_l
from lit_consistency.metrics.token_loss import TokenLoss, bits_per_byte, nats_per_token

__all__ = [
    "AnswerRule",
    "ItemScores",
    "NumberRule",
    "TokenLoss",
    "bits_per_byte",
    "exact_match",
    "extract",
    "maj_at_k",
    "majority",
    "mean_over_samples",
    "nats_per_token",
    "normalize",
    "number_value",
    "pass_at_k",
    "rouge_l",
]
