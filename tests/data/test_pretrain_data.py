from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sources.documents import TextFiles
from tests.data.helpers import ListSource, text_of

TEXTS = [f"the question {i} and the answer {i}" for i in range(40)]


def test_an_epoch_is_the_whole_text(tokenizer_folder: Path) -> None:
    data = PretrainData(
        ListSource(TEXTS), tokenizer_dir=tokenizer_folder, global_batch_size=4, micro_batch_size=2, block_size=16
    )
    data.setup()
    predicted = 0
    pieces = []
    for batch in data.train_dataloader():
        assert batch["tokens"].shape == (2, 16)
        predicted += int((batch["targets"] != -100).sum())
        pieces += [row[number >= 0] for row, number in zip(batch["tokens"], batch["documents"], strict=True)]
    # every document predicts all its tokens but the first, save where a row ends and the next begins with its successor
    stats = data.stats()["train"]
    assert predicted == stats["n_supervised"] == stats["n_tokens"] - stats["n_documents"]
    assert sum(len(piece) for piece in pieces) == stats["n_tokens"] - 1
    assert sum(text_of(data.tokenizer, piece).count("question") for piece in pieces) > 20
    assert stats["n_bytes"] == sum(map(len, TEXTS))


def test_a_changed_file_is_tokenized_anew(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    counts = []
    for text in ("the day", "the day and the answer"):
        file.write_text(text)
        batch = {"block_size": 4, "global_batch_size": 1, "micro_batch_size": 1}
        data = PretrainData(TextFiles(str(file)), tokenizer_dir=tokenizer_folder, **batch)
        data.setup()
        counts.append(data.stats()["train"]["n_bytes"])
    assert counts == [7, 22]


def test_no_documents_is_an_error(tokenizer_folder: Path) -> None:
    data = PretrainData(ListSource([]), tokenizer_dir=tokenizer_folder)
    with pytest.raises(ValueError, match="data, train: nothing to learn from: ListSource: 0 documents; expected more"):
        data.prepare_data()


def test_held_out_documents_train_never(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(TEXTS))
    parts = [TextFiles(str(file), "\n\n", part=part, validation_share=0.25) for part in ("train", "validation")]
    data = PretrainData(*parts, tokenizer_dir=tokenizer_folder, block_size=16)
    data.setup()
    stats = data.stats()
    assert stats["train"]["n_documents"] + stats["validation"]["n_documents"] == 40
    assert stats["validation"]["n_documents"] > 0
