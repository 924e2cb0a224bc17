"""The rules of the house: doors open one way, no circles, no long files, no rooms without tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lit_consistency"
FILES = sorted(PACKAGE.rglob("*.py"))
# rooms from the door down: a file may import from its own room and from rooms below, never from those above or beside
ROOMS = [
    ("__main__",),
    ("cli",),
    ("callbacks", "study", "analysis", "evaluation"),
    ("module",),
    ("tasks",),
    ("inference",),
    ("methods",),
    ("distributed",),
    ("data",),
    ("checkpointing",),
    ("model",),
    ("metrics",),
    ("optimizers",),
    ("loggers",),
    ("drawing",),
    ("records",),
    ("stats",),
    ("__init__",),
]
LEVELS = {name: -depth for depth, names in enumerate(ROOMS) for name in names}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[Path]:
    """Files of the package that the file imports."""
    found = set()
    for name in imports(path):
        if name.startswith("lit_consistency"):
            target = ROOT.joinpath(*name.split("."))
            found |= {p for p in (target.with_suffix(".py"), target / "__init__.py") if p.is_file()}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_goes_up(path: Path) -> None:
    for target in own(path):
        below = LEVELS[room(target)] < LEVELS[room(path)]
        assert below or room(target) == room(path), f"{path} imports {target}"


WITHOUT_TORCH = sorted(
    path for room in ("records", "stats", "drawing", "study") for path in (PACKAGE / room).rglob("*.py")
)
HEAVY = ("torch", "lightning", "litgpt", "tokenizers", "transformers")
IMPORT = """
import sys
[__import__(name) for name in sys.argv[1].split()]
loaded = [name for name in sys.argv[2:] if name in sys.modules]
assert not loaded, f"{sys.argv[1]} loads {loaded}"
"""


def test_what_is_redrawn_in_a_second_loads_no_torch() -> None:
    """Every file of records, stats, drawing and study, imported in a fresh process."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in WITHOUT_TORCH]
    assert len(modules) > 20
    subprocess.run([sys.executable, "-c", IMPORT, " ".join(modules), *HEAVY], check=True, cwd=ROOT, timeout=60)


def test_no_circle_between_files() -> None:
    edges = {path: own(path) - {path} for path in FILES}
    while leaves := [path for path, targets in edges.items() if not targets]:
        edges = {path: targets - set(leaves) for path, targets in edges.items() if path not in leaves}
    # a package's __init__ imports its own files, which import siblings directly: what is left is a circle
    assert not edges, sorted(str(p.relative_to(ROOT)) for p in edges)


def test_optimizers_import_only_torch() -> None:
    allowed = {
        "torch",
        "lit_consistency",
        "math",
        "abc",
        "collections",
        "dataclasses",
        "typing",
        "re",
        "os",
        "__future__",
    }
    allowed |= {"logging", "os"}
    allowed |= {"triton"}  # comes with torch where there is CUDA; two files import it, and are imported only there
    for path in (PACKAGE / "optimizers").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed | {
            "contextlib",
            "functools",
            "io",
            "itertools",
            "time",
            "types",
        }, path
        assert all(room(target) == "optimizers" for target in own(path)), path


def test_files_are_hashed_and_written_whole_in_one_place_each() -> None:
    calls: dict[str, set[str]] = {"import hashlib": set(), "os.replace(": set(), "os.fsync(": set()}
    for path in FILES:
        for call, files in calls.items():
            if call in path.read_text(encoding="utf-8"):
                files.add(str(path.relative_to(PACKAGE)))
    # words by the million are no files
    assert calls["import hashlib"] == {"records/fingerprints.py", "tasks/contamination.py"}
    assert calls["os.replace("] == {"records/atomic.py"}
    assert calls["os.fsync("] == {"records/atomic.py"}


def test_studies_start_runs_as_processes() -> None:
    """They import neither lightning nor the command line, so that what is on disk is shown without them."""
    for path in (PACKAGE / "study").rglob("*.py"):
        assert not [name for name in imports(path) if name.split(".")[0] in ("lightning", "litgpt")], path
        assert not {room(target) for target in own(path)} & {"cli", "module", "callbacks", "building", "resume"}, path


@pytest.mark.parametrize("folder", ["lit_consistency", "tests"])
def test_no_file_is_longer_than_400_lines(folder: str) -> None:
    long = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py") if len(p.read_text().splitlines()) > 400}
    assert not long


def test_top_level_is_as_the_house_was_planned() -> None:
    allowed = {"pyproject.toml", "README.md", "LICENSE", "lit_consistency", "configs", "tests", "checkpoints"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert found <= allowed | {"build", "dist", "data"}, found - allowed


def test_every_room_has_tests() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not [name for name in rooms if not list((ROOT / "tests" / name).rglob("test_*.py"))]


def test_no_path_of_a_machine_in_the_project() -> None:
    for path in [*FILES, *(ROOT / "configs").rglob("*.yaml"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert not any(f"/{home}/" in text for home in ("home", "root", "Users")), path


ELSEWHERE = {
    "my_pkg.py",  # of a user
    "huggingface.py",
    "model.py",
    "pretrain.py",
    "execution.py",
    "train_gpt.py",
    "megabatch_base.py",
    "lit_scoring.py",
}


def test_files_that_are_named_in_docstrings_are_there() -> None:
    known = {path.name for path in (ROOT / "lit_consistency").rglob("*.py")} | ELSEWHERE
    for path in FILES:
        named = set(re.findall(r"\b(\w+\.py)\b", path.read_text(encoding="utf-8")))
        ours = {name for name in named if not name.startswith("test_")}
        assert ours <= known, f"{path}: {ours - known}"
