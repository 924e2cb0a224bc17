"""What is asked of the model: watched sets in, scores per item out; and the rows of a task to train on."""

from lit_consistency.evaluation.divergence import forward_kl, log_probabilities
from lit_consistency.evaluation.prepared import PreparedSet
from lit_consistency.evaluation.score import score_items
from lit_consistency.evaluation.state import untouched
from lit_consistency.evaluation.task_rows import TaskRows

__all__ = ["PreparedSet", "TaskRows", "forward_kl", "log_probabilities", "score_items", "untouched"]
