from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lit_consistency.drawing.numbers import decimals, duration, enumerate_words, fixed, with_interval
from lit_consistency.study.report.content import Content
from lit_consistency.study.report.terminal import print_summary
from tests.study.report.synthetic import NAN, content


@pytest.mark.parametrize("width", [80, 200, 60])
def test_the_summary_says_what_was_found_in_eighty_columns(width: int) -> None:
    file = io.StringIO()
    print_summary(content(seeds=10), Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= min(width, 80)
    text = re.sub(r"\s+", " ", file.getvalue())
    for part in (
        "Of 5 claims, 1 is supported, 1 is contradicted, 1 is equivalent, 1 is undecided and 1 is without a verdict.",
        "✓ supported Finetuning with the optimizer of pretraining forgets less",
        "−0.052 points [−0.081, −0.023], counts from ±0.01 on, 10 seeds, p < 0.001",
        "It would take about 34 seeds to decide; there are 10.",
        "500 cells: ",
        "✗ 2 failed",
        "⚠ AdamW base, MoFO: forget/old_people over lr, best",
        "not run: LoRA of rank 64",
    ):
        assert part in text, part
    assert "[−0.073, −0.031]" in text


def test_a_study_without_anything_is_summed_up() -> None:
    file = io.StringIO()
    print_summary(Content("[bold]title[/bold]", "", "", "", {}, []), Console(file=file, width=80))
    assert file.getvalue().split("\n")[1:3] == ["[bold]title[/bold]", "no cells"]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.04312, 0.0121, 0.0741), ("+0.043", "[+0.012, +0.074]")),
        ((-0.04312, -0.0431201, -0.0431199), ("−0.043120", "[−0.043120, −0.043120]")),
        ((12.3, 2.0, 22.6), ("+12", "[+2, +23]")),
        ((-0.0001, -0.02, 0.02), ("+0.000", "[−0.020, +0.020]")),
        ((0.5, NAN, NAN), ("+0.5000", "")),
        ((NAN, NAN, NAN), ("–", "")),
    ],
)
def test_a_number_is_written_as_far_as_it_is_known(numbers: tuple[float, float, float], said: tuple[str, str]) -> None:
    assert with_interval(*numbers) == said


def test_words() -> None:
    assert [decimals(h) for h in (0.031, 0.31, 3.1, 310.0)] == [3, 2, 1, 0]
    assert [duration(s) for s in (42, 210, 7560, 3e5, NAN)] == ["42 s", "3.5 min", "2.1 h", "3.47 days", "–"]
    assert [enumerate_words(w) for w in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert fixed(-1e-9, 2, sign=True) == "+0.00"
