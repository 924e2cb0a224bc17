"""Every configuration is run by the command in its own first lines, for two steps."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.cli.fit import build
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import Biographies
from tests.cli.test_overlays import defaults_of
from tests.runs import ROOT, OnlyFit

CONFIGS = sorted(
    p for p in (ROOT / "configs").rglob("*.yaml") if not {"evaluation", "sequences", "studies"} & set(p.parts)
)  # tasks: tests/evaluation; sequences of tasks and studies: tests/study
DATA = os.environ.get("LIT_CONSISTENCY_TEST_DATA")
SHORT = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--forgetting.every_n_steps=0", "--run.name=run"]
SHORT += [
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--forgetting.kl_positions=8",
    "--run.save_model=false",
]
WATCHED = ("quickstart", "pretrain", "finetune", "tasks")
"""Configurations that say what is watched; with the others the quickstart's 3,600 questions would only take time."""

OWN = "--model.anchor.init_args.samples"
FEW_TEXTS = {
    "self": ["--data.init_args.replay.init_args.parts.own.init_args.n_texts=20"],
    "kl": [f"{OWN}=lit_consistency.data.OwnSamples", f"{OWN}.init_args.n_texts=20"],
}
"""Of the 1,000 that a base of its own would write first."""


def command(path: Path) -> list[str]:
    """Arguments of the first command of the header that names the file itself."""
    comments = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(comments).replace("\\\n", " ")
    found = [c for c in re.findall(r"python -m lit_consistency (.*)", text) if str(path.relative_to(ROOT)) in c]
    assert found, f"{path} does not open with a command that names it"
    return shlex.split(found[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands' placeholders stand for: a text, rows, a tokenizer."""
    folder = tmp_path_factory.mktemp("place")
    documents = "\n\n\n".join(f"Document {i} tells of the hobby of somebody." for i in range(400))
    (folder / "YOUR.txt").write_text(documents)
    rows = [{"prompt": f"Which hobby is number {i}?", "completion": " golf."} for i in range(100)]
    (folder / "YOUR.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tokenizer(Biographies(n_people=2).tokenizer(), folder / "FOLDER_WITH_TOKENIZER_JSON")
    return folder


def with_real_data(args: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command in a folder that has ./data; what it finetunes is made from scratch."""
    if DATA is None:
        pytest.skip("LIT_CONSISTENCY_TEST_DATA is not set to a folder with the real data")
    (folder / "data").symlink_to(Path(DATA).resolve())
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(folder)
    args = [*args, "--model.schedule.init_args.warmup=0"]
    if "--model.checkpoint_dir" in args:
        args = [*from_scratch(args), "--data.init_args.tokenizer_dir=data/tokenizers/bpe4096"]
    return args


def watched(path: Path) -> list[str]:
    """Options that leave of what a run watches by default as much as says that it is watched."""
    if path == ROOT / "configs" / "finetune.yaml":  # the suite: test_init.py asks all of its sets
        return ["--forgetting.retain={}"]
    if path.stem not in WATCHED:
        return ["--forgetting.learn={}", "--forgetting.retain={}"]
    options = ["--forgetting.retain.old_people.limit=50"] if path.stem in ("quickstart", "tasks") else []
    if path.stem == "tasks":
        written = ("learn.new_written", "retain.old_written", "retain.old_choice")
        options += [f"--forgetting.{name}.limit=9" for name in written]
    return options


def from_scratch(args: list[str]) -> list[str]:
    """The command with a model made from scratch in place of a base that another command makes."""
    at = args.index("--model.checkpoint_dir")
    small = ["--model.name=pythia-14m", "--model.overrides.n_layer=1", "--model.overrides.n_embd=32"]
    return [*args[:at], *small, *args[at + 2 :]]


@pytest.mark.filterwarnings("ignore:.*was pretrained with")
@pytest.mark.filterwarnings("ignore:task gsm8k_answers. truncated")  # one question is longer than the tiny context
@pytest.mark.filterwarnings("ignore:data.global_batch_size")  # 100 rows are packed into few
@pytest.mark.filterwarnings("ignore:more than one world in this run")  # arithmetic/finetune.yaml retains the base's
@pytest.mark.parametrize(
    "path",
    # those of one optimizer differ in it alone
    [
        pytest.param(p, marks=pytest.mark.slow) if p.parent.name in ("pretraining", "forgetting", "markov") else p
        for p in CONFIGS
    ],
    ids=lambda p: str(p.relative_to(ROOT / "configs")),
)
def test_the_command_of_a_config_runs(path: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = [str(place / a) if a.startswith(("YOUR", "FOLDER")) else a for a in command(path)]
    args += [*SHORT, f"--run.root={tmp_path}"]
    args += watched(path)
    args += FEW_TEXTS.get(path.stem, [])
    if "--run.final_dir" in args:
        args[args.index("--run.final_dir") + 1] = str(tmp_path / "final")
    if path.parent.name == "books":
        args = with_real_data(args, tmp_path, monkeypatch)
    if path.parent.name in ("arithmetic", "markov") and path.stem == "finetune":
        args = from_scratch(args)
    if path.parent.name == "devices":
        args.append("--trainer.devices=1")  # several are several processes: test_ddp.py, test_fsdp2.py
    if path.stem == "hsdp":
        with pytest.raises(ValueError, match="replicas = 2: expected a divisor of 1"):
            build(args)
        return
    if path.stem == "sft_chat":  # a model and data of the hub: it must parse, and miss the extra or the model
        with pytest.raises((ImportError, ValueError, OSError), match=r"checkpoints/Qwen/Qwen2\.5-0\.5B-Instruct|hf"):
            build(args)
        return
    cli = build(args, OnlyFit)
    cli.execute()
    assert cli.trainer.global_step == 2


def test_only_what_runs_alone_names_an_optimizer_among_the_tasks() -> None:
    optimizers = {ROOT / "configs" / name for name in ("optimizers", "pretraining")}
    for path in CONFIGS:
        names_one = "optimizer" in (yaml.safe_load(path.read_text()).get("model") or {})
        runs_alone = path.relative_to(ROOT / "configs").as_posix() in ("quickstart.yaml", "finetune.yaml")
        assert names_one == (path.parent in optimizers or runs_alone), path


def class_specs(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class path and options of every class in a configuration."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value["class_path"], value.get("init_args", {})
        for entry in value.values():
            yield from class_specs(entry)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_config_names_what_it_changes(path: Path) -> None:
    """An option that has its default anyway must say, on its line, why it is named."""
    text = path.read_text()
    reasoned = {match[1] for match in re.finditer(r"^\s*(\w+):.*  # \w", text, re.MULTILINE)}
    for name, options in class_specs(yaml.safe_load(text)):
        module, _, kind = name.rpartition(".")
        parameters = defaults_of(getattr(import_module(module), kind))
        assert set(options) <= set(parameters), name
        defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
        unchanged = {key for key, value in options.items() if value == defaults[key]}
        assert unchanged <= reasoned, f"{name}: {unchanged - reasoned}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_option_of_an_optimizer_or_method_has_its_reason_beside_it(path: Path) -> None:
    if path.parent.name not in ("optimizers", "pretraining", "methods"):
        return
    options = path.read_text().partition("init_args:\n")[2].splitlines()
    assert all(re.search(r"  # \w", line) for line in options), options
