"""What a study found, in the terminal: claims with their verdicts, effects, and how many cells are in which state."""

from __future__ import annotations

import math
from itertools import groupby

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_consistency.drawing.numbers import count, probability, with_interval
from lit_consistency.study.report.content import ClaimResult, Content
from lit_consistency.study.report.words import (
    STATES,
    VERDICTS,
    claim_numbers,
    seeds_needed,
    state_counts,
    verdict_counts,
)

WIDTH = 80
"""Columns: a narrow terminal, and most logs."""
TONES = {"supported": "bold blue", "contradicted": "bold dark_orange", "equivalent": "bold"}


def print_summary(content: Content, console: Console | None = None) -> None:
    """Print the summary in at most 80 columns.

    Args:
        content: of the report.
        console: where to; the standard output by default.
    """
    console = console or Console()
    # what a wide terminal shows is pasted into narrow places
    width = min(console.width, WIDTH)
    console.print()
    console.print(Text(content.title, "bold"), width=width)
    counts = [f"{STATES.get(state, '')} {n:,} {state}".strip() for state, n in state_counts(content).items()]
    console.print(
        Text(f"{count(len(content.runs), 'cell')}: {', '.join(counts)}" if counts else "no cells"), width=width
    )
    if content.claims:
        console.print()
        console.print(Text(verdict_counts(content.claims)), width=width)
        for claim in content.claims:
            _print_claim(console, claim, width)
    for (table, scale), rows in groupby(content.effects, lambda effect: (effect.table, effect.scale)):
        console.print()
        console.print(Text(f"{table}, in {scale}", "italic"), width=width)
        effects = Table(box=box.SIMPLE_HEAD, width=width, pad_edge=False, padding=(0, 1))
        effects.add_column("effect", ratio=1, overflow="fold")
        for name in ("value", "95% interval", "p", "n"):
            effects.add_column(name, justify="right", no_wrap=True)
        for effect in rows:
            label = Text(effect.name)
            if effect.mark:
                label.append(f" ({effect.mark})", "yellow")
            p = probability(effect.p).removeprefix("p ").removeprefix("= ")
            effects.add_row(
                label, *map(Text, (*with_interval(effect.value, effect.low, effect.high), p, str(effect.n)))
            )
        console.print(effects)
    # a rate at the edge undermines every number that was read there
    for rate in content.rates:
        if rate.mark:
            best = f", best {rate.best:g}" if math.isfinite(rate.best) else ""
            said = f"⚠ {rate.panel}, {rate.group}: {rate.metric} over {rate.axis}{best}: {rate.mark}"
            console.print(Text(said, "yellow"), width=width)
    for sentence in content.not_run:
        console.print(Text(f"not run: {sentence}", "dim"), width=width)


def _print_claim(console: Console, claim: ClaimResult, width: int) -> None:
    """The verdict and the sentence, then what it rests on."""
    head = Text(f"{VERDICTS.get(claim.verdict, (' ', ''))[0]} {claim.verdict}", TONES.get(claim.verdict, "bold"))
    console.print(head.append(f"  {claim.sentence}", "not bold default"), width=width)
    # Text, not markup: a name in brackets is no style
    for line in (claim_numbers(claim), claim.note, seeds_needed(claim)):
        if line:
            console.print(Padding(Text(line, "dim"), (0, 0, 0, 2)), width=width)
