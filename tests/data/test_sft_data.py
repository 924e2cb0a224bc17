from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources.mixture import RowMixture
from lit_consistency.data.sources.rows import RowFiles
from lit_consistency.data.tokens.prompts import Example
from tests.data.helpers import ListRows, assistant, learned, text_of, user, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:data.global_batch_size")  # sets of a few rows
PAIRS = [(f"the question {i} ", "the answer " * (i % 5 + 1) + str(i)) for i in range(30)]


def opened(folder: Path, pairs: list[tuple[str, str]] = PAIRS, **options: Any) -> SFTData:
    data = SFTData(ListRows(pairs), tokenizer_dir=folder, **{"global_batch_size": 4, "micro_batch_size": 4, **options})
    data.setup()
    return data


def gradient(data: SFTData) -> Tensor:
    """Gradient of one epoch's summed loss for a table of next tokens, which sees no more than the batch's pairs."""
    table = nn.Embedding(350, 350, dtype=torch.float64)
    nn.init.zeros_(table.weight)
    for batch in data.train_dataloader():
        logits = table(batch["tokens"]).flatten(0, 1)
        nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum").backward()
    assert table.weight.grad is not None
    return table.weight.grad


def test_packing_keeps_every_pair_of_token_and_target(tokenizer_folder: Path) -> None:
    packed, loose = (opened(tokenizer_folder, block_size=64, packing=packing) for packing in (True, False))
    assert packed.stats()["train"]["n_rows"] < loose.stats()["train"]["n_rows"] == 30
    assert packed.stats()["train"]["n_supervised"] == loose.stats()["train"]["n_supervised"]
    torch.testing.assert_close(gradient(packed), gradient(loose), rtol=1e-12, atol=1e-12)


def test_packed_batches_have_one_shape_and_loose_ones_fit_their_rows(tokenizer_folder: Path) -> None:
    packed = {tuple(batch["tokens"].shape) for batch in opened(tokenizer_folder, block_size=64).train_dataloader()}
    assert packed == {(4, 64)}
    loose = opened(tokenizer_folder, block_size=512, packing=False).train_dataloader()
    for batch in loose:
        longest = int((batch["documents"] >= 0).sum(1).max())
        assert batch["tokens"].shape[1] == -(-longest // 8) * 8
        assert batch["documents"].max() == 0


def test_rows_grouped_by_length_have_the_same_gradient_and_less_padding(tokenizer_folder: Path) -> None:
    options: dict[str, Any] = {"packing": False, "global_batch_size": 15, "micro_batch_size": 3, "block_size": 512}
    loose, grouped = (opened(tokenizer_folder, group_by_length=group, **options) for group in (False, True))
    places = [sum(batch["tokens"].numel() for batch in data.train_dataloader()) for data in (loose, grouped)]
    assert places[1] < places[0]
    torch.testing.assert_close(gradient(grouped), gradient(loose), rtol=1e-12, atol=1e-12)
    rows, _ = loose.opened("train")
    assert rows.lengths.tolist() == [len(rows[i].tokens) for i in range(len(rows))]


def test_every_training_batch_learns_something(tokenizer_folder: Path) -> None:
    loader = opened(tokenizer_folder, micro_batch_size=1, packing=False).train_dataloader()
    assert min(int(batch["supervised"]) for batch in loader) > 0


def test_rows_that_are_all_cut_away_are_an_error(tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to learn from: ListRows: 1 row, 1 dropped, .*block_size"):
        opened(tokenizer_folder, [("x" * 50, "y")], block_size=8)


def test_counts_tell_what_was_cut(tokenizer_folder: Path) -> None:
    stats = opened(tokenizer_folder, block_size=16).stats()["train"]
    assert stats["n_truncated"] > 0
    assert stats["n_documents"] + stats["n_dropped"] == 30


def test_a_bad_row_leaves_nothing_in_the_cache(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = SFTData(
        ListRows([("x" * 50, "y")]),
        tokenizer_dir=tokenizer_folder,
        block_size=8,
        too_long="refuse",
        cache_dir=tmp_path / "t",
    )
    with pytest.raises(ValueError, match="list:1: "):
        data.prepare_data()
    assert [path for path in (tmp_path / "t").iterdir() if path.is_dir()] == []


def test_validation_share_divides_one_file_and_no_prompt_is_on_both_sides(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    rows = [{"query": f"the question {i % 40}", "response": f"the answer {i}"} for i in range(120)]
    file = RowFiles(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    data = SFTData(file, validation_share=0.2, tokenizer_dir=tokenizer_folder)
    data.setup()
    stats = data.stats()
    assert stats["train"]["n_documents"] + stats["validation"]["n_documents"] == 120
    assert data.validation is not None
    sides = [{row.messages[0]["content"] for row in side.rows()} for side in (data.train, data.validation)]  # type: ignore[union-attr]
    assert len(sides[0] | sides[1]) == 40
    assert not sides[0] & sides[1]
    assert 1 <= len(sides[1]) <= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 1.0}, "validation_share = 1.0: expected null, or 0 < validation_share < 1"),
        ({"validation_share": 0.1, "validation": ListRows(PAIRS)}, "validation_share = 0.1: expected validation: null"),
    ],
)
def test_a_bad_validation_share_is_named(options: dict[str, Any], message: str, tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SFTData(ListRows(PAIRS), tokenizer_dir=tokenizer_folder, **options)


def test_rows_that_are_divided_already_are_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}]))
    for rows in (RowFiles(file, "train", 0.1), RowMixture({"a": RowFiles(file, "train", 0.1)})):
        with pytest.raises(ValueError, match="RowFiles is divided already .part = train.; expected part: all"):
            SFTData(rows, validation_share=0.1, tokenizer_dir=tokenizer_folder)


def test_fields_that_are_not_used_are_said_once_with_their_counts(tokenizer_folder: Path, tmp_path: Path) -> None:
    rows = [{"query": f"the question {i}", "response": "the answer", "type": "sum"} for i in range(12)]
    rows[3]["level"] = "5"
    file = RowFiles(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    for _ in range(2):  # made, and opened from the cache
        data = SFTData(file, tokenizer_dir=tokenizer_folder)
        with pytest.warns(UserWarning, match=r"train: fields that are not used: level \(1 row\), type \(12 rows\)$"):
            data.setup()


# what a conversation learns of every row, in the order of the file
READ: list[tuple[dict[str, Any], list[str]]] = [
    ({"instruction": "Colour?", "context": "The house has a green door.", "response": "Green."}, ["Green."]),
    ({"instruction": "And?", "history": [["How wide?", "Nine."]], "output": "Forty."}, ["Nine.", "Forty."]),
    ({"messages": [user("2+2?"), {**assistant("5"), "weight": 0}, user("Again."), assistant("4")]}, ["4"]),
    ({"messages": [user("2+2?"), assistant("4"), user("Why?"), {**assistant("x"), "train": False}]}, ["4"]),
    ({"text": "the day", "id": 1, "topic": "time"}, ["the day"]),
]


def test_rows_of_many_formats_are_learned_as_they_say(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = RowFiles(str(write_jsonl(tmp_path / "rows.jsonl", [row for row, _ in READ])))
    data = SFTData(file, tokenizer_dir=tokenizer_folder, packing=False)
    with pytest.warns(UserWarning, match=r"fields that are not used: topic \(1 row\)$"):
        data.setup()
    shard = data._shards["train"]
    assert shard.supervised is not None
    for i, (row, answers) in enumerate(READ):
        place = slice(*shard.offsets[i : i + 2])
        example = Example(shard.tokens[place], shard.supervised[place])
        assert learned(data.tokenizer, example) == [f"{answer}<|endoftext|>" for answer in answers]
        if "context" in row:
            assert row["context"] in text_of(data.tokenizer, example.tokens)
