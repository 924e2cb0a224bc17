"""What one process needs is there on Windows and macOS too: read from the code, as CI runs on Linux."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_consistency"
# a program of its own, which run.py starts on POSIX alone and nothing imports
SCRIPTS = {"tasks/code/sandbox.py"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) not in SCRIPTS)
# https://docs.python.org/3/library/unix.html, and those that the pages of `os` and `signal` call Unix only
MODULES = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": {
        "fork",
        "getuid",
        "geteuid",
        "killpg",
        "sched_getaffinity",
        "setsid",
        "sysconf",
        "uname",
        "wait4",
        "WNOHANG",
    },
    "signal": {"SIGALRM", "SIGBUS", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "pthread_sigmask"},
}


def executed_by_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the file is imported: not the bodies of functions, and not what a `try` is there to miss."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for default in (*child.args.defaults, *filter(None, child.args.kw_defaults)):
                yield from executed_by_import(ast.Expr(default))
        elif not isinstance(child, ast.Try):
            yield child
            yield from executed_by_import(child)


def posix_only(source: str) -> list[str]:
    found = []
    for node in executed_by_import(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if node.attr in NAMES.get(node.value.id, ()) else []
    return found


def test_no_import_needs_posix() -> None:
    assert len(FILES) > 200
    found = {str(path.relative_to(PACKAGE)): posix_only(path.read_text(encoding="utf-8")) for path in FILES}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import resource\n", ["resource"]),
        ("from fcntl import flock\n", ["fcntl"]),
        ("import signal\nENDS = (signal.SIGTERM, signal.SIGUSR1)\n", ["signal.SIGUSR1"]),
        ("import os\ndef cores(n=os.sysconf('SC_NPROCESSORS_ONLN')): ...\n", ["os.sysconf"]),
        ("def peak():\n    import resource\n", []),
        ("try:\n    import resource\nexcept ImportError:\n    resource = None\n", []),
    ],
)
def test_what_is_found(source: str, expected: list[str]) -> None:
    assert posix_only(source) == expected


def test_text_is_read_and_written_in_utf8() -> None:
    """Elsewhere the encoding that is not named is the system's."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}:{node.lineno}"
