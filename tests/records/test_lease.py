"""Who writes a run's folder, on this host and on others; children that do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_consistency.records import lease as leases
from lit_consistency.records.lease import WRITER, Lease, is_live, only_writer
from lit_consistency.records.run_folder import RunFolder
from tests.runs import ROOT


def test_a_folder_is_left_as_it_was_found(tmp_path: Path) -> None:
    said: list[str] = []
    with only_writer(tmp_path / "runs" / "run", said.append):
        assert is_live(tmp_path / "runs" / "run", WRITER)
        assert RunFolder(tmp_path / "runs" / "run").is_empty
    assert not list(tmp_path.iterdir())
    with only_writer(tmp_path / "run", said.append):
        (tmp_path / "run" / "file").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    assert said == []


def test_a_study_that_leases_the_folder_does_not_keep_its_run_out(tmp_path: Path) -> None:
    study = Lease.take(tmp_path)
    assert study is not None
    with only_writer(tmp_path, print):
        assert study.renew()
    study.release()


def test_one_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, file=WRITER)
    assert first is not None
    said: list[str] = []
    threading.Timer(0.3, first.release).start()
    with only_writer(tmp_path, said.append):
        pass
    assert len(said) == 1
    assert f"process {os.getpid()} on host" in said[0]


def elsewhere(folder: Path) -> Lease:
    """A lease of another host."""
    lease = Lease.take(folder, file=WRITER)
    assert lease is not None
    file = folder / WRITER
    file.write_text(file.read_text().replace('"host": "', '"host": "elsewhere '))
    return lease


def test_a_run_of_another_host_is_known_by_its_renewals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = elsewhere(tmp_path)
    threading.Timer(0.4, lambda: os.utime(tmp_path / WRITER)).start()
    began = time.monotonic()
    with pytest.raises(ValueError, match="on host elsewhere writes there"), only_writer(tmp_path, print):
        pytest.fail("two writers")
    assert time.monotonic() - began < 10, "no need to wait for it to expire"
    monkeypatch.setattr(leases, "EXPIRES", 1.0)
    with only_writer(tmp_path, print):
        assert not lease.renew()


def test_a_damaged_lease_binds_nobody(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "{}"):
        (tmp_path / WRITER).write_text(text)
        with only_writer(tmp_path, print):
            assert is_live(tmp_path, WRITER)
        assert not (tmp_path / WRITER).exists()


def test_where_files_cannot_be_locked_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="a second run in .* would not be noticed"), only_writer(tmp_path, print):
        (tmp_path / "file").write_text("")


PARENT = """
import subprocess, sys, time
from lit_consistency.records.processes import bind_children
bind_children({number})
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import signal, sys, time
from lit_consistency.records.processes import die_with_parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
die_with_parent()
print("bound", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel tells")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_a_parent_that_is_killed(number: int) -> None:
    code = PARENT.format(number=int(number), child=CHILD)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "bound\n"
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    parent.stdout.close()
    assert not Path(f"/proc/{child}").exists()
