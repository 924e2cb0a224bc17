from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.tokens.token_files import DamagedShard, Shard, ShardWriter, open_shard

FINGERPRINT = {"made": "for a test"}


def write(folder: Path, documents: list[list[int]], vocab_size: int = 100, masked: bool = False) -> Shard:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, vocab_size, masked) as writer:
        for document in documents:
            writer.add(document, np.array(document) % 2 == 1 if masked else None)
        writer.finish({"fingerprint": FINGERPRINT})
    shard = open_shard(folder, FINGERPRINT)
    assert shard is not None
    return shard


def test_documents_come_back(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    shard = write(tmp_path, documents, masked=True)
    read = [shard.tokens[a:b].tolist() for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)]
    assert read == documents
    assert shard.supervised is not None
    assert shard.supervised.tolist() == [True, False, True, False, True, False]
    assert (shard.meta["n_documents"], shard.meta["n_tokens"]) == (3, 6)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocab_size: int, dtype: Any) -> None:
    shard = write(tmp_path, [[0, vocab_size - 1]], vocab_size)
    assert shard.tokens.dtype == dtype
    assert shard.tokens.tolist() == [0, vocab_size - 1]


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    shard = write(tmp_path, [], masked=True)
    assert shard.tokens.tolist() == []
    assert shard.offsets.tolist() == [0]


@pytest.mark.parametrize("name", ["tokens.bin", "supervised.bin", "offsets.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "empty", "flipped"])
def test_a_damaged_shard_does_not_open(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, [[1, 2, 3], [4, 5]], masked=True)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        # of offsets.npy the last number, of meta.json the bracket that opens it
        place = 0 if name == "meta.json" else -8
        flipped = bytearray(content)
        flipped[place if len(content) > 8 else 0] ^= 1
        damaged = {"shorter": content[:-1], "longer": content + b"\0", "empty": b"", "flipped": bytes(flipped)}
        file.write_bytes(damaged[damage])
    with pytest.raises(DamagedShard, match=name if damage == "flipped" and name != "meta.json" else str(tmp_path)):
        open_shard(tmp_path, FINGERPRINT)


def test_an_id_outside_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    """As 16 bits, 65,636 would be the token 100."""
    for ids in ([1, 100], [-1], [65_636]):
        with pytest.raises(ValueError, match="expected 0 to 99, those of the tokenizer"):
            write(tmp_path, [ids])


def test_another_fingerprint_or_format_does_not_open(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2]])
    assert open_shard(tmp_path, {"made": "for another"}) is None
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "format": meta["format"] + 1}))
    assert open_shard(tmp_path, FINGERPRINT) is None


def test_tokens_are_mapped_and_not_read(tmp_path: Path) -> None:
    assert isinstance(write(tmp_path, [[1, 2]]).tokens.base, np.memmap)
