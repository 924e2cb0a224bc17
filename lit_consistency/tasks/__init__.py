"""What is asked of a model, in a run and outside: tasks, their rows, prompts, formats, questions and measures."""

from lit_consistency.tasks.choice import ChoiceTask, PairsTask
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.generation import GenerationTask
from lit_consistency.tasks.task import Task
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.text import TextTask
from lit_consistency.tasks.training_rows import TaskRows
from lit_consistency.tasks.watched import WatchedTask

__all__ = [
    "ChoiceTask",
    "CompletionTask",
    "GenerationTask",
    "PairsTask",
    "Task",
    "TaskData",
    "TaskRows",
    "TextTask",
    "WatchedTask",
]
