"""Class paths of configurations that were right once, and what stands there now."""

from __future__ import annotations

from typing import Any

TASK = "a task instead, as `retain: [blimp]` or an inline task, see configs/quickstart.yaml"
_P = "lit_consistency."
_NOW = {
    "callbacks.AtomicCheckpointIO": "checkpointing.io.AtomicCheckpointIO",
    "callbacks.MetricsFile": "loggers.metrics_file.MetricsFile",
    "loggers.tensorboard.RunBoard": "loggers.tensorboard.TensorBoardRunLogger",
    "callbacks.RunBoard": "loggers.tensorboard.TensorBoardRunLogger",
    "callbacks.checkpoint.StepCheckpoint": "callbacks.StepCheckpoint",
    "callbacks.checkpoint_io.AtomicCheckpointIO": "checkpointing.io.AtomicCheckpointIO",
    "callbacks.metrics_file.MetricsFile": "loggers.metrics_file.MetricsFile",
    "callbacks.run_board.RunBoard": "loggers.tensorboard.TensorBoardRunLogger",
    "data.hub.HubDataset": "data.HubDataset",
    "data.hub.HubRows": "data.HubRows",
    "data.replay.Replay": "data.Replay",
    "data.rows.RowFiles": "data.RowFiles",
    "data.sources.JsonLines": "data.JsonLines",
    "data.sources.Parquet": "data.Parquet",
    "data.sources.TextFiles": "data.TextFiles",
    "evaluation.TaskRows": "tasks.TaskRows",
    "evaluation.task_rows.TaskRows": "tasks.TaskRows",
    "strategy.FSDP2Strategy": "distributed.FSDP2Strategy",
}
# sets that were watched, each with the modules in which it stood
_SETS = {
    "ChainSet": ("data.worlds", "data.worlds.watched", "tasks"),
    "ChoiceSet": ("data", "data.choices", "tasks"),
    "ClozeSet": ("data", "data.choices", "tasks"),
    "PreparedSet": ("evaluation", "evaluation.prepared", "tasks"),
    "RetainData": ("data", "data.watch", "tasks"),
    "RowSet": ("data", "data.watch", "tasks"),
    "TaskSet": ("evaluation", "evaluation.task_set", "tasks"),
    "TextSet": ("data", "data.watch", "tasks"),
    "WorldProbes": ("data.worlds", "data.worlds.watched", "tasks"),
}
MOVED = {_P + old: _P + new for old, new in _NOW.items()}
MOVED |= {f"{_P}{module}.{name}": TASK for name, modules in _SETS.items() for module in modules}


def refuse_moved(value: Any) -> str | None:
    """What to say of the first old class path in a value, at any depth; None where there is none."""
    if isinstance(value, str):
        return f"class_path = {value}: expected {MOVED[value]}" if value in MOVED else None
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return next((text for entry in value if (text := refuse_moved(entry))), None)
    return None
