"""What happens during a run: forgetting, weight change, throughput, preemption, checkpoints, the run record."""

from lit_consistency.callbacks.checkpoint import StepCheckpoint
from lit_consistency.callbacks.checkpoint_io import AtomicCheckpointIO
from lit_consistency.callbacks.exact_resume import ExactResume
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.manifest import CheckpointError
from lit_consistency.callbacks.metrics_file import MetricsFile
from lit_consistency.callbacks.prediction_writer import PredictionWriter
from lit_consistency.callbacks.preemption import Preemption
from lit_consistency.callbacks.progress import RunProgress
from lit_consistency.callbacks.run_board import RunBoard
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "CheckpointError",
    "ExactResume",
    "Forgetting",
    "MetricsFile",
    "PredictionWriter",
    "Preemption",
    "RunBoard",
    "RunProgress",
    "RunRecord",
    "StepCheckpoint",
    "Throughput",
]
