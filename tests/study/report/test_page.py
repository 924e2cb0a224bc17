from __future__ import annotations

import base64
import csv
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.study.report.content import Content
from lit_consistency.study.report.page import write_page
from lit_consistency.study.report.tables import write_tables
from tests.study.report.synthetic import HOSTILE, LEARNING, content


class Page(HTMLParser):
    """Tags, text outside of scripts, scripts, and attributes that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.loads: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "script":
            self.inside = given.get("id") or f"script{len(self.scripts)}"
            self.scripts[self.inside] = ""
        self.loads += [v for k, v in given.items() if k in ("src", "href") and v and not v.startswith(("#", "data:"))]
        assert not [k for k in given if k.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def study() -> Content:
    return content(seeds=10)


@pytest.fixture(scope="module")
def html(study: Content, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(study, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    page = Page(html)
    assert page.loads == []
    assert not re.search(r"@import|url\((?!data:)", html)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert len(html) < 5_000_000


def test_nothing_that_a_study_names_becomes_markup(html: str) -> None:
    page = Page(html)
    assert list(page.scripts) == ["script0", "cells-json", "cells-packed", "script3", "script4"]
    assert f"A name with markup {HOSTILE} stays text." in page.text
    assert HOSTILE in page.text.split("a <b>name</b> & more")[1]
    assert "<b>name" not in html


def unpacked(page: Page) -> list[dict[str, Any]]:
    return json.loads(zlib.decompress(base64.b64decode(page.scripts["cells-packed"])))


def test_every_cell_is_in_the_page_with_all_it_has(study: Content, html: str) -> None:
    page = Page(html)
    table = json.loads(page.scripts["cells-json"])
    assert [c["name"] for c in table["cells"]] == [c.name for c in study.cells]
    for cell, row, more in zip(study.cells, table["cells"], unpacked(page), strict=True):
        at = {axis: v for axis, v in zip(table["axes"], row["at"], strict=True) if v is not None}
        assert at == cell.coordinates
        for metric, value in zip(table["metrics"], row["of"], strict=True):
            given = cell.metrics.get(metric, float("nan"))
            assert value == (
                "∞" if given == float("inf") else None if given != given else pytest.approx(given, rel=1e-7)
            )
        assert (row["state"], more["config"], more["command"]) == (cell.state, cell.config, cell.command)
        assert more["curve"].get("step", []) == [r["step"] for r in cell.curve]
        if cell.log and cell.stage == "finetune":
            # the last state of a line that was rewritten, and no colours of the terminal
            assert "\n100% überprüft ✓ 日本語\n" in "\n" + more["log"]
            assert "\x1b" not in more["log"]
            assert HOSTILE in more["log"]
    assert table["shown"][0] == LEARNING
    diverged = next(m for c, m in zip(study.cells, unpacked(page), strict=True) if c.state == "diverged")
    assert diverged["curve"]["train/loss"][-1] == "∞"
    assert diverged["curve"][LEARNING][-1] is None


def test_claims_come_first_with_all_they_rest_on(html: str) -> None:
    text = re.sub(r"\s+", " ", Page(html).text)
    first = text.index(
        "Of 5 claims, 1 is supported, 1 is contradicted, 1 is equivalent, 1 is undecided and 1 is without"
    )
    assert text.index("Finetuning with the optimizer of pretraining") > first
    for part in (
        "−0.052 points, interval [−0.081, −0.023]",
        "an effect counts from ±0.01 on",
        "It would take about 34 seeds to decide; there are 10.",
        "no rate of LoRA reaches a learning of 0.9",
        "10 seeds",
        "p < 0.001",
    ):
        assert first < text.index(part) < text.index("Learning against forgetting", first + 500), part
    assert "LoRA of rank 64 and more: at a width of 128 it is no low rank." in text
    assert "14 cells are ▲ diverged" in text or "cells are ▲ diverged" in text


def test_headings_tables_and_pictures_can_be_read_aloud(html: str) -> None:
    page = Page(html)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    heads = re.findall(
        r"<th\b[^>]*>", html.split("<script>")[0] + html.split("<body>")[1].split('<script type="app')[0]
    )
    assert heads
    assert all("scope=" in head for head in heads)
    pictures = re.findall(r"<svg\b[^>]*>", html.split("<body>")[1].split('<script type="app')[0])
    assert all('aria-label="' in p or 'aria-hidden="true"' in p for p in pictures)
    assert page.tags.count("caption") == page.tags.count("table")


def test_an_empty_study_and_half_a_character_are_written(tmp_path: Path, study: Content) -> None:
    empty = Content("Nothing <yet>", "", "", "", {}, [])
    text = Page(write_page(empty, tmp_path / "empty").read_text(encoding="utf-8")).text
    assert "Nothing <yet>" in text
    assert "The study has no cells." in text
    cell = replace(study.cells[0], log="an undecodable byte: \udcff", curve=[], metrics={})
    page = Page(write_page(replace(empty, cells=[cell]), tmp_path).read_text(encoding="utf-8"))
    assert unpacked(page)[0]["log"] == "an undecodable byte: ?"


def test_a_cell_of_two_stages_is_one_run(tmp_path: Path, study: Content) -> None:
    """A base that a tuning has made is the base of what follows: two places in the study, one run."""
    base = study.cells[0]
    shared = replace(base, stage="tune", coordinates={"base_lr": "0.002", "seed": "0"})
    content = replace(study, cells=[shared, *study.cells])
    page = Page(write_page(content, tmp_path).read_text(encoding="utf-8"))
    assert len(unpacked(page)) == len(content.runs) == len(study.cells)
    assert content.runs[0].stage == "tune, pretrain"
    assert content.runs[0].coordinates == {**base.coordinates, "base_lr": "0.002", "seed": "0"}
    assert write_tables(content, tmp_path) == []
    with (tmp_path / "results.csv").open(newline="") as file:
        stages = [row["stage"] for row in csv.DictReader(file) if row["name"] == base.name]
    assert stages == ["pretrain", "tune"]


def test_two_cells_of_one_name_are_refused(tmp_path: Path, study: Content) -> None:
    with pytest.raises(ValueError, match="cells: 1 names stand twice, such as 'pretrain-adamw-s0'"):
        write_page(replace(study, cells=[*study.cells, study.cells[0]]), tmp_path)
    assert not list(tmp_path.iterdir())
