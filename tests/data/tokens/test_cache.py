from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.tokens.cache import default_cache_dir, digest, open_or_build
from lit_consistency.data.tokens.token_files import ShardWriter

FINGERPRINT = {"a": 1, "b": [2, "x"]}


def builder(fingerprint: dict[str, object], calls: list[Path]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        calls.append(folder)
        with ShardWriter(folder, 100, masked=False) as writer:
            writer.add([1, 2, 3])
            writer.finish({"fingerprint": fingerprint})

    return build


def test_made_once_and_then_opened(tmp_path: Path) -> None:
    calls: list[Path] = []
    for _ in range(3):
        assert open_or_build(tmp_path / "cache", FINGERPRINT, builder(FINGERPRINT, calls)).tokens.tolist() == [1, 2, 3]
    assert len(calls) == 1


def test_another_fingerprint_is_made_beside_the_first(tmp_path: Path) -> None:
    calls: list[Path] = []
    for value in (1, 2, 1, 2):
        fingerprint = {"a": value}
        assert open_or_build(tmp_path, fingerprint, builder(fingerprint, calls)).meta["fingerprint"] == fingerprint
    assert len(calls) == 2


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1, "b": 2}) != digest({"a": 1, "b": 3})


@pytest.mark.parametrize("name", ["meta.json", "tokens.bin"])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path: Path, name: str) -> None:
    calls: list[Path] = []
    open_or_build(tmp_path, FINGERPRINT, builder(FINGERPRINT, calls))
    file = next(tmp_path.glob(f"*/{name}"))
    file.write_bytes(bytes(file.stat().st_size))  # zeros, as a crash of the host leaves them
    with pytest.warns(UserWarning, match=rf"{file.parent}.*; the tokens are made anew"):
        shard = open_or_build(tmp_path, FINGERPRINT, builder(FINGERPRINT, calls))
    assert shard.tokens.tolist() == [1, 2, 3]
    assert len(calls) == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".{digest(FINGERPRINT)[:24]}.0123456789ab.unfinished"
    left.mkdir()
    (left / "tokens.bin").write_bytes(b"half")
    open_or_build(tmp_path, FINGERPRINT, builder(FINGERPRINT, []))
    assert not left.exists()


def test_a_failure_leaves_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "tokens.bin").write_bytes(b"half")
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"):
        open_or_build(tmp_path, FINGERPRINT, fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert open_or_build(tmp_path, FINGERPRINT, builder(FINGERPRINT, [])).tokens.tolist() == [1, 2, 3]


def slow_build(folder: Path) -> None:
    with open(folder.parent.parent / "made", "a") as stream:
        stream.write("once ")
    time.sleep(0.5)
    builder(FINGERPRINT, [])(folder)


def meet_and_build(folder: Path, start: Any, results: Any) -> None:
    start.wait(timeout=60)
    results.put(open_or_build(folder / "cache", FINGERPRINT, slow_build).tokens.tolist())


def test_two_processes_that_start_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=meet_and_build, args=(tmp_path, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [[1, 2, 3]] * 2
    for process in processes:
        process.join(timeout=60)
    assert (tmp_path / "made").read_text() == "once "


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lit_consistency" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "lit_consistency" / "tokens"
