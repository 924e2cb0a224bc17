from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.data.sources.hub import HubDataset, HubRows
from tests.data.helpers import write_jsonl


@pytest.fixture
def local_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    rows = [{"text": f"text {i}", "question": f"{i}?", "answer": f"{i}."} for i in range(10)]
    write_jsonl(tmp_path / "set" / "train.jsonl", rows)
    return str(tmp_path / "set")


def test_documents_and_rows_of_a_data_set(local_set: str) -> None:
    assert list(HubDataset(local_set).documents()) == [f"text {i}" for i in range(10)]
    rows = list(HubRows(local_set).rows())
    assert [message["content"] for message in rows[2].messages] == ["2?", "2."]
    assert rows[2].place == f"{local_set}/train:3"
    assert HubDataset(local_set).fingerprint() == HubDataset(local_set).fingerprint()
    assert HubDataset(local_set).fingerprint()["n_rows"] == 10


def test_columns_name_the_fields_of_a_data_set(local_set: str) -> None:
    rows = list(HubRows(local_set, columns={"prompt": "text", "completion": "answer"}).rows())
    assert [message["content"] for message in rows[2].messages] == ["text 2", "2."]
    assert rows[2].unused == ("question",)


def test_a_split_that_is_not_there_is_named(local_set: str) -> None:
    with pytest.raises(ValueError, match="split = nope: could not be loaded"):
        list(HubDataset(local_set, split="nope").documents())


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.records.extras.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"HubRows needs the package datasets.*lit_consistency\[hf\]"):
        HubRows("some/name")
