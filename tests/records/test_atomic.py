import os
from pathlib import Path

import pytest

from lit_consistency.records.atomic import new_folder


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
        if ".new-" in Path(source).name:
            raise PermissionError("no")
        rename(source, destination)

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
        ("model", False, "the folder is not empty; expected a new one, or overwrite: true"),
        ("other", True, "expected a model to overwrite, found none of"),
        ("file", True, "expected a folder, found a file"),
    ]
    before = tree(tmp_path)
    for name, overwrite, message in cases:
        with pytest.raises(ValueError, match=f"out_dir = .*{name}: {message}"), new_folder(tmp_path / name, overwrite):
            pytest.fail("nothing may be written")
    assert tree(tmp_path) == before
