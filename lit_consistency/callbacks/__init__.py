"""What happens during a run: forgetting, weight change, throughput, preemption, checkpoints, the run record."""

from lit_consistency.callbacks.exact_resume import ExactResume
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.kept_model import KeptModel
from lit_consistency.callbacks.prediction_writer import PredictionWriter
from lit_consistency.callbacks.preemption import Preemption
from lit_consistency.callbacks.progress import RunProgress
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.callbacks.step_checkpoint import StepCheckpoint
from lit_consistency.callbacks.throughput import Throughput

__all__ = [
    "ExactResume",
    "Forgetting",
    "KeptModel",
    "PredictionWriter",
    "Preemption",
    "RunProgress",
    "RunRecord",
    "StepCheckpoint",
    "Throughput",
]
