"""The tiny tokenizer and model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from tests.tasks.tiny import task_files, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny_model") / "model")


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    return task_files(tmp_path)
