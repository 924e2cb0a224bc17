"""``data``: what it shows of rows is what training on them takes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lit_consistency.__main__ import main
from lit_consistency.cli import data as command
from lit_consistency.data import RowFiles, SFTData
from lit_consistency.data.inspection import inspect_rows
from lit_consistency.data.tokens.tokenizer import Tokenizer
from tests.data.conftest import byte_level_tokenizer
from tests.data.helpers import write_jsonl

ROWS = [
    {"prompt": "the question", "completion": "the answer", "topic": "none"},
    {"prompt": "the  question", "completion": "the day"},
    {"prompt": "the question", "completion": "the answer", "topic": "none"},
    {"prompt": "Say <|endoftext|>", "completion": "the \x1b[31mend"},
    {"prompt": "the", "completion": "y" * 40},
    {"prompt": "z" * 40, "completion": "the"},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def shown(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    main(["data", *map(str, options)])
    return capsys.readouterr().out


def test_counts_are_those_of_training(rows: Path, model: Path, tmp_path: Path) -> None:
    where = {"tokenizer_dir": model, "cache_dir": tmp_path / "cache"}
    data = SFTData(RowFiles(str(rows)), block_size=30, packing=False, global_batch_size=4, micro_batch_size=4, **where)
    with pytest.warns(UserWarning, match="not used: topic"):
        data.setup()
    stats = data.stats()["train"]
    result = inspect_rows(RowFiles(str(rows)), data)
    assert (result.n_truncated, result.n_dropped) == (stats["n_truncated"], stats["n_dropped"]) == (2, 1)
    assert sum(result.kept) == stats["n_supervised"]
    assert result.n_special_text == stats["n_special_text"] == 1
    tokenizer = Tokenizer(model)
    lengths = [len(tokenizer.encode(row["prompt"])) + len(tokenizer.encode(row["completion"])) + 1 for row in ROWS]
    lengths[3] = result.lengths[3]  # has the text of a special token, see test_data_text
    assert result.lengths == lengths
    assert result.n_tokens_cut == sum(max(length - 31, 0) for length in lengths)
    assert result.percentiles()[0] == (50, sorted(lengths)[2], 0)
    assert result.percentiles()[-1] == (100, max(lengths), max(lengths) - 31)


def test_a_row_is_shown_stretch_by_stretch(rows: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--rows", rows, "--model", model, "--block_size", 30, "--show", 5, "--max_characters", 20)
    first, *_, fourth, fifth, _ = text.split("\n\n")
    assert first.splitlines() == [
        f"{rows}:1: 5 tokens, 3 learned",
        "          | the question",
        "  learned | the answer[<|endoftext|>]",
    ]
    assert "          | Say <|endoftext|>\n  learned | the \\x1b[31mend[<|endoftext|>]" in fourth
    assert "cut off" in fifth
    assert "characters not shown" in fifth
    assert "read as prompt/completion (6 rows); used: prompt, completion; not used: topic (2 rows)" in text
    assert "rows: 6; that repeat a row: 1; that repeat a prompt: 2" in text
    assert "text of a special token, which is text: 1" in text


def test_a_terminal_shows_learned_tokens_in_green(rows: Path, model: Path) -> None:
    data = SFTData(RowFiles(str(rows)), tokenizer_dir=model, block_size=30)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    inspect_rows(
        RowFiles(str(rows)), data, 1, lambda *seen: command._show_row(console, data.tokenizer, *seen, longest=99)
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the question\x1b[32mthe answer\x1b[0m\x1b[1;32m<|endoftext|>\x1b[0m" in text


def test_validation_rows_that_are_trained_on_are_counted(
    rows: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = [ROWS[0], {"prompt": "the question ", "completion": "else"}, {"prompt": "new", "completion": "the"}]
    validation = write_jsonl(tmp_path / "held_out.jsonl", held_out)
    text = shown(capsys, "--rows", rows, "--model", model, "--validation", validation)
    assert "leakage: of 3 validation rows, 1 are trained on too, 2 have a prompt that is" in text


def test_rows_at_which_training_stops_are_counted_and_named(
    rows: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as stream:
        stream.write('{"prompt": "no completion"}\n')
    with pytest.raises(SystemExit) as stop:
        shown(capsys, "--rows", rows, "--model", model, "--block_size", 30, "--too_long", "refuse")
    assert stop.value.code == 1
    text = capsys.readouterr().out
    assert f"refused, rows: 2, the first is {rows}:5: 42 tokens; expected at most 31" in text
    assert f"reading stops: {rows}:7: " in text


@pytest.mark.parametrize(
    "rows_without_answer",
    [[], [{"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "the", "weight": 0}]}]],
)
def test_rows_of_which_nothing_is_learned_are_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows_without_answer: list[dict[str, object]]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_without_answer)
    with pytest.raises(SystemExit) as stop:
        shown(capsys, "--rows", rows, "--model", model)
    assert stop.value.code == 1  # as for other rows at which training stops
    assert "nothing to learn: expected a row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "rows: expected a file of rows"),
        (["--rows", "nowhere.jsonl", "--model", "."], "rows = nowhere.jsonl: nothing found"),
        (["--rows", ".", "--model", "nowhere"], "model = nowhere: no such folder"),
        (["--rows", ".", "--model", ".", "--show", "-1"], "show = -1: expected at least 0"),
    ],
)
def test_a_mistake_ends_with_2(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_outside_of_the_clone_the_bases_that_come_along_are_found(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `init` prints the command."""
    monkeypatch.chdir(rows.parent)
    assert "1: " in shown(capsys, "--rows", rows, "--model", "checkpoints/lit_consistency/biographies-adamw")


def test_help_waits_for_no_torch() -> None:
    code = "import sys; from lit_consistency.__main__ import main\n"
    code += "try: main(['data', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--prompt_style" in said
