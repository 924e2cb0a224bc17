from __future__ import annotations

import builtins
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints, newest_valid
from lit_consistency.checkpointing.manifest import CheckpointError, manifest_of, verify, write_manifest

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"])  # type: ignore[index]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"bytes, expected"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_flipped_bit_is_refused_and_both_hashes_are_named(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{hashlib.sha256(content).hexdigest()}, expected {expected}"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_file_without_manifest_does_not_count(saved: Path) -> None:
    saved.with_name(saved.name + ".manifest.json").unlink()
    with pytest.raises(CheckpointError, match="the save was not finished"):
        verify(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "does not vouch for step-00000003.ckpt"),
        ('{"other": {"bytes": 1, "sha256": ""}}', "does not vouch"),
        ("[1]", "damaged"),
        ('{"step-00000003.ckpt": 3}', "damaged"),
        ('{"step-00000003.ckpt": {"bytes": 3', "damaged"),
    ],
)
def test_a_manifest_vouches_for_nothing_that_it_does_not_name(saved: Path, text: str, message: str) -> None:
    manifest_of(saved).write_text(text)
    assert newest_valid(saved.parent)[0] is None
    with pytest.raises(CheckpointError, match=message):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_shard_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    path.mkdir()
    (path / "a.distcp").write_bytes(b"abc")
    write_manifest(path)
    (path / "b.distcp").write_bytes(b"def")
    with pytest.raises(CheckpointError, match=r"does not vouch for b\.distcp"):
        verify(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Poison:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "poison": Poison()}, path)
    with pytest.raises(Exception, match="weights_only|Unsupported"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not canary.exists()


def test_a_damaged_newest_falls_back_to_the_one_before(saved: Path) -> None:
    newer = saved.with_name("step-00000009.ckpt")
    AtomicCheckpointIO().save_checkpoint(CONTENT, newer)
    newer.write_bytes(newer.read_bytes()[:-1])
    found, skipped = newest_valid(saved.parent)
    assert found == saved
    assert len(skipped) == 1
    assert str(newer) in skipped[0]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "absent") == (None, [])


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, saved.with_name("step-00000009.ckpt"))
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert checkpoints(saved.parent) == [saved]
    assert not list(saved.parent.glob(".*"))


def test_a_folder_that_may_not_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.open

    def refuse(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(CheckpointError, match=r"step-00000001\.ckpt.*Permission denied"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "step-00000001.ckpt")


def test_a_folder_of_files_is_verified_file_by_file(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    path.mkdir()
    (path / "a.distcp").write_bytes(b"abc")
    (path / "b.distcp").write_bytes(b"def")
    write_manifest(path)
    verify(path)
    (path / "b.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"b\.distcp: missing"):
        verify(path)


KILLED = """
import sys, torch
from pathlib import Path
from lit_consistency.checkpointing.io import AtomicCheckpointIO
folder = Path(sys.argv[1])
state = {"w": torch.zeros(2_000_000)}
print("ready", flush=True)
for step in range(1, 10_000):
    AtomicCheckpointIO().save_checkpoint(state, folder / f"step-{step % 3:08d}.ckpt")
"""


@pytest.mark.slow
def test_killed_at_any_moment_a_valid_checkpoint_is_left(tmp_path: Path) -> None:
    """The process rewrites three files over and over and is killed at moments spread over several saves."""
    for moment in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3 + 0.037 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found, _ = newest_valid(tmp_path)
        assert found is not None
        assert AtomicCheckpointIO().load_checkpoint(found)["w"].numel() == 2_000_000
    AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "step-00000009.ckpt")
    assert not list(tmp_path.glob(".*"))
