"""Large files are read once; any change that a program can make is noticed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lit_consistency.records import known_hashes
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.known_hashes import cache_folder, sha256_each


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that are read; two bytes are many, and the index is a new one."""
    names: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "READ_EACH_TIME", 1)
    monkeypatch.setattr(known_hashes, "COARSEST", 0.01)
    monkeypatch.setattr(known_hashes, "sha256_once", lambda file: names.append(file.name) or sha256(file))
    return names


def test_a_large_file_is_read_again_only_when_it_has_changed(tmp_path: Path, read: list[str]) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode() * 3)
    right = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert sha256_each(files) == sha256_each(files) == right
    assert read == ["a", "b"]
    # another content of the same size, set back to the same date
    stat = files[0].stat()
    files[0].write_bytes(b"xyz")
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_each(files) == [hashlib.sha256(b"xyz").hexdigest(), right[1]]
    # another file that was moved there
    (tmp_path / "new").write_bytes(b"new")
    os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(tmp_path / "new", files[1])
    assert sha256_each(files)[1] == hashlib.sha256(b"new").hexdigest()
    assert read == ["a", "b", "a", "b"]


def test_what_was_written_a_moment_ago_by_a_clock_ahead_of_ours_is_not_remembered(
    tmp_path: Path, read: list[str]
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"aaa")
    os.utime(file, (4e9, 4e9))
    sha256_each([file])
    sha256_each([file])
    assert read == ["a", "a"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [3, 0, 0, 0, "wrong"]}'])
def test_a_damaged_index_knows_nothing(tmp_path: Path, read: list[str], content: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"aaa")
    right = sha256_each([file])
    (index,) = (cache_folder() / "hashes").iterdir()
    index.write_text(content)
    assert sha256_each([file]) == right
    assert read == ["a", "a"]
