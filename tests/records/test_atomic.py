import json
import math
import os
import threading
from pathlib import Path

import pytest

from lit_consistency.records.atomic import (
    SUFFIX,
    _exchange,
    json_line,
    new_folder,
    remove_leftovers,
    replaced_folder,
    unfinished,
    write_json,
    write_text,
)
from lit_consistency.records.model_folder import check_checkpoint_dir


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def a_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "lit_model.pth").write_bytes(b"old weights")
    (folder / "notes.txt").write_text("old")
    return folder


def test_a_folder_appears_whole_with_its_parents(tmp_path: Path) -> None:
    out_dir = tmp_path / "a" / "b"
    with new_folder(out_dir, overwrite=False) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("new")
        assert not out_dir.exists()
    assert tree(tmp_path) == {"a/b/part/file": b"new"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a", overwrite=False) as folder:
        (folder / "file").write_text("new")
    assert tree(tmp_path) == {"a/file": b"new"}


def write_and_raise(out_dir: Path, error: BaseException, overwrite: bool = False) -> None:
    with new_folder(out_dir, overwrite) as folder:
        (folder / "lit_model.pth").write_text("half")
        raise error


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="full disk"):
        write_and_raise(tmp_path / "a", RuntimeError("full disk"))
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    out_dir = a_model(tmp_path / "a")
    with new_folder(out_dir, overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert tree(tmp_path) == {"a/file": b"new"}


def test_a_failure_in_the_middle_keeps_the_old_folder(tmp_path: Path) -> None:
    before = tree(a_model(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(tmp_path / "a", KeyboardInterrupt(), overwrite=True)
    assert tree(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(a_model(tmp_path / "a"))
    rename = os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(source).name.endswith(SUFFIX):
            raise PermissionError("no")
        rename(source, destination)

    monkeypatch.setattr("lit_consistency.records.atomic._exchange", lambda *_: False)  # as on file systems without it
    monkeypatch.setattr("lit_consistency.records.atomic.os.replace", failing)
    with pytest.raises(PermissionError), new_folder(tmp_path / "a", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert tree(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_may_not_be_replaced_is_refused(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("")
    cases = [
        ("model", False, "the folder is not empty; expected a new one, or --overwrite to replace its model"),
        ("other", True, "expected a model to overwrite, found none of"),
        ("file", True, "expected a folder, found a file"),
    ]
    before = tree(tmp_path)
    for name, overwrite, message in cases:
        with pytest.raises(ValueError, match=f"out_dir = .*{name}: {message}"), new_folder(tmp_path / name, overwrite):
            pytest.fail("nothing may be written")
    assert tree(tmp_path) == before


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "run.json"
    write_text(file, "old")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lit_consistency.records.atomic.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(file, "new")
    assert tree(tmp_path) == {"new/run.json": b"old"}
    monkeypatch.undo()
    write_json(file, {"loss": math.nan, "of": [math.inf, 1.5], "name": "ü"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"loss": None, "of": [None, 1.5], "name": "ü"}


def test_leftovers_of_killed_writers_are_found_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("a.json", ".a.old-12", "unfinished", "b.unfinished")]
    left = [unfinished(tmp_path / "a.json"), unfinished(tmp_path / "model", "0123456789ab")]
    for path in [*kept, left[0]]:
        path.write_text("")
    left[1].mkdir()
    assert list(tmp_path.glob("*.json")) == [tmp_path / "a.json"], "no pattern of a reader matches the others"
    remove_leftovers(tmp_path, "a.json")
    assert not left[0].exists()
    assert left[1].exists()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_broken_folder_is_replaced_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "tokens.bin").write_text("torn")
    with replaced_folder(tmp_path / "shard") as folder:
        (folder / "tokens.bin").write_text("whole")
        assert (tmp_path / "shard" / "tokens.bin").read_text() == "torn"
    assert tree(tmp_path) == {"shard/tokens.bin": b"whole"}


def test_there_is_no_moment_without_the_folder_that_is_replaced(tmp_path: Path) -> None:
    a_model(tmp_path / "a")
    gone, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not (tmp_path / "a" / "lit_model.pth").is_file():
                gone.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        with new_folder(tmp_path / "a", overwrite=True) as folder:
            (folder / "lit_model.pth").write_text("new")
    stop.set()
    watcher.join()
    if not _exchange(a_model(tmp_path / "b"), a_model(tmp_path / "c")):
        pytest.skip("this file system cannot exchange two names")
    assert not gone


def test_a_folder_that_had_made_room_is_put_back_or_removed(tmp_path: Path) -> None:
    aside = a_model(tmp_path / ".a.old-0123456789ab")
    with pytest.raises(FileNotFoundError, match=rf"{aside} stands beside it, moved there by a save that was killed"):
        check_checkpoint_dir(tmp_path / "a")
    with pytest.warns(UserWarning, match=rf"{aside}: moved there .* put back to {tmp_path / 'a'}"):
        remove_leftovers(tmp_path, "a")
    assert (tmp_path / "a" / "lit_model.pth").read_bytes() == b"old weights"
    a_model(tmp_path / ".a.old-0123456789ac")
    remove_leftovers(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_cannot_say_so_has_filled_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.save`` says ``[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534``."""
    usage = type("usage", (), {"free": 4096})
    monkeypatch.setattr("lit_consistency.records.atomic.shutil.disk_usage", lambda _: usage)
    messages = ["[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534", "I/O error: No space left"]
    for message in messages:
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'a'}'") as caught:
            write_and_raise(tmp_path / "a", RuntimeError(message))
        assert caught.value.errno == 28
    usage.free = 1 << 30
    with pytest.raises(OSError, match=r"could not be written \(\[enforce fail"):
        write_and_raise(tmp_path / "a", RuntimeError(messages[0]))


def test_a_line_of_json_has_null_for_what_is_no_number() -> None:
    value = {"a": [1.5, (math.inf, "é")], "b": {"c": -0.0, "d": math.nan}}
    assert json_line(value) == '{"a": [1.5, [null, "é"]], "b": {"c": -0.0, "d": null}}'
    assert json_line([1.5]) == "[1.5]"
