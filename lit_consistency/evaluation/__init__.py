"""What is asked of the model: watched sets in, scores per item out; and the rows of a task to train on."""

from lit_consistency.evaluation.divergence import forward_kl, log_probabilities, reverse_kl
from lit_consistency.evaluation.prepared import PreparedSet, prepare
from lit_consistency.evaluation.score import score_items
from lit_consistency.evaluation.state import untouched
from lit_consistency.evaluation.task_rows import TaskRows
from lit_consistency.evaluation.task_set import TaskSet

__all__ = [
    "PreparedSet",
    "TaskRows",
    "TaskSet",
    "forward_kl",
    "log_probabilities",
    "prepare",
    "reverse_kl",
    "score_items",
    "untouched",
]
