"""How long it takes until a command begins: what is imported for it, and what is kept of its help."""

from __future__ import annotations

import os
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


WITH_TRANSFORMERS = """
import sys, lit_consistency.cli, torchmetrics
assert not [name for name in ("transformers", "matplotlib") if name in sys.modules]
mean = torchmetrics.MeanMetric()
mean.update([1.0, 2.0])
figure, axes = mean.plot()
assert type(figure).__module__.startswith("matplotlib") and axes.lines[0].get_ydata()[0] == 1.5
assert "transformers" not in sys.modules
from torchmetrics.text import BERTScore
from torchmetrics.functional.text import bert_score
from torchmetrics.functional import infolm
from transformers import BertConfig, BertModel, BertTokenizer
folder = sys.argv[1]
BertTokenizer(f"{folder}/vocab.txt").save_pretrained(folder)
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)
score = BERTScore(model_name_or_path=folder, num_layers=1, max_length=8)
score.update(["a cat", "a cat"], ["a cat", "the dog"])
same, other = score.compute()["f1"].tolist()
assert abs(same - 1) < 1e-5 and other < 0.999, (same, other)
alone = bert_score(["a cat"], ["the dog"], model_name_or_path=folder, num_layers=1, max_length=8)["f1"]
assert abs(float(alone) - other) < 1e-5
try:
    torchmetrics.text.NoSuchScore
except AttributeError as error:
    assert "NoSuchScore" in str(error)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_metric_that_needs_what_was_left_out_has_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\ncat\nthe\ndog\n", "utf-8")
    call = [sys.executable, "-c", WITH_TRANSFORMERS, str(tmp_path)]
    result = subprocess.run(call, env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def test_imports_leave_the_collector_as_it_was_and_nothing_to_look_through() -> None:
    code = "import gc\nfrom lit_consistency.cli.lean_imports import import_at_once\n"
    code += "made = import_at_once('json')\n"
    code += "assert made.loads('[1]') == [1] and gc.isenabled() and gc.get_freeze_count() > 1000\n"
    code += "gc.disable()\nimport_at_once('json')\nassert not gc.isenabled()\n"
    code += "try: import_at_once('no_such_module')\nexcept ImportError: assert not gc.isenabled()\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_on_one_device_waits_for_no_library_of_sharded_checkpoints() -> None:
    code = "import sys, lit_consistency.cli.fit\nassert 'torch.distributed.checkpoint' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
