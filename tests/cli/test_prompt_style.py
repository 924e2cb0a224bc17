"""Where no prompt style is named, fit takes what the base has, and what was taken stands in the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from litgpt import Config
from litgpt.prompts import Alpaca, Default, Phi2

from lit_consistency.callbacks.run_model import litgpt_style
from lit_consistency.cli.fit import build
from lit_consistency.cli.prompt_style import settle_prompt_style
from lit_consistency.data import RowFiles, RowMixture, SFTData
from tests.data.helpers import assistant, user, write_jsonl
from tests.runs import ROOT

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FILES = Namespace(class_path="lit_consistency.data.RowFiles", init_args=Namespace(path="rows.jsonl"))


def asked(**options: str) -> Namespace:
    """Rows of a task."""
    init_args = Namespace(task="piqa", split="scored", **options)
    return Namespace(class_path="lit_consistency.tasks.TaskRows", init_args=init_args)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The shipped base's tokenizer, which has no chat template."""
    shutil.copytree(ROOT / "checkpoints/lit_consistency/biographies-adamw", tmp_path / "base")
    return tmp_path / "base"


def taken(base: Path | None, rows: Namespace, style: str | None = None) -> str | None:
    """The style in a call's configuration, once it is settled."""
    data = Namespace(class_path="lit_consistency.data.SFTData")
    data.init_args = Namespace(rows=rows, tokenizer_dir=None, prompt_style=style)
    section = Namespace(data=data, model=Namespace(checkpoint_dir=str(base) if base else None))
    settle_prompt_style(section)
    return section.data.init_args.prompt_style


def test_the_base_decides_and_rows_of_a_task_are_taken_as_they_are_asked(base: Path) -> None:
    assert taken(base, FILES) == taken(None, FILES) == "default"
    (base / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Alpaca")
    assert taken(base, FILES) == "alpaca"
    (base / "chat_template.jinja").write_text(TEMPLATE)
    assert taken(base, FILES) == "chat_template"
    assert taken(None, FILES) == "default"  # a base that is yet to be made
    assert taken(base, FILES, style="default") == "default"
    assert taken(base, asked()) == "default"
    assert taken(base, asked(format="chat")) == "chat_template"
    sets = {"a": asked()}
    mixed = Namespace(class_path="lit_consistency.data.RowMixture", init_args=Namespace(sets=sets))
    assert taken(base, mixed) == "default"
    sets["b"] = FILES
    assert taken(base, mixed) == "chat_template"


def test_a_run_records_what_was_taken_and_says_it(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (base / "chat_template.jinja").write_text(TEMPLATE)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [user("who ?"), assistant("you .")]}] * 4)
    call = ["fit", f"--config={ROOT}/configs/quickstart.yaml", f"--config={ROOT}/configs/data/sft_mixture.yaml"]
    call += [f"--data.init_args.rows.init_args.sets.{name}.init_args.path={rows}" for name in ("maths", "chat")]
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        cli = build([*call, f"--model.checkpoint_dir={base}", f"--run.root={tmp_path}"])
    assert "data: prompt_style = chat_template: the tokenizer's own" in caplog.messages
    assert yaml.safe_load(cli.dump())["data"]["init_args"]["prompt_style"] == "chat_template"
    assert cli.datamodule.prompt_style == "chat_template"


def test_data_built_by_hand_take_the_same_and_so_does_what_is_held_out(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text(TEMPLATE)
    rows = RowFiles(str(write_jsonl(tmp_path / "rows.jsonl", [{"messages": [user("who ?"), assistant("you .")]}] * 4)))
    data = SFTData(RowMixture({"a": rows}), validation_share=0.5, tokenizer_dir=base)
    assert data.taken_style() == ("chat_template", "the tokenizer's own")
    text = data.tokenizer.decode_tokens(data.encoder().encode(next(rows.rows())).tokens.tolist())
    assert "assistant" in text.replace(" ", "")


def test_litgpt_is_told_how_the_model_is_prompted_now(base: Path) -> None:
    rows = RowFiles(str(write_jsonl(base / "rows.jsonl", [{"prompt": "a", "completion": "b"}])))

    def told(style: str, name: str = "pythia-14m") -> Any:
        module: Any = SimpleNamespace(config=Config.from_name(name))
        return litgpt_style(SFTData(rows, tokenizer_dir=base, prompt_style=style), module)

    (base / "chat_template.jinja").write_text(TEMPLATE)
    assert type(told("default")) is Default
    assert type(told("alpaca")) is Alpaca
    assert told("chat_template") is None  # LitGPT goes by the model's name
    # a base that was trained to be prompted otherwise: its file is not taken over
    (base / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Alpaca")
    assert type(told("chat_template", "phi-2")) is Phi2
