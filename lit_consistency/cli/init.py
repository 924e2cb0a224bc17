"""``python -m lit_consistency init``: a configuration of ``fit`` for a model and rows, filled in by what both are.

It is ``configs/finetune.yaml`` with other values. Rows are read and tokenized, weights are not: it takes as long as the
imports and the rows do. What suits the rows stands in data/suggested.py, what suits the model here.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from lit_consistency.cli.parser import ShortErrors, add_options, command_parser
from lit_consistency.records.atomic import write_text
from lit_consistency.records.model_folder import CONFIG, check_checkpoint_dir
from lit_consistency.records.pretraining import UNKNOWN, Pretraining, pretraining_of_base
from lit_consistency.records.provenance import family
from lit_consistency.records.shipped import shipped

if TYPE_CHECKING:
    from lit_consistency.data.inspection import Inspection
    from lit_consistency.data.sources.rows import RowFiles
    from lit_consistency.data.suggested import Suggestion

PROGRAM = "python -m lit_consistency"
DESCRIPTION = """\
Write a configuration of fit for your model and your rows, filled in: the format of the rows, the prompt style, lengths,
batches, epochs, the share that is held out, the optimizer and its rate; and say which commands come next.

  init --model checkpoints/ORG/MODEL --rows YOUR.jsonl
  fit --config finetune.yaml
"""
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("model", Path, None, "model folder in LitGPT's format"),
    ("rows", str, None, "rows to train on: a file, a folder or a pattern, as of RowFiles"),
    ("to", Path, Path("finetune.yaml"), "the file to write"),
    (
        "columns",
        dict[str, str] | None,
        None,
        "fields of rows in another format, as '{prompt: ASK, completion: SAY}'",
    ),
)
FLAGS = (("overwrite", "replace a file that stands there"),)
LOOKED_AT = 10_000
"""Rows whose lengths are looked at, spread over all."""
RUNS = Path("checkpoints/runs")
TEMPLATE = Path("configs/finetune.yaml")
RATE = "model.optimizer.init_args.lr"
OPTIMIZERS = ("AdamW", "Muon", "SGD")
SGD_RATE = 0.01  # configs/optimizers/sgd.yaml's
RATE_TIMES_WIDTH = 0.0384
"""Of AdamW, and of Muon, whose update is scaled to AdamW's: the quickstart's 3e-4 at a width of 128, and the usual 1e-5
at 4,096; between them the rate falls as the width grows (Yang et al. 2022, arXiv 2203.03466)."""


class Row(NamedTuple):
    """A key of the file, its value, and what stands behind it."""

    key: str
    value: Any
    why: str


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("init", DESCRIPTION)
    add_options(command, OPTIONS, FLAGS)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2."""
    command = parser()
    given = vars(command.parse_args(argv))
    try:
        _check(given)
        _init(given, sys.argv[2:] if argv is None else argv)
    except (ValueError, OSError) as error:
        command.error(str(error))


def _check(given: dict[str, Any]) -> None:
    """Find what is wrong with the options before the slow imports."""
    for key, what in (("model", "a model folder"), ("rows", "a file of rows")):
        if given[key] is None:
            raise ValueError(f"{key}: expected {what}")
    given["folder"] = shipped(given["model"])
    check_checkpoint_dir(given["folder"], option="model")
    path = given["rows"]
    if not any(c in path for c in "*?[") and not Path(path).expanduser().exists():
        raise ValueError(f"rows = {path}: nothing found; expected a file, a folder or a pattern")
    if given["to"].exists() and not given["overwrite"]:
        raise ValueError(f"to = {given['to']}: exists; name another file, or give --overwrite to replace it")
    if not given["to"].parent.is_dir():
        raise ValueError(f"to = {given['to']}: there is no folder {given['to'].parent}")


def _init(given: dict[str, Any], argv: list[str]) -> None:
    """Look at model and rows, write the file, and say what it holds and what comes next."""
    from litgpt import Config

    from lit_consistency.data.sources.rows import RowFiles
    from lit_consistency.data.suggested import has_turns, suggest, suggested_style

    config = Config.from_file(given["folder"] / CONFIG)
    columns = {} if given["columns"] is None else {"columns": given["columns"]}
    rows = RowFiles(given["rows"], **columns)
    turns = [has_turns(row) for row in rows.rows()]
    if not turns:
        raise ValueError(f"rows = {given['rows']}: holds no row; expected at least one")
    style = suggested_style(given["folder"], any(turns))
    looked_at = _look(rows, given, style[0], config.block_size, every=-(-len(turns) // LOOKED_AT))
    suggestion = suggest(looked_at, len(turns), config)
    optimizer, why = suggested_optimizer(pretraining_of_base(given["folder"], config))
    rates = suggested_rates(optimizer, config.n_embd)
    others = f"the first thing to compare: also {_text(rates[0])} and {_text(rates[2])}"
    values = [
        Row("model.checkpoint_dir", _path(given["model"], given["to"]), "the base"),
        Row("model.optimizer.class_path", f"lit_consistency.optimizers.{optimizer}", why),
        Row(RATE, rates[1], others),
        *_of_rows(given, suggestion, style, looked_at),
        Row("run.name", _free_name(given), f"of its folder in {RUNS}; another run needs another name"),
    ]
    write_text(given["to"], _filled(values, argv, given["to"]))
    print(f"{given['to']}: for {len(turns):,} rows and about {suggestion.n_steps:,} steps")
    for form in looked_at.formats:
        print(f"  rows read as {form}")
    _say(given, {row.key.rpartition(".")[2]: row for row in values}, rates)


def _look(rows: RowFiles, given: Mapping[str, Any], style: str, block_size: int, every: int) -> Inspection:
    """Lengths of the rows in a style; ValueError for rows at which training would stop."""
    from lit_consistency.data.inspection import inspect_rows
    from lit_consistency.data.sft_data import SFTData
    from lit_consistency.data.suggested import EveryNth

    data = SFTData(rows, tokenizer_dir=given["folder"], prompt_style=style, block_size=block_size)
    looked_at = inspect_rows(EveryNth(rows, every) if every > 1 else rows, data)
    if looked_at.refused:
        reason, places = next(iter(looked_at.refused.items()))
        raise ValueError(
            f"rows = {given['rows']}: {looked_at.n_refused:,} of {looked_at.n_rows:,} rows are refused with the prompt "
            f"style {style!r}; the first is {places[0]}: {reason}"
        )
    if not any(looked_at.learned):
        raise ValueError(
            f"rows = {given['rows']}: nothing is learned of {looked_at.n_rows:,} rows; expected an answer that weight "
            "or train does not leave out"
        )
    if looked_at.n_dropped == looked_at.n_rows:
        raise ValueError(
            f"rows = {given['rows']}: none of {looked_at.n_rows:,} rows has a token to learn within the model's "
            f"block_size = {block_size}; expected shorter prompts, or a model of a longer context"
        )
    return looked_at


# -------------------- values


def suggested_optimizer(known: Pretraining) -> tuple[str, str]:
    """The optimizer that pretrained a base, where that is known and is one of ours, else AdamW; and why."""
    if known.optimizer is None or known.optimizer == UNKNOWN:
        return OPTIMIZERS[0], f"the usual one: what pretrained the base is not known ({known.source})"
    if family(known.optimizer) in OPTIMIZERS:
        return family(known.optimizer), f"as the base was pretrained, by {known.optimizer} ({known.source})"
    return OPTIMIZERS[0], f"the base was pretrained by {known.optimizer}; {OPTIMIZERS[0]} is the usual one"


def suggested_rates(optimizer: str, n_embd: int) -> tuple[float, float, float]:
    """A rate to begin with, between half a decade less and half a decade more: 1, 3, 10, 30 and so on."""
    rate = SGD_RATE if optimizer == "SGD" else RATE_TIMES_WIDTH / n_embd
    steps = round(2 * log10(rate))  # half decades
    low, middle, high = (float(f"{10 ** (step / 2):.0e}") for step in (steps - 1, steps, steps + 1))
    return low, middle, high


def _of_rows(
    given: Mapping[str, Any], suggestion: Suggestion, style: tuple[str, str], looked_at: Inspection
) -> list[Row]:
    """The rows, how they are written, and how many are taken at once."""
    share = suggestion.validation_share
    held_out = "of the prompts are held out, with all their answers: what is learned is measured on them"
    none = "there are too few prompts to hold any out: what is learned is not measured"
    rows = [Row("rows.init_args.path", _path(given["rows"], given["to"]), _formats(looked_at))]
    if given["columns"] is not None:
        rows.append(Row("rows.init_args.columns", given["columns"], "as given"))
    rows += [
        Row("validation_share", share, none if share is None else held_out),
        Row("prompt_style", style[0], style[1]),
        Row("block_size", suggestion.block_size, f"cuts {suggestion.n_cut:,} of {len(looked_at.lengths):,} rows"),
        Row("global_batch_size", suggestion.global_batch_size, "packed rows of an optimizer step"),
        Row("micro_batch_size", suggestion.micro_batch_size, "what fits into memory; no result depends on it"),
    ]
    n_steps = suggestion.n_steps
    return [
        Row("trainer.max_epochs", suggestion.max_epochs, f"about {n_steps:,} steps"),
        *(row._replace(key=f"data.init_args.{row.key}") for row in rows),
        Row("forgetting.every_n_steps", max(1, n_steps // 10), "as far as time_budget, 5% of the time, allows"),
    ]


def _formats(looked_at: Inspection) -> str:
    return "read as " + " and ".join(form.format for form in looked_at.formats)


def _path(path: Path | str, to: Path) -> str:
    """A path as it was given, where the file is written here; else from the root, wherever it is read from."""
    is_here = to.parent.resolve() == Path.cwd()
    return str(path) if is_here else str(shipped(Path(path).expanduser()).absolute())


def _free_name(given: Mapping[str, Any]) -> str:
    """A name for the run's folder, after the rows: the first that is free."""
    stem = Path(given["rows"]).name.partition(".")[0]
    folder = given["model"].resolve()
    base = folder.parent.name if folder.name == "model" else folder.name  # that of a run is called by the run
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{base}-{stem}").strip("-_")[:80]
    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (RUNS / name).exists())


# -------------------- the file


def _filled(values: list[Row], argv: list[str], to: Path) -> str:
    """The template with a header of its own, and the values and their reasons in place of what stands there."""
    head = [f"# {PROGRAM} init {shlex.join(argv)}", f"#   {PROGRAM} fit --config {shlex.quote(str(to))}"]
    template = shipped(TEMPLATE)
    body = [line for line in template.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    try:
        text = "\n".join([*head, *fill(body, values)]) + "\n"
    except KeyError as error:
        raise ValueError(
            f"{template}: no key {error}; expected those of the file that comes with the package"
        ) from None
    written = yaml.safe_load(text)
    for key, value, _ in values:
        entry = written
        for part in key.split("."):
            entry = entry[part]
        assert entry == value, (key, entry, value)
    return text


def fill(lines: list[str], values: list[Row]) -> list[str]:
    """Lines of YAML, of block style, with other values and comments behind some of their keys; KeyError for none."""
    by_key = {row.key: row for row in values}
    above: list[tuple[int, str]] = []  # (indent, key) of the mappings around a line
    filled = []
    for line in lines:
        if match := re.match(r"( *)(\w+):", line):
            indent = len(match[1])
            above = [*(entry for entry in above if entry[0] < indent), (indent, match[2])]
            if row := by_key.pop(".".join(key for _, key in above), None):
                line = f"{match[0]} {_yaml(row.value)}  # {row.why}"
        filled.append(line)
    if by_key:
        raise KeyError(next(iter(by_key)))
    return filled


# -------------------- what is said


def _say(given: Mapping[str, Any], rows: Mapping[str, Row], rates: tuple[float, ...]) -> None:
    """What was found, and the commands that come next."""
    value = {name: row.value for name, row in rows.items()}
    for name in ("prompt_style", "block_size", "max_epochs", "validation_share", "class_path", "lr"):
        shown = _text(value[name]) if name == "lr" else value[name]
        print(f"  {name.replace('class_path', 'optimizer')} = {shown}: {rows[name].why}")
    model, path, to = (shlex.quote(str(given[key])) for key in ("model", "rows", "to"))
    seen_as = f"--prompt_style {value['prompt_style']} --block_size {value['block_size']}"
    if given["columns"] is not None:
        seen_as += f" --columns {shlex.quote(_yaml(given['columns']))}"
    study = f"--stages.finetune.config '[{to}]' --stages.finetune.base {model}"
    run = RUNS / value["name"]
    after = {
        "see the rows as the model will": f"data --rows {path} --model {model} {seen_as}",
        "finetune, and see what is learned and forgotten, at the end in a table": f"fit --config {to}",
        "before and after": f"evaluate --compare {run / 'measured/first'} {run / 'measured/last'}",
        "for transformers": f"export --checkpoint_dir {run / 'model'} --to hf --out_dir OUT",
        "which of three rates keeps most": f"study --config configs/studies/rates.yaml {study} "
        f"--stages.finetune.axes '{{lr: {{key: {RATE}, values: [{', '.join(map(_text, rates))}]}}}}'",
    }
    for what, command in after.items():
        print(f"\n{what}:\n  {PROGRAM} {command}")


def _text(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _yaml(value: Any) -> str:
    """A value on one line; what stands alone would end by a line of dots."""
    return yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
