"""What is asked of a model, in a run and outside: tasks, their rows, prompts, formats, questions and measures."""

from lit_consistency.tasks.choice import ChoiceSet, ClozeSet
from lit_consistency.tasks.prepared import PreparedSet, prepare
from lit_consistency.tasks.training_rows import TaskRows
from lit_consistency.tasks.watched import RetainData, RowSet, TextSet, WatchedSet
from lit_consistency.tasks.watched_task import TaskSet
from lit_consistency.tasks.world_sets import ChainSet, WorldProbes

__all__ = [
    "ChainSet",
    "ChoiceSet",
    "ClozeSet",
    "PreparedSet",
    "RetainData",
    "RowSet",
    "TaskRows",
    "TaskSet",
    "TextSet",
    "WatchedSet",
    "WorldProbes",
    "prepare",
]
