"""Items per core-second of our evaluation against lm-evaluation-harness's Hugging Face path, same model, same scores.

    python -m tests.benchmarks.evaluation --check --json evaluation.json

Both get the same requests as text: tokenizing is part of the work, loading the model is not. One thread, process CPU
time, the two in turns, medians of the rounds; lm-eval runs with the batch size that is fastest for the task. The model
has the shape of pythia-14m (6 layers, 128 dimensions, 50,304 tokens) with a context of 1,024 and random weights, so no
text ends early. PIQA and BLiMP are asked as lm-eval's tasks of these names ask them (8 of BLiMP's 67 phenomena),
GSM8K with four examples and 64 new tokens. ``--data`` is a folder with evaluation/choice/piqa.jsonl,
evaluation/blimp/BLiMP.zip, sft/gsm8k/*.jsonl and tokenizers/gptneox20b; without it questions of like lengths are made
up. ``--check`` exits with 1 and names what is missed: 3 times on PIQA and BLiMP, 2 times on GSM8K, equal scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.model import HarnessModel
from lit_consistency.model import GPT, export_hf, init_weights, model_config, save_model
from lit_consistency.records.provenance import Provenance
from tests.hugging_face_lm import hugging_face_lm
from tests.model.tiny_models import tiny_tokenizer

BATCH_SIZES = (1, 4, 8, 16, 32)
BATCH_TOKENS = 4096
NEW_TOKENS = 64
GENERATION = {"until": ["Question:"], "do_sample": False, "temperature": 0.0, "max_gen_toks": NEW_TOKENS}


class Case(NamedTuple):
    """A task: requests as lm-eval makes them, how many make an item, and the bar."""

    name: str
    method: str
    requests: list[tuple[Any, ...]]
    per_item: int
    bar: float


class Outcome(NamedTuple):
    """Items per core-second of both, lm-eval's batch size, how far the scores are apart, and how far from float64's."""

    name: str
    n_items: int
    batch_size: int
    theirs: float
    ours: float
    bar: float
    difference: str
    equal: bool
    from_float64: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


# -------------------- requests


def piqa(rows: list[dict[str, Any]]) -> Case:
    """Two continuations of a question."""
    pairs = [(f"{row['query']}Answer:", f" {choice}") for row in rows for choice in row["choices"]]
    return Case("PIQA", "loglikelihood", pairs, 2, 3.0)


def blimp(rows: list[dict[str, Any]]) -> Case:
    """Two sentences without a context."""
    pairs = [("", row[key]) for row in rows for key in ("sentence_good", "sentence_bad")]
    return Case("BLiMP", "loglikelihood", pairs, 2, 3.0)


def gsm8k(rows: list[dict[str, Any]], examples: list[dict[str, Any]]) -> Case:
    """An answer to write, after examples that all questions share."""
    head = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples)
    requests = [(f"{head}Question: {row['question']}\nAnswer:", dict(GENERATION)) for row in rows]
    return Case("GSM8K", "generate_until", requests, 1, 2.0)


def real_cases(data: Path, n: int) -> list[Case]:
    """From files, spread evenly over them."""
    rows = _lines((data / "evaluation/choice/piqa.jsonl").read_text(encoding="utf-8"))
    with zipfile.ZipFile(data / "evaluation/blimp/BLiMP.zip") as archive:
        names = sorted(x for x in archive.namelist() if x.endswith(".jsonl") and "__MACOSX" not in x)[::9]
        pairs = [row for x in names for row in _lines(archive.read(x).decode())[: 4 * n // len(names)]]
    train, test = (_lines((data / f"sft/gsm8k/{x}.jsonl").read_text(encoding="utf-8")) for x in ("train", "test"))
    return [piqa(rows[:: len(rows) // n][:n]), blimp(pairs), gsm8k(test[: max(n // 5, 2)], train[:4])]


def made_up_cases(n: int) -> list[Case]:
    """Words in a row, of lengths as in the real data; pairs that differ in one word."""
    rng = np.random.default_rng(0)
    sentence = "the llama eats grass of hill and salt from sea with old wooden hands under cold moving water"
    words = sentence.split()

    def text(low: int, high: int) -> list[str]:
        return rng.choice(words, rng.integers(low, high)).tolist()

    rows = []
    for _ in range(n):
        first = text(10, 30)
        second = [*first[: len(first) // 2], *text(3, 15)]
        rows.append({"query": f"Question: {' '.join(text(5, 15))}\n", "choices": [" ".join(first), " ".join(second)]})
    pairs = []
    for _ in range(4 * n):
        good = text(6, 11)
        bad = [*good]
        bad[int(rng.integers(2, len(bad)))] = "moon"
        pairs.append({"sentence_good": " ".join(good), "sentence_bad": " ".join(bad)})
    problems = [{"question": " ".join(text(30, 60)), "answer": " ".join(text(40, 80))} for _ in range(n // 5 + 6)]
    return [piqa(rows), blimp(pairs), gsm8k(problems[4 : 4 + max(n // 5, 2)], problems[:4])]


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


# -------------------- measuring


def exported(root: Path, tokenizer_dir: Path) -> GPT:
    """The model, saved as ``root/lit`` and for transformers as ``root/hf``."""
    config = model_config("pythia-14m", None, {"block_size": 1024}, None)
    torch.manual_seed(0)
    model = GPT(config)
    init_weights(model, config)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # as decided as a trained model: no greedy choice hangs on rounding
    provenance = Provenance(model="pythia-14m", optimizer="none", method="full", stage="pretrain")
    save_model(root / "lit", model.state_dict(), config, tokenizer_dir, provenance)
    export_hf(root / "lit", root / "hf")
    return model.eval()


def run_theirs(lm: Any, case: Case) -> list[Any]:
    """lm-eval's path on the case's requests."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type=case.method, doc={}, arguments=arguments, idx=i)
        for i, arguments in enumerate(case.requests)
    ]
    return getattr(lm, case.method)(requests, disable_tqdm=True)


def run_ours(lm: HarnessModel, case: Case) -> list[Any]:
    """Ours."""
    requests: Any = case.requests
    return lm.texts(requests) if case.method == "generate_until" else lm.log_likelihoods(requests)


def measure(case: Case, ours: HarnessModel, theirs: dict[int, Any], exact: HarnessModel, n_rounds: int) -> Outcome:
    """lm-eval's best batch size first, then both in turns; ``exact`` is ours in float64."""
    part = case._replace(requests=case.requests[: max(len(case.requests) // 3, 2 * case.per_item)])
    best = min(theirs, key=lambda size: min(_seconds(lambda: run_theirs(theirs[size], part))[0] for _ in range(2)))
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    found: dict[str, list[Any]] = {}
    for i in range(n_rounds):
        turns: list[tuple[str, Callable[[], list[Any]]]] = [
            ("theirs", lambda: run_theirs(theirs[best], case)),
            ("ours", lambda: run_ours(ours, case)),
        ]
        for name, turn in turns if i % 2 else turns[::-1]:
            seconds, found[name] = _seconds(turn)
            times[name].append(seconds)
    n_items = len(case.requests) // case.per_item
    rates = {name: n_items / statistics.median(seconds) for name, seconds in times.items()}
    difference, equal = compare(case, found["ours"], found["theirs"])
    rounding = from_float64(case, found["ours"], found["theirs"], exact)
    return Outcome(case.name, n_items, best, rates["theirs"], rates["ours"], case.bar, difference, equal, rounding)


def from_float64(case: Case, ours: list[Any], theirs: list[Any], exact: HarnessModel) -> str:
    """The largest differences of both from the same model in float64, where there are log-likelihoods."""
    if case.method == "generate_until":
        return ""
    truth = np.array([score for score, _ in run_ours(exact, case)])
    both = [np.abs(np.array([score for score, _ in found]) - truth).max() for found in (ours, theirs)]
    return f"{both[0]:.1e}, {both[1]:.1e}"


def compare(case: Case, ours: list[Any], theirs: list[Any]) -> tuple[str, bool]:
    """Texts are equal; log-likelihoods within 1e-4, or a float32's rounding of so large a sum; choices are equal."""
    if case.method == "generate_until":
        n = sum(a != b for a, b in zip(ours, theirs, strict=True))
        return f"{n} texts", n == 0
    a, b = (np.array([score for score, _ in found]) for found in (ours, theirs))
    close = all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-4) for x, y in zip(a, b, strict=True))
    choices = [found.reshape(-1, case.per_item).argmax(1) for found in (a, b)]
    greedy = [[first for _, first in found] for found in (ours, theirs)]
    same = bool((choices[0] == choices[1]).all()) and greedy[0] == greedy[1]
    return f"{np.abs(a - b).max():.1e} nats", close and same


def _seconds(turn: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    began = time.process_time()
    found = turn()
    return time.process_time() - began, found


def missed(outcomes: list[Outcome]) -> list[str]:
    """What falls short, in words."""
    slow = [f"{o.name}: {o.ratio:.2f} times, expected {o.bar}" for o in outcomes if o.ratio < o.bar]
    return slow + [f"{o.name}: scores differ ({o.difference})" for o in outcomes if not o.equal]


def table(outcomes: list[Outcome]) -> str:
    """Markdown."""
    heads = ["task", "items", "lm-eval, items/s (batch)", "ours, items/s", "times", "bar", "largest difference"]
    heads.append("from float64: ours, lm-eval")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for o in outcomes:
        theirs = f"{o.theirs:.1f} ({o.batch_size})"
        cells = [o.name, o.n_items, theirs, f"{o.ours:.1f}", f"{o.ratio:.2f}", o.bar, o.difference, o.from_float64]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and with ``--check`` return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real data; without it questions are made up")
    parser.add_argument("--items", type=int, default=60, help="items of PIQA; BLiMP gets 4 times, GSM8K a fifth")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        real = options.data / "tokenizers/gptneox20b" if options.data else None
        model = exported(root, real or tiny_tokenizer(root / "tokenizer"))
        ours, double = (
            HarnessModel(each, Tokenizer(root / "lit"), batch_tokens=BATCH_TOKENS, device=torch.device("cpu"))
            for each in (model, copy.deepcopy(model).double())
        )
        theirs = {size: hugging_face_lm(root / "hf", size) for size in BATCH_SIZES}
        cases = real_cases(options.data, options.items) if options.data else made_up_cases(options.items)
        with torch.no_grad():
            outcomes = [measure(case, ours, theirs, double, options.rounds) for case in cases]
    print(table(outcomes))
    if options.json:
        rows = [{**outcome._asdict(), "ratio": outcome.ratio} for outcome in outcomes]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    problems = missed(outcomes)
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    return 1 if options.check and problems else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.exit(main())
