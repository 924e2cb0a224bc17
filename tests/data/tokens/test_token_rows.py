from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_consistency.data.tokens.token_files import Shard, ShardWriter, open_shard
from lit_consistency.data.tokens.token_rows import IGNORE, ConversationRows, PackedSequence, StreamRows


def make_shard(folder: Path, documents: list[list[int]], masks: list[list[int]] | None = None) -> Shard:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, 10_000, masked=masks is not None) as writer:
        for i, document in enumerate(documents):
            writer.add(document, np.array(masks[i]) if masks is not None else None)
        writer.finish({"fingerprint": {}})
    shard = open_shard(folder, {})
    assert shard is not None
    return shard


def as_lists(row: PackedSequence) -> dict[str, list[int]]:
    return {name: values.tolist() for name, values in row._asdict().items()}


def random_documents(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 9999, size=rng.integers(1, 15)).tolist() for _ in range(rng.integers(1, 20))]


def slow_stream(documents: list[list[int]], block_size: int) -> list[dict[str, list[int]]]:
    """Token by token: what follows it in its document, and where it stands."""
    stream = [
        (token, document[i + 1] if i + 1 < len(document) else IGNORE, number)
        for number, document in enumerate(documents)
        for i, token in enumerate(document)
    ][:-1]
    rows = []
    for start in range(0, len(stream), block_size):
        row: dict[str, list[int]] = {"tokens": [], "targets": [], "positions": [], "documents": []}
        numbers: list[int] = []
        for token, target, number in stream[start : start + block_size]:
            row["positions"].append(numbers.count(number))
            numbers.append(number)
            row["tokens"].append(token)
            row["targets"].append(target)
            row["documents"].append(sorted(set(numbers)).index(number))
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("block_size", [1, 4, 7, 500])
def test_stream_rows_are_those_of_a_loop(tmp_path: Path, seed: int, block_size: int) -> None:
    documents = random_documents(seed)
    rows = StreamRows(make_shard(tmp_path, documents), block_size)
    expected = slow_stream(documents, block_size)
    assert [as_lists(rows[i]) for i in range(len(rows))] == expected
    assert rows.supervised.tolist() == [sum(target != IGNORE for target in row["targets"]) for row in expected]


def test_a_document_by_hand(tmp_path: Path) -> None:
    rows = StreamRows(make_shard(tmp_path, [[5, 6, 1], [7, 1], [8, 9, 1]]), block_size=4)
    assert as_lists(rows[0]) == {
        "tokens": [5, 6, 1, 7],
        "targets": [6, 1, IGNORE, 1],
        "positions": [0, 1, 0 + 2, 0],
        "documents": [0, 0, 0, 1],
    }
    # the end of the second document begins the second row and predicts nothing
    assert as_lists(rows[1]) == {
        "tokens": [1, 8, 9],
        "targets": [IGNORE, 9, 1],
        "positions": [0, 0, 1],
        "documents": [0, 1, 1],
    }
    assert rows.supervised.tolist() == [3, 2]


CONVERSATIONS = [[10, 11, 12, 1], [20, 21, 1], [30, 31, 32, 33, 1], [40, 1]]
MASKS = [[0, 0, 1, 1], [0, 1, 1], [0, 0, 0, 1, 1], [1, 1]]


def test_conversations_alone(tmp_path: Path) -> None:
    rows = ConversationRows(make_shard(tmp_path, CONVERSATIONS, MASKS), block_size=6, packing=False, seed=0)
    assert len(rows) == 4
    assert as_lists(rows[2]) == {
        "tokens": [30, 31, 32, 33],
        "targets": [IGNORE, IGNORE, 33, 1],
        "positions": [0, 1, 2, 3],
        "documents": [0, 0, 0, 0],
    }
    # the first token of the last one is marked, but nothing predicts it
    assert rows.supervised.tolist() == [2, 2, 2, 1]


def test_packed_rows_hold_the_same_pairs(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, CONVERSATIONS, MASKS)
    loose, packed = (ConversationRows(shard, 6, packing, seed=0) for packing in (False, True))
    assert len(packed) < len(loose)

    def pieces(rows: ConversationRows) -> list[tuple[list[int], ...]]:
        found = []
        for i in range(len(rows)):
            row = rows[i]
            for number in range(row.documents.max() + 1):
                inside = row.documents == number
                found.append(tuple(values[inside].tolist() for values in (row.tokens, row.targets, row.positions)))
        return sorted(found)

    assert pieces(loose) == pieces(packed)
    assert [len(packed[i].tokens) <= 6 for i in range(len(packed))] == [True] * len(packed)
    assert packed.supervised.tolist() == [int((packed[i].targets != IGNORE).sum()) for i in range(len(packed))]


def test_documents_of_a_row_are_numbered_from_zero(tmp_path: Path) -> None:
    rows = ConversationRows(make_shard(tmp_path, CONVERSATIONS, MASKS), block_size=12, packing=True, seed=0)
    assert len(rows) == 1
    assert sorted(set(rows[0].documents.tolist())) == [0, 1, 2, 3]
    assert np.diff(rows[0].documents).min() >= 0


def test_nothing_to_learn_from_gives_no_rows(tmp_path: Path) -> None:
    assert len(StreamRows(make_shard(tmp_path / "a", []), 4)) == 0
    assert len(StreamRows(make_shard(tmp_path / "b", [[1]]), 4)) == 0
