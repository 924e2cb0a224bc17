"""The tiny tokenizers and models of data and evaluations."""

from tests.data.conftest import raw_tokenizer, tokenizer, tokenizer_folder
from tests.evaluation.conftest import tasks, tiny, tiny_folder

__all__ = ["raw_tokenizer", "tasks", "tiny", "tiny_folder", "tokenizer", "tokenizer_folder"]
