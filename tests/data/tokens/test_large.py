"""A hundred gigabytes are opened without being read, and tokenized by several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data.sources.documents import JsonLines
from lit_consistency.data.tokens import many_processes, tokenize
from lit_consistency.data.tokens.many_processes import ordered_map
from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.data.tokens.token_files import FORMAT, open_shard
from lit_consistency.data.tokens.token_rows import StreamRows
from lit_consistency.data.tokens.tokenize import write_conversations, write_documents
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.records import known_hashes
from lit_consistency.records.fingerprints import sha256, sha256_of_text, stamp
from lit_consistency.records.processes import start_of
from tests.data.helpers import ListRows, ListSource

GIGABYTES = 100 * 10**9


def sparse(file: Path) -> None:
    """A file of 100 GB that takes no place."""
    with open(file, "wb") as stream:
        stream.truncate(GIGABYTES)
    if file.stat().st_blocks > 1000:
        pytest.skip("a file system without sparse files")


def know(file: Path, digest: str) -> None:
    """As if the file had been hashed in an earlier run."""
    index = known_hashes.cache_folder() / "hashes" / f"{sha256_of_text(str(file.parent))[:24]}.json"
    index.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(index.read_text()) if index.exists() else {}
    index.write_text(json.dumps({**content, file.name: [*stamp(file), digest]}))


def test_a_hundred_gigabytes_of_tokens_are_opened_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tokens = GIGABYTES // 2
    sparse(tmp_path / "tokens.bin")
    np.save(tmp_path / "offsets.npy", np.array([0, 30_000_000_000, n_tokens]))
    files = [tmp_path / "tokens.bin", tmp_path / "offsets.npy"]
    hashes = {"tokens.bin": "0" * 64, "offsets.npy": sha256(files[1])}
    sizes = {file.name: file.stat().st_size for file in files}
    counts = {"n_documents": 2, "n_tokens": n_tokens, "dtype": "uint16"}
    meta = {"format": FORMAT, "fingerprint": {}, "sizes": sizes, "sha256": hashes, **counts}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for file in files:
        know(file, hashes[file.name])
    monkeypatch.setattr(known_hashes, "sha256_once", None)  # nothing is read whole
    shard = open_shard(tmp_path, {})
    assert shard is not None
    rows = StreamRows(shard, 1 << 16)
    assert len(rows) == -(-(n_tokens - 1) // (1 << 16))
    assert rows.supervised.sum() == n_tokens - 2
    assert (rows[30_000_000_000 >> 16].documents == 1).any()


def test_a_corpus_of_a_hundred_gigabytes_is_known_again_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(tmp_path / "corpus.jsonl")
    know(tmp_path / "corpus.jsonl", "1" * 64)
    monkeypatch.setattr(known_hashes, "sha256_once", None)
    (file,) = JsonLines(str(tmp_path / "corpus.jsonl")).fingerprint()["files"]
    assert file == {"name": "corpus.jsonl", "size": GIGABYTES, "sha256": "1" * 64}


# -------------------- several processes


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, and batches so small that they are asked for."""
    if sys.platform != "linux":
        pytest.skip("one process does it")
    monkeypatch.setattr(many_processes, "n_processes", lambda: 3)
    monkeypatch.setattr(tokenize, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 2)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_written_does_not_depend_on_the_processes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, three: None
) -> None:
    texts = [f"the day {'and the night ' * (i % 7)}<|endoftext|>" for i in range(30)]
    rows = ListRows([("the day ", "the night" * (i % 5)) for i in range(30)])
    folders = [tmp_path / name for name in ("a", "b", "c", "d")]
    for i, folder in enumerate(folders):
        folder.mkdir()
        if i == 2:
            monkeypatch.setattr(many_processes, "n_processes", lambda: 1)
        if i % 2:
            write_conversations(folder, rows, PromptEncoder(tokenizer), tokenizer, 16, "truncate", "rows")
        else:
            write_documents(folder, ListSource(texts), tokenizer, "text")
    assert content(folders[0]) == content(folders[2])
    assert content(folders[1]) == content(folders[3])
    assert json.loads(content(folders[0])["meta.json"])["n_special_text"] == 30
    assert json.loads(content(folders[1])["meta.json"])["n_truncated"] > 0


def test_a_bad_row_is_refused_by_its_place(tmp_path: Path, tokenizer: Tokenizer, three: None) -> None:
    rows = ListRows([("the", "day")] * 20 + [("x" * 20, "y")])
    with pytest.raises(ValueError, match="list:21: 22 tokens; expected at most 9"):
        write_conversations(tmp_path, rows, PromptEncoder(tokenizer), tokenizer, 8, "refuse", "rows")


def test_results_come_in_order_and_few_batches_are_read_ahead(three: None) -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for i in range(40):
            read.append(i)
            yield i

    def slow(i: int) -> tuple[int, int]:
        time.sleep(0.02 if i % 5 == 0 else 0)
        return i, os.getpid()

    pids = set()
    for n, (i, pid) in enumerate(ordered_map(slow, batches())):
        assert i == n
        assert len(read) <= n + 2 + 2 * 3
        pids.add(pid)
    assert len(pids) > 1


def test_a_process_that_is_killed_ends_the_work(three: None) -> None:
    def work(i: int) -> None:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="a process that tokenizes was killed"):
        list(ordered_map(work, range(20)))


def test_processes_end_with_the_one_that_needs_them(tmp_path: Path, three: None) -> None:
    def work(i: int) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60 if i >= many_processes.DONE_HERE else 0)

    parent = os.fork()
    if parent == 0:
        list(ordered_map(work, range(20)))
        os._exit(1)

    def soon(what: Any) -> None:
        end = time.monotonic() + 30
        while not what():
            assert time.monotonic() < end
            time.sleep(0.01)

    soon(lambda: len(list(tmp_path.iterdir())) == 4)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    soon(lambda: not any(start_of(int(file.name)) for file in tmp_path.iterdir()))
