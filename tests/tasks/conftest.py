"""The tiny tokenizers and models of data and evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.inference.load import Loaded, load_model
from tests.data.conftest import raw_tokenizer, tokenizer, tokenizer_folder
from tests.evaluation.conftest import tasks, tiny, tiny_folder
from tests.tasks.tiny import tiny_model

__all__ = ["raw_tokenizer", "tasks", "tiny", "tiny_folder", "tokenizer", "tokenizer_folder"]


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> Loaded:
    """A model whose texts have no token before the first but the end of the last."""
    return load_model(tiny_folder, "cpu")


@pytest.fixture(scope="session")
def loaded_bos(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model whose texts are opened by a token of their own."""
    return load_model(tiny_model(tmp_path_factory.mktemp("bos_model") / "model", bos=True), "cpu")
