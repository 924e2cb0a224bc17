"""A model of one layer with a byte-level tokenizer, and task files, for tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_consistency.__main__ import main
from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.model import GPT, model_config, save_model
from lit_consistency.records.provenance import Provenance
from lit_consistency.tasks import Task
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.question import Question
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.task import Asking, EncodedTask
from lit_consistency.tasks.yaml_file import load_task
from tests.data.conftest import byte_level_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(folder: Path, chat: bool = False, bos: bool = False) -> Tokenizer:
    """One token per byte or frequent piece; ``<s>`` opens every text where ``bos`` says so."""
    write_tokenizer(byte_level_tokenizer(), folder)
    if chat:
        (folder / "chat_template.jinja").write_text(CHATML)
    if bos:
        file = folder / "tokenizer_config.json"
        config = {**json.loads(file.read_text()), "bos_token": "<s>", "add_bos_token": True}
        file.write_text(json.dumps(config))
    return Tokenizer(folder)


def tiny_model(folder: Path, seed: int = 0, block_size: int = 128, scale: float = 3, bos: bool = False) -> Path:
    """A model folder with random weights, the same for the same seed."""
    tokenizer = tiny_tokenizer(folder.parent / f"{folder.name}-tokenizer", bos=bos)
    overrides = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": block_size}
    config = model_config("pythia-14m", None, overrides, tokenizer.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = GPT(config).state_dict()
    weights = {name: tensor * (scale if name.endswith("weight") else 1) for name, tensor in weights.items()}
    stage = {"model": "pythia-14m", "optimizer": "AdamW", "method": "full", "stage": "pretrain", "steps": 7}
    save_model(folder, weights, config, tokenizer.folder, Provenance(**stage))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(path: Path, **keys: Any) -> Path:
    """A task file; data and few_shot may be given as rows, which become files beside it."""
    for key in ("data", "few_shot"):
        if isinstance(keys.get(key), list):
            keys[key] = {"path": str(write_lines(path.parent / f"{path.stem}_{key}.jsonl", keys[key]))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def task_of(folder: Path, **keys: Any) -> Task:
    """The task of such a file."""
    return load_task(str(write_task(folder / "task.yaml", **keys)))


def built(
    task: Task, tokenizer: Tokenizer, form: str = "default", shots: int = 0, block: int = 256, **options: Any
) -> EncodedTask:
    """The task's questions."""
    return task.questions(read_task(task, shots > 0), Asking(tokenizer, block, load_format(form), shots, **options))


def rows_of(task: Task) -> list[Question]:
    """What the labelled rows ask."""
    return read_task(task).scored


PAIRS: dict[str, Any] = {"kind": "pairs", "choices": ["{good}", "{bad}"], "group": "{part}"}
WRITTEN: dict[str, Any] = {"kind": "generation", "metrics": ["rouge_l", "exact_match"], "fields": {"Q": "{h}"}}
NLI: dict[str, Any] = {
    "kind": "choice",
    "fields": {"Premise": "{p}", "Hypothesis": "{h}"},
    "instruction": "Does it follow?",
    "choices": ["yes", "no"],
    "gold": "{label}",
}


def nli_rows(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with both labels, each other than the others."""
    return [{"p": f"thing {i} is red", "h": f"thing {i} has colour", "label": i % 2} for i in range(start, start + n)]


def task_files(folder: Path) -> list[str]:
    """One task of each kind."""
    pairs = [{"good": f"she runs {i}", "bad": f"she run {i}", "part": "ab"[i % 2]} for i in range(8)]
    known = {"kind": "completion", "fields": {"Q": "{h}"}, "completion": "{p}"}
    files = [
        write_task(folder / "nli.yaml", **NLI, data=nli_rows(16), few_shot=nli_rows(9, start=50)),
        write_task(folder / "syntax.yaml", **PAIRS, data=pairs),
        write_task(folder / "prose.yaml", kind="text", text="{p}", data=nli_rows(4)),
        write_task(
            folder / "said.yaml", **WRITTEN, references="{p}", data=nli_rows(3), generation={"max_new_tokens": 5}
        ),
        write_task(folder / "known.yaml", **known, data=nli_rows(6)),
    ]
    return [str(file) for file in files]


def evaluate(model: Path, *args: object) -> None:
    """Run the command on the CPU."""
    main(["evaluate", "--model", str(model), "--device", "cpu", *map(str, args)])
