"""Commands as processes: where their output goes, and how their errors and signals come back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_consistency.study.execute import local as process
from lit_consistency.study.execute.local import ProcessFailed, run_command


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name in the working folder, which is imported in place of the real one."""
    package = tmp_path / "lit_consistency"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return package / "__main__.py"


def test_output_is_added_to_the_log(script: Path, tmp_path: Path) -> None:
    script.write_text("import sys; print(*sys.argv[1:]); print('warned', file=sys.stderr)")
    log = tmp_path / "logs" / "run.log"
    run_command(["fit", "--x=1"], log)
    run_command(["fit", "--x=2"], log)
    text = log.read_text()
    assert [line for line in text.splitlines() if line != "warned"] == ["fit --x=1", "fit --x=2"]


def test_refused_options_are_the_users_mistake(script: Path, tmp_path: Path) -> None:
    script.write_text(
        "import sys; print('noise'); print('error: key: no such'); print('did you mean kye?'); sys.exit(2)"
    )
    with pytest.raises(ValueError, match=r"fit refused its options \(.*log\):\nerror: key: no such\ndid you mean kye"):
        run_command(["fit"], tmp_path / "log")


def test_another_error_shows_the_end_of_the_log(script: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("an earlier run\n")
    script.write_text("print('\\n'.join(map(str, range(40)))); raise RuntimeError('no loss')")
    with pytest.raises(ProcessFailed, match="fit ended with status 1") as error:
        run_command(["fit"], tmp_path / "log")
    assert "RuntimeError: no loss" in str(error.value)
    assert "earlier" not in str(error.value)


def test_a_signal_is_passed_on_and_its_status_comes_back(script: Path, tmp_path: Path) -> None:
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        "print('ready', flush=True)\ntime.sleep(30)\n"
    )
    log = tmp_path / "log"

    def send() -> None:
        while not log.is_file() or "ready" not in log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as stop:
        run_command(["fit"], log)
    sender.join()
    assert stop.value.code == 143
    assert "saved" in log.read_text()
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_is_this_python_and_this_package(tmp_path: Path) -> None:
    run_command(["--version"], tmp_path / "log")
    assert (tmp_path / "log").read_text().strip()
    assert process.sys.executable == sys.executable
