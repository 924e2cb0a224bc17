"""Data that do not fit are refused through the command line, before a token is made and a process is started."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lit_consistency.__main__ import main
from lit_consistency.records.known_hashes import cache_folder
from lit_consistency.records.run_folder import RunFolder
from tests.runs import ROOT, SCRATCH, arguments, fit

TOKENIZER = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"  # 997 tokens, more than the 384 rows here
FILES = "lit_consistency.data.RowFiles"
ROWS = {"good": [{"prompt": "a", "completion": "b"}], "empty": []}


def own(root: Path, which: str, *extra: str) -> list[str]:
    """Arguments of a run on rows of a file, with the tokenizer of the world's text."""
    file = root / f"{which}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[which]))
    sizes = ("global_batch_size=8", "micro_batch_size=4", "block_size=32")
    return [
        "--data=lit_consistency.data.SFTData",
        f"--data.init_args.rows={FILES}",
        f"--data.init_args.rows.init_args.path={file}",
        f"--data.init_args.tokenizer_dir={TOKENIZER}",
        *(f"--data.init_args.{size}" for size in sizes),
        *extra,
    ]


WRONG = {
    "devices that do not divide": (
        ["--trainer.devices=3", "--trainer.strategy=ddp"],
        "data.global_batch_size = 8: expected a multiple of data.micro_batch_size * devices = 4 * 3 = 12",
    ),
    "a vocabulary too large for a new model": (
        ["--model.overrides.vocab_size=16", "--model.overrides.padded_vocab_size=16"],
        "vocab_size = 16 of the model: expected at least the tokenizer's",
    ),
}


def refused(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments(root / "runs", *words))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "tokens"


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_a_token_is_made(
    case: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = WRONG[case]
    assert message in refused(capsys, tmp_path, *SCRATCH, *words)
    assert not [path for path in cache.glob("*") if path.name != "tokenizers"]
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_larger_than_the_base_is_refused_before_a_token_is_made(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(fit(tmp_path / "base", "--trainer.max_steps=1").trainer.default_root_dir) / "model"
    made = set(cache.glob("*"))
    words = [f"--model.checkpoint_dir={base}", f"--data.init_args.tokenizer_dir={TOKENIZER}"]
    said = refused(capsys, tmp_path, *words)
    assert (
        f"data.tokenizer_dir = {TOKENIZER}: 997 tokens; expected at most 384, the rows of the model's embedding" in said
    )
    assert set(cache.glob("*")) == made
    assert not (tmp_path / "runs").exists()


def test_a_set_without_rows_is_refused(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path, *SCRATCH, *own(tmp_path, "empty"))
    assert "data, train: nothing to learn from: path = " in said
    assert not (tmp_path / "runs").exists()


def test_rows_that_are_cut_and_steps_that_are_mostly_empty_train_without_a_nan(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="an epoch has 1 rows, the others of every step are empty"):
        fit(tmp_path, *own(tmp_path, "good", "--data.init_args.block_size=2"))
    losses = [line["train/loss"] for line in RunFolder(tmp_path / "run").read_metrics() if "train/loss" in line]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
