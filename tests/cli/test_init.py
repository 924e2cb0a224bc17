"""``init``: a configuration filled in by a model and rows, with which ``fit`` runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.__main__ import main
from lit_consistency.cli.fit import build
from lit_consistency.cli.init import Row, fill, suggested_optimizer, suggested_rates
from lit_consistency.data import RowFiles, SFTData
from lit_consistency.data.inspection import inspect_rows
from lit_consistency.data.suggested import suggested_style
from lit_consistency.records.pretraining import pretraining_of
from lit_consistency.records.provenance import Provenance
from tests.data.helpers import write_jsonl
from tests.runs import ROOT, OnlyFit

BASE = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"
NAMES = ("Anna", "Ben", "Cora", "Dan", "Eva")
PAIRS = [
    {"question": f"Where does {name} live, {i}?", "answer": f" {name} lives in {i}."}
    for i in range(12)
    for name in NAMES
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def turns(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the quickstart's base, without its weights but for their name."""
    shutil.copytree(BASE, tmp_path / "base", ignore=shutil.ignore_patterns("lit_model.pth"))
    (tmp_path / "base" / "lit_model.pth").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    main(["init", "--model", "base", *options])
    return yaml.safe_load(Path("finetune.yaml").read_text()), capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["init", *options])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_two_commands_lead_from_two_paths_to_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    main(["init", "--model", str(BASE), "--rows", "rows.jsonl"])
    said = capsys.readouterr().out
    assert "rows read as question/answer (60 rows); used: question, answer\n" in said
    assert "fit --config finetune.yaml" in said
    assert "checkpoints/runs/biographies-adamw-rows/model --to hf" in said
    short = [
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--forgetting.kl_positions=8",
        "--forgetting.retain={suite: {limit: 3}}",  # of every set of the suite, which is what null stands for
        "--run.save_model=false",
    ]
    cli = build(["fit", "--config=finetune.yaml", *short], OnlyFit)
    cli.execute()
    assert cli.trainer.global_step == 2
    run = json.loads((tmp_path / "checkpoints/runs/biographies-adamw-rows/run.json").read_text())
    assert run["optimizer"] == "AdamW"
    assert {"learn/validation", "learned/validation"} <= cli.trainer.callback_metrics.keys()
    data = cli.datamodule
    assert data.stats()["train"]["n_truncated"] == data.stats()["validation"]["n_truncated"] == 0
    # what is held out is what the file says, and the steps are about those that it says
    n_packed = data.stats()["train"]["n_rows"]
    assert 5 <= data.stats()["validation"]["n_documents"] <= 20
    steps = ceil(n_packed / data.global_batch_size) * cli.trainer.max_epochs
    comment = next(line for line in Path("finetune.yaml").read_text().splitlines() if "max_epochs" in line)
    assert abs(int(comment.split("about ")[1].split()[0]) - steps) <= 0.2 * steps


def test_values_come_from_the_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [{"prompt": f"{i}", "completion": "word " * (20 if i < 990 else 80)} for i in range(1000)]
    write_jsonl(place / "rows.jsonl", long)
    config, _ = written(capsys, "--rows", "rows.jsonl")
    data = config["data"]["init_args"]
    # 990 of 1,000 rows decide, the others are longer than the 256 tokens of the model too
    lengths = inspect_rows(
        RowFiles("rows.jsonl"), SFTData(RowFiles("rows.jsonl"), tokenizer_dir=place / "base")
    ).lengths
    expected = min(256, 64 * ceil((sorted(lengths)[989] - 1) / 64))
    assert data["block_size"] == expected
    assert data["validation_share"] == 0.1
    assert data["global_batch_size"] % data["micro_batch_size"] == 0
    assert config["trainer"]["max_epochs"] == 3
    assert config["data"]["init_args"]["rows"]["init_args"] == {"path": "rows.jsonl", "columns": None}
    assert config["model"]["checkpoint_dir"] == "base"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 3e-4, "the quickstart's, whose base it is"


def test_a_few_prompts_are_held_out_or_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(place / "rows.jsonl", PAIRS[:24])
    share = written(capsys, "--rows", "rows.jsonl")[0]["data"]["init_args"]["validation_share"]
    assert sum(1 for _ in RowFiles("rows.jsonl", "validation", share).rows()) >= 5
    write_jsonl(place / "few.jsonl", PAIRS[:4])
    config, said = written(capsys, "--rows", "few.jsonl", "--overwrite")
    assert config["data"]["init_args"]["validation_share"] is None
    assert "too few prompts to hold any out" in said
    assert config["trainer"]["max_epochs"] == 25


def test_the_prompt_style_is_the_models_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(place / "chat.jsonl", [turns("a", "b", "c", "d"), turns("e", "f")] * 20)
    assert suggested_style(place / "base", turns=False)[0] == "default"
    # without a template, default would not tell the turns apart
    assert written(capsys, "--rows", "chat.jsonl")[0]["data"]["init_args"]["prompt_style"] == "phi-2"
    (place / "base" / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Llama3")
    assert suggested_style(place / "base", turns=True)[0] == "llama3"
    (place / "base" / "prompt_style.yaml").write_text("class_path: os.system")
    assert suggested_style(place / "base", turns=False)[0] == "default"
    (place / "base" / "chat_template.jinja").write_text(TEMPLATE)
    config, said = written(capsys, "--rows", "chat.jsonl", "--overwrite")
    assert config["data"]["init_args"]["prompt_style"] == "chat_template"
    assert "prompt_style = chat_template: the tokenizer's own" in said
    assert "data --rows chat.jsonl --model base --prompt_style chat_template" in said


def test_the_optimizer_is_that_of_the_pretraining_where_it_is_known() -> None:
    assert suggested_optimizer(pretraining_of(None, []))[0] == "AdamW"
    for optimizer, expected in (("FilteredMuon", "Muon"), ("SGD", "SGD"), ("MoFO", "AdamW"), ("Shampoo", "AdamW")):
        found = suggested_optimizer(pretraining_of(Provenance("pythia-14m", optimizer, "full", "pretrain"), []))
        assert found[0] == expected
        assert optimizer in found[1]
    assert suggested_optimizer(pretraining_of(None, ["moonshotai/Moonlight-16B"]))[0] == "Muon"


def test_rates_fall_with_the_width() -> None:
    assert suggested_rates("AdamW", 128) == suggested_rates("Muon", 128) == (1e-4, 3e-4, 1e-3)
    assert suggested_rates("AdamW", 2048) == (1e-5, 3e-5, 1e-4)
    assert suggested_rates("AdamW", 4096) == (3e-6, 1e-5, 3e-5)
    assert suggested_rates("SGD", 128) == (3e-3, 1e-2, 3e-2)


def test_values_and_comments_are_replaced_by_their_keys() -> None:
    lines = ["a:", "  b: 1  # one", "  c:", "    b: 2", "  # b: 3", "b: 4  # four"]
    filled = fill(lines, [Row("a.c.b", "x: #y", "why"), Row("b", 5e-5, "five")])
    assert filled == ["a:", "  b: 1  # one", "  c:", "    b: 'x: #y'  # why", "  # b: 3", "b: 5.0e-05  # five"]


def test_a_mistake_is_named_and_nothing_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(place / "rows.jsonl", [*PAIRS, {"question": "no answer"}])
    assert "model: expected a model folder" in refused(capsys)
    assert "rows: expected a file of rows" in refused(capsys, "--model", "base")
    assert "model = nowhere: there is no such folder" in refused(capsys, "--model", "nowhere", "--rows", "rows.jsonl")
    assert "rows = nowhere.jsonl: nothing found" in refused(capsys, "--model", "base", "--rows", "nowhere.jsonl")
    call = ("--model", "base", "--rows", "rows.jsonl")
    assert "rows.jsonl:61: fields 'question'" in refused(capsys, *call)
    unlearned = turns("a", "b")
    unlearned["messages"][1]["weight"] = 0
    write_jsonl(place / "rows.jsonl", [unlearned])
    assert "nothing is learned of 1 rows; expected an answer that weight" in refused(capsys, *call)
    write_jsonl(place / "rows.jsonl", [{**turns("a", "b"), "tools": [{"name": "f"}]}])
    assert "rows.jsonl:1: prompt_style = 'default': tools" in refused(capsys, *call)
    assert not (place / "finetune.yaml").exists()
    write_jsonl(place / "rows.jsonl", PAIRS)
    (place / "finetune.yaml").write_text("mine")
    assert "to = finetune.yaml: exists" in refused(capsys, *call)
    assert (place / "finetune.yaml").read_text() == "mine"


def test_help_waits_for_no_torch() -> None:
    code = "import sys; from lit_consistency.__main__ import main\n"
    code += "try: main(['init', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--overwrite" in said
