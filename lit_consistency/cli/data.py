"""``python -m lit_consistency data``: the options, and what is shown. What is counted stands in data/inspection.py.

The options, and checks of what they name, cost a tenth of a second; the rooms below import torch and lightning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_consistency.cli.parser import ShortErrors, add_options, command_parser
from lit_consistency.records.shipped import shipped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lit_consistency.data.inspection import Inspection
    from lit_consistency.data.sft_data import SFTData
    from lit_consistency.data.sources.rows import Conversation, Rows
    from lit_consistency.data.tokens.tokenize import TokenizedRow
    from lit_consistency.data.tokens.tokenizer import Tokenizer

DESCRIPTION = """\
Show rows for finetuning as the model will see them, before anything is trained: the first rows token by token, what of
them is learned and what is cut; lengths; rows and prompts that repeat; validation rows that are trained on too; as what
the rows were read, and what is dropped or refused, and why.

  data --rows rows.jsonl --model checkpoints/ORG/MODEL
  data --rows train.jsonl --validation test.jsonl --model checkpoints/ORG/MODEL --block_size 1024

In a terminal learned tokens are green, others plain, special tokens bold, and what is cut off is red and struck out;
elsewhere each stretch of tokens has its name before it, and special tokens are in brackets. The exit status is 1 where
training would stop at a row.
"""
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("rows", str, None, "rows to train on: a file, a folder or a pattern, as of RowFiles"),
    ("validation", str | None, None, "rows that are held out, to see whether they are trained on too"),
    ("model", Path, None, "model folder in LitGPT's format, or a folder with its tokenizer alone"),
    (
        "columns",
        dict[str, str] | None,
        None,
        "fields of rows in another format, as '{prompt: ASK, completion: SAY}'",
    ),
    (
        "prompt_style",
        str | None,
        None,
        "as of SFTData: default, chat_template, or a style of LitGPT; null: what the model has, which is said",
    ),
    ("loss_on", str, "completion", "completion, or all for the prompt too"),
    (
        "block_size",
        int | None,
        None,
        "tokens of a training row; null: 512, or the model's where that is less",
    ),
    ("too_long", str, "truncate", "truncate, or refuse"),
    ("show", int, 3, "rows that are shown"),
    ("max_characters", int, 2000, "of a stretch of tokens that is shown; of a longer one the middle is left out"),
    ("limit", int, 0, "rows of each file that are looked at, from the first; 0: all"),
)
REASONS = 5
"""That are shown, where rows are refused for many."""
FLAGS = (("parse_special_tokens", "text of a special token inside the rows, as <|im_end|>, is the token"),)


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("data", DESCRIPTION)
    add_options(command, OPTIONS, FLAGS)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2, rows at which training would stop with 1."""
    command = parser()
    given = vars(command.parse_args(argv))
    if given["model"] is not None:
        given["model"] = shipped(given["model"])  # outside of the clone, the bases that come along are the package's
    if message := _mistake(given):
        command.error(message)
    if hasattr(sys.stdout, "reconfigure"):  # rows hold characters that a terminal may not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        stopped = _show(given)
    except (ValueError, OSError) as error:
        command.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if stopped:
        sys.exit(1)


def _mistake(given: dict[str, Any]) -> str:
    """What is wrong with the options, as far as it can be told before the slow imports; empty where nothing is."""
    for key, what in (("rows", "a file of rows"), ("model", "a model folder")):
        if given[key] is None:
            return f"{key}: expected {what}"
    for key, least in (("show", 0), ("max_characters", 1), ("limit", 0), ("block_size", 1)):
        if given[key] is not None and given[key] < least:
            return f"{key} = {given[key]}: expected at least {least}"
    for key in ("rows", "validation"):
        path = given[key]
        if path is not None and not any(c in path for c in "*?[") and not Path(path).expanduser().exists():
            return f"{key} = {path}: nothing found; expected a file, a folder or a pattern"
    if not given["model"].is_dir():
        return f"model = {given['model']}: no such folder; expected one with a tokenizer"
    return ""


def _show(given: dict[str, Any]) -> bool:
    """Looks at the rows and shows what was found; whether training would stop at one."""
    from rich.console import Console

    from lit_consistency.data.inspection import inspect_rows
    from lit_consistency.data.sft_data import style_line
    from lit_consistency.data.sources.rows import RowFiles

    data = _data(given)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if given["prompt_style"] is None:
        print(style_line(*data.taken_style()), file=sys.stderr)
    waiting = Console(stderr=True).status("rows")  # shown in a terminal, while there is nothing else to be shown
    n_seen = 0

    def seen(row: Conversation, tokenized: TokenizedRow) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen <= given["show"]:
            _show_row(console, data.tokenizer, row, tokenized, given["max_characters"])
        elif n_seen == given["show"] + 1:
            waiting.start()
        elif n_seen % 1000 == 0:
            waiting.update(f"{n_seen:,} rows")

    named: dict[str, Rows] = {"rows": RowFiles(given["rows"], **_columns(given))}
    if given["validation"] is not None:
        named["validation"] = RowFiles(given["validation"], **_columns(given))
    inspected = {}
    for name, rows in named.items():
        try:
            inspected[name] = inspect_rows(rows, data, given["limit"], seen)
        finally:
            waiting.stop()
        _show_counts(console, f"{name}: {given[name]}", inspected[name])
    if data.prompt_style != "chat_template" and data.tokenizer.chat_template is not None:
        console.print("the tokenizer has a chat template, which is not used: see --prompt_style chat_template")
    if "validation" in inspected:
        held_out = inspected["validation"]
        n_rows, n_prompts = held_out.leaked_from(inspected["rows"])
        text = f"leakage: of {held_out.n_rows:,} validation rows, {n_rows:,} are trained on too, "
        console.print(f"{text}{n_prompts:,} have a prompt that is", style="red" if n_prompts else "")
    return any(part.n_refused or part.unread or not any(part.kept) for part in inspected.values())


def _data(given: dict[str, Any]) -> SFTData:
    """How the rows would be trained on."""
    from litgpt import Config

    from lit_consistency.data.sft_data import SFTData
    from lit_consistency.data.sources.rows import RowFiles
    from lit_consistency.records.model_folder import CONFIG

    file = given["model"] / CONFIG
    longest = Config.from_file(file).block_size if file.is_file() else None
    block_size = given["block_size"]
    if block_size is None:
        block_size = min(512, longest or 512)
    elif longest is not None and block_size > longest:
        raise ValueError(f"block_size = {block_size}: expected at most {longest}, the model's block_size")
    return SFTData(
        RowFiles(given["rows"], **_columns(given)),
        tokenizer_dir=given["model"],
        block_size=block_size,
        **{key: given[key] for key in ("prompt_style", "loss_on", "too_long", "parse_special_tokens")},
    )


def _columns(given: dict[str, Any]) -> dict[str, Any]:
    return {} if given["columns"] is None else {"columns": given["columns"]}


# -------------------- a row


def _show_row(console: Console, tokenizer: Tokenizer, row: Conversation, tokenized: TokenizedRow, longest: int) -> None:
    """A row as the model will see it, stretch by stretch."""
    from rich.text import Text

    whole, example = tokenized.whole, tokenized.example
    n_learned = int(example.supervised[1:].sum())
    line = f"{row.place}: {len(whole.tokens):,} tokens, {n_learned:,} learned"
    if example is not whole:
        line += f", {len(whole.tokens) - len(example.tokens):,} cut off"
    console.print(line if tokenized.is_learned else f"{line}; dropped, nothing is left to learn", style="bold")
    styles = {"learned": "green", "cut off": "red strike", "": ""}
    shown = Text()
    for name, pieces in _stretches(tokenizer, tokenized):
        pieces = _shortened(pieces, longest)
        if console.is_terminal:
            for text, special in pieces:
                shown.append(text, f"bold {styles[name]}" if special else styles[name])
        else:
            text = "".join(f"[{text}]" if special else text for text, special in pieces)
            shown.append("".join(f"  {name:<7} | {line}\n" for line in text.split("\n")))
    console.print(shown)


def _stretches(tokenizer: Tokenizer, row: TokenizedRow) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Stretches of tokens that are learned, cut off, or neither: the name and the tokens' texts, which are special."""
    tokens, kept = row.whole.tokens.tolist(), len(row.example.tokens)
    names = ["cut off" if i >= kept else "learned" if row.whole.supervised[i] and i else "" for i in range(len(tokens))]
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or names[end] != names[start]:
            yield names[start], list(_texts(tokenizer, tokens, start, end))
            start = end


def _texts(tokenizer: Tokenizer, tokens: list[int], start: int, end: int) -> Iterator[tuple[str, bool]]:
    """Texts of tokens, those between special ones as one: single bytes of a character show nothing."""
    own = tokenizer.special_ids
    while start < end:
        stop = start + 1
        while stop < end and not {tokens[start], tokens[stop]} & own:
            stop += 1
        text = tokenizer.decode_after(tokens[:start], tokens[start:stop], special=True)
        # what would steer the terminal is shown by its code
        shown = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
        yield "".join(shown), tokens[start] in own
        start = stop


def _shortened(pieces: list[tuple[str, bool]], longest: int) -> list[tuple[str, bool]]:
    """The pieces, the longest ones without their middle."""
    short = []
    for text, special in pieces:
        if len(text) > longest:
            left_out = f" ... ({len(text) - longest:,} characters not shown) ... "
            text = text[: longest - longest // 2] + left_out + text[len(text) - longest // 2 :]
        short.append((text, special))
    return short


# -------------------- counts


def _show_counts(console: Console, title: str, result: Inspection) -> None:
    """Formats, counts and lengths of a set of rows."""
    console.print(title, style="bold")
    for form in result.formats:
        console.print(f"  read as {form}")
    repeated_rows, repeated_prompts = result.repeated()
    console.print(
        f"  rows: {result.n_rows:,}; that repeat a row: {repeated_rows:,}; that repeat a prompt: {repeated_prompts:,}"
    )
    if result.lengths:
        learned, kept = sum(result.learned), sum(result.kept)
        console.print(
            f"  cut at block_size {result.block_size}: {result.n_truncated:,} rows, {result.n_tokens_cut:,} of "
            f"{sum(result.lengths):,} tokens, {learned - kept:,} of {learned:,} learned ones; rows of which nothing is "
            f"left to learn, and which are dropped: {result.n_dropped:,}"
        )
        console.print(_lengths(result))
    if result.n_special_text:
        console.print(
            f"  rows with the text of a special token, which is text: {result.n_special_text:,}; with "
            "--parse_special_tokens it is the token"
        )
    for reason, places in islice(result.refused.items(), REASONS):
        console.print(f"  refused, rows: {len(places):,}, the first is {places[0]}: {reason}", style="red")
    if len(result.refused) > REASONS:
        others = result.n_refused - sum(map(len, islice(result.refused.values(), REASONS)))
        console.print(f"  refused for {len(result.refused) - REASONS:,} other reasons, rows: {others:,}", style="red")
    if result.unread:
        console.print(f"  reading stops: {result.unread}", style="red")
    elif not (any(result.kept) or result.refused):
        console.print("  nothing to learn: expected a row of which a token is learned", style="red")


def _lengths(result: Inspection) -> Table:
    """Lengths by percentile, and what is cut of a row so long."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("rows", "tokens, at most", "cut off"):
        table.add_column(heading, justify="right")
    for percentile, length, cut in result.percentiles():
        table.add_row(f"{percentile}%", f"{length:,}", f"{cut:,}")
    return table
