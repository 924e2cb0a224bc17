"""The tiny tokenizer and model of the evaluations."""

from tests.evaluation.conftest import tasks, tiny, tiny_folder

__all__ = ["tasks", "tiny", "tiny_folder"]
