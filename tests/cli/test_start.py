"""How long it takes until a command begins: what is imported for it, and what is kept of its help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lit_consistency.__main__ import main
from lit_consistency.cli.commands import FILES, TRAINING
from lit_consistency.cli.kept_help import asks_for_help, print_help

WITHOUT_TORCH = """
import sys
from lit_consistency.__main__ import main
for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert not end.code
    assert "torch" not in sys.modules, command
"""


def helped(*commands: str) -> str:
    """What the commands say of themselves in a fresh process, in which torch stays unloaded."""
    call = [sys.executable, "-c", WITHOUT_TORCH, *commands]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lit_consistency" / "help"


def said(capsys: pytest.CaptureFixture[str], *args: str, text: str | None = None) -> str:
    """What a call prints; ``text`` is what its command would say, None if it must not be asked."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        print_help(args, lambda: print(text, end="") if text is not None else pytest.fail("made again"))
    assert not end.value.code
    return capsys.readouterr().out


def test_no_help_waits_for_torch() -> None:
    assert "--max_shard_size" in helped(*[command for command in FILES if command not in TRAINING])


def test_the_help_of_fit_is_made_once_and_explains_the_options(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    made = capsys.readouterr().out
    assert "--KEY.NAME null) removes one" in " ".join(made.split("ARG:   --forgetting.retain ")[1].split()[:200])
    explained = "--world checkpoint_dir --forgetting.every_n_steps --run.name --allow_changes schedule"
    assert all(word in made for word in explained.split())
    assert "what is trained; all weights when not given" in " ".join(made.split())
    assert len(list(cache.iterdir())) == 1
    assert helped("fit") == made


def test_kept_help_is_made_again_where_anything_has_changed(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert said(capsys, "fit", "--help", text="first\n") == "first\n"
    assert said(capsys, "fit", "--help") == "first\n"
    monkeypatch.setenv("LIT_CONSISTENCY_PARENT", "1 9")  # which every process of a study has
    assert said(capsys, "fit", "--help") == "first\n"
    assert said(capsys, "validate", "--help", text="other\n") == "other\n"
    for name, value in (("COLUMNS", "90"), ("LIT_CONSISTENCY_FIT__SEED_EVERYTHING", "1")):
        monkeypatch.setenv(name, value)
        assert said(capsys, "fit", "--help", text=f"{name}\n") == f"{name}\n"
    monkeypatch.setattr("lit_consistency.records.fingerprints.PACKAGE", Path(__file__).parent)
    assert said(capsys, "fit", "--help", text="other sources\n") == "other sources\n"
    for file in cache.iterdir():
        file.write_text(file.read_text("utf-8") + "?", "utf-8")
    assert said(capsys, "fit", "--help", text="again\n") == "again\n"


def test_help_is_shown_where_nothing_can_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for text in ("first\n", "second\n"):
        assert said(capsys, "fit", "--help", text=text) == text


@pytest.mark.parametrize(
    ("words", "is_kept"),
    [
        ("--help", True),
        ("-h", True),
        ("--model.optimizer.help lit_consistency.optimizers.Muon", True),
        ("--model.optimizer.help=lit_consistency.optimizers.Muon", True),
        ("--model.optimizer.help my_pkg.MyOpt", False),
        ("--model.optimizer.help torch.optim.Adam", False),
        ("--config my.yaml --help", False),
        ("--trainer.max_steps 1 --help", False),
    ],
)
def test_help_is_kept_of_what_the_package_alone_decides(words: str, is_kept: bool) -> None:
    assert asks_for_help(["fit", *words.split()]) == is_kept


def test_help_that_fails_is_not_kept(cache: Path) -> None:
    with pytest.raises(SystemExit) as end:
        print_help(["fit", "--help"], lambda: sys.exit(2))
    assert end.value.code == 2
    assert not cache.exists()


def test_torchmetrics_imports_nothing_that_is_not_used() -> None:
    code = "import sys, lit_consistency.cli, torchmetrics, scipy.signal, importlib.util\n"
    code += "assert not [name for name in ('transformers', 'sklearn', 'matplotlib') if name in sys.modules]\n"
    code += "from lightning_utilities.core.imports import RequirementCache, package_available\n"
    code += "assert package_available('scipy') and RequirementCache('scipy')\n"  # afterwards all is as it was
    code += "assert torchmetrics.MeanMetric()(1.0) == 1\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
