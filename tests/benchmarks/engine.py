"""Tokens per core-second of ``fit`` against LitGPT's own commands: same model, text or rows, precision, one thread.

    LIT_CONSISTENCY_TEST_DATA=DATA python -m tests.benchmarks.engine --check --json engine.json [--only sft-4,lora-4]

Whole commands run in turns as processes of their own, each with few and with more steps; the difference of their CPU
seconds over the difference of their real tokens (without padding) is the cost of a token, in which imports, tokenizing
and writing the model cancel. The model is pythia-14m with 50,304 tokens and random weights; pretraining is on books in
rows of 256, finetuning on Dolly's rows in the order of the file, at most 512 tokens, of which the answers are learned,
ours packed. Peak memory is that of the longer run. DATA holds text/books_fiction/*.txt, sft/dolly_1k/*.jsonl and
tokenizers/gptneox20b. LitGPT's pretraining needs litdata, which is installed into a folder that is thrown away, without
what it depends on but does not use here. ``--check`` exits with 1 and names what is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.model import GPT, init_weights, model_config, save_model
from lit_consistency.records.provenance import Provenance
from lit_consistency.study.summary import processor
from tests.benchmarks.measure import Bar

ROOT = Path(__file__).parents[2]
BLOCK, ROWS = 256, 4  # of pretraining
LONGEST, STEP_ROWS = 512, 16  # of finetuning: tokens of a row, rows of an optimizer step
STYLE = "phi-1"  # the plainest that LitGPT takes by name: a blank line and `Answer:` behind the prompt
LITDATA = ("litdata==0.2.59", "tifffile", "boto3", "botocore", "s3transfer", "jmespath")


class Case(NamedTuple):
    """One comparison.

    Args:
        job: ``pretrain``, ``full`` or ``lora``.
        micro: rows of LitGPT's micro-batch; ours holds as many tokens at most.
        precision: Lightning's name.
        compiled: whether LitGPT's is compiled; ours never is.
        steps: optimizer steps of the two runs.
        speed: least ratio of LitGPT's cost of a token to ours.
        memory: greatest ratio of our peak memory to LitGPT's.
    """

    job: str
    micro: int
    precision: str = "32-true"
    compiled: bool = False
    steps: tuple[int, int] = (4, 20)
    speed: float = 1.0
    memory: float = 1.0


CASES = {
    "pretraining": Case("pretrain", ROWS, speed=1.6, memory=0.6),
    "pretraining-compiled": Case("pretrain", ROWS, compiled=True, speed=1.5, memory=0.6),
    "pretraining-bf16": Case("pretrain", ROWS, "bf16-mixed", speed=2.0, memory=0.6),
    "sft-4": Case("full", 4, steps=(2, 8), speed=2.7, memory=0.65),
    "sft-1": Case("full", 1, steps=(2, 8), speed=2.2, memory=0.65),
    "lora-4": Case("lora", 4, steps=(2, 8), speed=3.0, memory=0.65),
    "lora-1": Case("lora", 1, steps=(2, 8), speed=2.0, memory=0.65),
}


class Spent(NamedTuple):
    """CPU seconds of a process and its children, and the peak memory of the largest of them in MiB."""

    seconds: float
    memory: float


class Place:
    """A folder with the model, text and rows of both."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.tokenizer = data / "tokenizers" / "gptneox20b"
        self.base = folder / "base" / "pythia-14m"
        config = model_config("pythia-14m", None, {}, None)
        torch.manual_seed(0)
        model = GPT(config)
        init_weights(model, config)
        save_model(
            self.base, model.state_dict(), config, self.tokenizer, Provenance("pythia-14m", "none", "full", "pretrain")
        )
        text = folder / "text"
        text.mkdir()
        book = next((data / "text" / "books_fiction").glob("*.txt")).read_text("utf-8")
        for i in range(4):  # LitGPT wants several files, and holds one of them out
            (text / f"books-{i}.txt").write_text(book[i * 250_000 : (i + 1) * 250_000], "utf-8")
        self.text = text
        lines = next((data / "sft" / "dolly_1k").glob("*.jsonl")).read_text("utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        count = Tokenizer(self.base)
        asked = [f"{row['prompt']}\n\nAnswer:" for row in self.rows]
        self.lengths = [
            min(len(count.encode(prompt)) + len(count.encode(row["response"])) + 1, LONGEST)
            for prompt, row in zip(asked, self.rows, strict=True)
        ]
        self.litdata: Path | None = None

    def row_folder(self, n_rows: int) -> Path:
        """The first rows in both formats."""
        folder = self.folder / f"rows-{n_rows}"
        if not folder.is_dir():
            folder.mkdir()
            rows = [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in self.rows]
            (folder / "train.json").write_text(json.dumps(rows[:n_rows]), "utf-8")
            (folder / "val.json").write_text(json.dumps(rows[-4:]), "utf-8")
            ours = [{"prompt": row["prompt"], "completion": row["response"]} for row in self.rows[:n_rows]]
            (folder / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ours), "utf-8")
        return folder

    def tokens(self, case: Case, steps: int) -> int:
        """Real tokens of so many steps."""
        return steps * BLOCK * ROWS if case.job == "pretrain" else sum(self.lengths[: steps * STEP_ROWS])

    def install_litdata(self) -> Path:
        """What LitGPT's pretraining imports, in a folder of its own."""
        if self.litdata is None:
            self.litdata = self.folder / "litdata"
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                str(self.litdata),
                *LITDATA,
            ]
            subprocess.run(install, check=True)
        return self.litdata


def litgpt_command(place: Place, case: Case, steps: int, out: Path) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of LitGPT's command."""
    evaluation = {"interval": 100_000, "max_iters": 1, "initial_validation": "false", "final_validation": "false"}
    options: dict[str, Any] = {f"eval.{key}": value for key, value in evaluation.items()} | {
        "out_dir": out,
        "precision": case.precision,
        "train.micro_batch_size": case.micro,
        "train.save_interval": 100_000,
        "train.lr_warmup_steps": 1,
    }
    environment = {"TORCHDYNAMO_DISABLE": "0" if case.compiled else "1"}
    if case.job == "pretrain":
        environment["PYTHONPATH"] = str(place.install_litdata())
        command = ["pretrain", "pythia-14m"]
        options |= {
            "data": "TextFiles",
            "data.train_data_path": place.text,
            "tokenizer_dir": place.base,
            "train.global_batch_size": ROWS,
            "train.max_seq_length": BLOCK,
            "train.max_tokens": place.tokens(case, steps),
        }
    else:
        command = [f"finetune_{case.job}", str(place.base)]
        options |= {
            "data": "JSON",
            "data.json_path": place.row_folder(steps * STEP_ROWS),
            "data.mask_prompt": "true",
            "data.prompt_style": STYLE,
            "train.global_batch_size": STEP_ROWS,
            "train.max_seq_length": LONGEST,
            "train.epochs": 1,
        }
    given = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "litgpt", *command, *given], environment


def our_command(place: Place, case: Case, steps: int, out: Path) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of ``fit``."""
    configuration: dict[str, Any] = {
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": case.precision},
        "model": {"optimizer": {"class_path": "lit_consistency.optimizers.AdamW", "init_args": {"lr": 3e-4}}},
        "forgetting": {"every_n_steps": 0, "retain": {}},
        "run": {"root": str(out), "name": "run"},
    }
    trainer, model = configuration["trainer"], configuration["model"]
    if case.job == "pretrain":
        trainer |= {"max_steps": steps, "gradient_clip_val": 1.0}
        model["name"] = "pythia-14m"
        # a file is one document, as LitGPT has it, so that no row has a mask
        options = {"path": str(place.text), "separator": None}
        source = {"class_path": "lit_consistency.data.DocumentFiles", "init_args": options}
        configuration["data"] = {
            "class_path": "lit_consistency.data.PretrainData",
            "init_args": {
                "source": source,
                "tokenizer_dir": str(place.base),
                "block_size": BLOCK,
                "global_batch_size": ROWS,
                "micro_batch_size": ROWS,
            },
        }
    else:
        trainer["max_epochs"] = 1
        model["checkpoint_dir"] = str(place.base)
        if case.job == "lora":
            model["method"] = {"class_path": "lit_consistency.methods.LoRA"}
        n_rows = steps * STEP_ROWS
        packed = round(STEP_ROWS * statistics.mean(place.lengths[:n_rows]) / LONGEST)
        path = str(place.row_folder(n_rows) / "ours.jsonl")
        configuration["data"] = {
            "class_path": "lit_consistency.data.SFTData",
            "init_args": {
                "rows": {"class_path": "lit_consistency.data.RowFiles", "init_args": {"path": path}},
                "prompt_style": STYLE,
                "block_size": LONGEST,
                "global_batch_size": packed,
                "micro_batch_size": max(d for d in range(1, case.micro + 1) if packed % d == 0),
            },
        }
    file = out / "config.yaml"
    file.write_text(yaml.safe_dump(configuration), "utf-8")
    return [sys.executable, "-m", "lit_consistency", "fit", "--config", str(file)], {}


COMMANDS = {"litgpt": litgpt_command, "ours": our_command}


def spend(command: list[str], environment: dict[str, str], log: Path) -> Spent:
    """Run a command with one thread.

    Raises:
        RuntimeError: it failed; names its log.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(part for part in (environment.get("PYTHONPATH"), str(ROOT)) if part)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **threads, "HF_HUB_OFFLINE": "1", **environment, "PYTHONPATH": path},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{tail}")
    return Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(place: Place, name: str, case: Case, repeats: int) -> dict[str, Any]:
    """A row of the table: milliseconds of CPU per 1,000 real tokens, peak memory, ratios."""
    costs: dict[str, list[float]] = {who: [] for who in COMMANDS}
    memory: dict[str, list[float]] = {who: [] for who in COMMANDS}
    few, more = case.steps
    tokens = place.tokens(case, more) - place.tokens(case, few)
    for repeat in range(repeats + 1):
        seconds: dict[tuple[str, int], float] = {}
        # the first round only leaves what both keep of a text's tokens
        for steps in case.steps if repeat else (few,) if case.job == "pretrain" else ():
            for who, command in COMMANDS.items():
                with _scratch(place.folder, f"{name}-{who}-{steps}-{repeat}") as out:
                    spent = spend(*command(place, case, steps, out), log=place.folder / f"{name}-{who}.log")
                seconds[who, steps] = spent.seconds
                if steps == more:
                    memory[who].append(spent.memory)
        for who in COMMANDS if repeat else ():
            costs[who].append(1e6 * (seconds[who, more] - seconds[who, few]) / tokens)
    row: dict[str, Any] = {"case": name, "tokens": tokens}
    for who in COMMANDS:
        row[f"{who}_ms_per_1k"] = round(statistics.median(costs[who]), 1)
        row[f"{who}_mib"] = round(max(memory[who]))
    row["speed"] = round(statistics.median(costs["litgpt"]) / statistics.median(costs["ours"]), 3)
    row["memory"] = round(row["ours_mib"] / row["litgpt_mib"], 3)
    return row


@contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as out:
        yield Path(out)


def main() -> int:
    """Measure, print the table, write the JSON; 1 where ``--check`` misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="names of cases, divided by commas")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not (data := os.environ.get("LIT_CONSISTENCY_TEST_DATA")):
        parser.error("LIT_CONSISTENCY_TEST_DATA is not set: expected a folder with books, Dolly's rows and a tokenizer")
    if unknown := set(names := given.only.split(",")) - set(CASES):
        parser.error(f"--only {sorted(unknown)[0]}: expected some of {', '.join(CASES)}")
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), Path(data))
        for name in names:
            row = measure(place, name, CASES[name], given.repeats)
            rows.append(row)
            print(json.dumps(row), flush=True)
            bars = [
                Bar(f"{name}, speed", row["speed"], CASES[name].speed, at_least=True),
                Bar(f"{name}, memory", row["memory"], CASES[name].memory),
            ]
            missed += [bar.text for bar in bars if not bar.met]
    if given.json:
        content = {"processor": processor(), "torch": torch.__version__, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"{processor()}, torch {torch.__version__}\n" + "\n".join(f"missed: {text}" for text in missed))
    return int(bool(missed) and given.check)


if __name__ == "__main__":
    sys.exit(main())
