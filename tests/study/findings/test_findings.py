"""Every number that the README says a study has found, computed anew from its table, by other code than the study's."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.study.findings.keep import FOLDER, ROOT, study

ITEMS = {"retain/old_people": 3000, "learn/new_people": 600}
"""Questions behind a share of right answers; every other number is a loss or a divergence."""
NAMES = sorted(path.name.removesuffix(".csv.gz") for path in FOLDER.glob("*.csv.gz") if path.name.count(".") == 2)
Row = dict[str, str]


def table(name: str) -> list[Row]:
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(io.StringIO(file.read())))


def matching(rows: list[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row.get(f"axis.{axis}") == str(value) for axis, value in wanted.items())]


def at_level(rows: list[Row], read: dict[str, Any], change: Any) -> float:
    """Between the first two neighbouring rates around the level: in log-odds of a share, else in logarithms."""
    n = ITEMS.get(read["learning"])
    points = sorted((float(row[f"axis.{read['rate']}"]), float(row[read["learning"]]), change(row)) for row in rows)
    for (_, l0, f0), (_, l1, f1) in zip(points, points[1:], strict=False):
        if (l0 - read["level"]) * (l1 - read["level"]) < 0:
            level, start, end = (log_odds(x, n) if n else math.log(x) for x in (read["level"], l0, l1))
            weight = (level - start) / (end - start)
            return f0 + weight * (f1 - f0)
    return math.nan


def log_odds(share: float, n: int) -> float:
    """Haldane's and Anscombe's: half an item is added to the right and to the wrong ones."""
    right = share * n
    return math.log((right + 0.5) / (n - right + 0.5))


def value(rows: list[Row], claim: dict[str, Any], content: dict[str, Any], metric: str) -> float:
    """Of the cells of one side and seed."""
    log = claim.get("scale") in ("log", "log-odds")
    if "stage" in claim:
        numbers = [float(row[metric]) for row in rows]
        return float(np.mean([math.log(x) if log else x for x in numbers])) if numbers else math.nan
    kept = content["read"]["forgetting"]

    def change(row: Row) -> float:
        now = float(row[kept])
        forgotten = float(row[kept.replace("retain/", "forget/", 1)])
        if n := ITEMS.get(kept):  # right answers: what is lost counts
            assert abs(now * n - round(now * n)) < 1e-6
            return log_odds(now + forgotten, n) - log_odds(now, n) if log else forgotten
        return math.log(now) - math.log(now - forgotten) if log else forgotten

    return at_level([row for row in rows if row.get("axis.order", "0") in ("0", "")], content["read"], change)


def differences(name: str, claim: dict[str, Any], content: dict[str, Any]) -> np.ndarray:
    """The claim's contrast of every seed."""
    stage = claim.get("stage") or content["read"]["stage"]
    rows = [row for row in table(name) if row["stage"] == stage]
    metric = claim.get("metric") or (content.get("read") or {}).get("forgetting")
    if claim.get("contrast") == "interaction":
        ((row_axis, (r0, r1)),) = claim["rows"].items()
        ((column_axis, (c0, c1)),) = claim["columns"].items()
        terms = [(r0, c0, 1), (r1, c1, 1), (r0, c1, -1), (r1, c0, -1)]
        sides = [
            ({row_axis: r}, c, sign) if column_axis == "metric" else ({row_axis: r, column_axis: c}, metric, sign)
            for r, c, sign in terms
        ]
    else:
        sides = [(claim["of"], metric, 1), (claim["against"], metric, -1)]
    if "at" in claim.get("of", {}):
        return along_fronts(name, claim["of"], content) - along_fronts(name, claim["against"], content)
    seeds = set.intersection(*({row["axis.seed"] for row in matching(rows, **where)} for where, _, _ in sides))
    return np.array([
        sum(sign * averaged(matching(rows, **where, seed=seed), claim, content, of) for where, of, sign in sides)
        for seed in sorted(seeds, key=int)
    ])  # fmt: skip


def averaged(rows: list[Row], claim: dict[str, Any], content: dict[str, Any], metric: str) -> float:
    """Mean over what the claim does not name, as the base; rates and orders are read together."""
    beside = ("axis.seed", f"axis.{(content.get('read') or {}).get('rate', 'lr')}", "axis.order")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(v for k, v in row.items() if k.startswith("axis.") and k not in beside), []).append(row)
    return float(np.mean([value(own, claim, content, metric) for own in groups.values()]))


def verdicts(name: str) -> dict[str, tuple[float, float, float, str]]:
    """Claim -> value, interval at Holm's level, verdict; none of a claim that less than three seeds can be read of."""
    content = study(name)
    effects, p_values = {}, {}
    for key, claim in content["claims"].items():
        values = differences(name, claim, content)
        values = values[np.isfinite(values)]
        if len(values) < 3:
            continue
        mean, error = values.mean(), stats.sem(values)
        bound = claim["smallest_effect"]
        effects[key] = (mean, error, len(values), bound, claim.get("expect", "below"))
        p_values[key] = 2 * stats.t.sf(abs(abs(mean) - bound) / error, len(values) - 1)
    found, stopped, share = {}, False, 0.05
    for i, key in enumerate(sorted(p_values, key=lambda k: p_values[k])):
        if not stopped:
            share = 0.05 / (len(p_values) - i)
            stopped = p_values[key] > share
        mean, error, n, bound, expect = effects[key]
        low, high = stats.t.interval(1 - share, n - 1, loc=mean, scale=error)
        if low > bound or high < -bound:
            said = "supported" if (low > bound) == (expect == "above") else "contradicted"
        else:
            said = "equivalent" if -bound < low and high < bound else "undecided"
        found[key] = (mean, low, high, said)
    return found


def published(name: str) -> dict[str, tuple[str, str, str, str]]:
    """Claim -> value, interval and verdict as the README's table of the study has them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = re.search(rf"<!-- findings {name} -->(.*?)<!-- end -->", text, re.DOTALL)
    assert part, f"README has no table between <!-- findings {name} --> and <!-- end -->"
    number = r"([+−]?[\d.]+)"
    row = rf"^\| `(\w+)` \|.*\| {number} \[{number}, {number}\] \| (\w+)"
    return {found[1]: found.groups()[1:] for found in re.finditer(row, part[1], re.MULTILINE)}  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_what_the_table_says(name: str) -> None:
    said, found = published(name), verdicts(name)
    assert set(said) == set(found)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for key in set(study(name)["claims"]) - set(found):
        assert re.search(rf"^\| `{key}` \|.*\| no verdict \|$", text, re.MULTILINE), key
    for key, (*numbers, word) in said.items():
        *expected, verdict = found[key]
        assert word == verdict, key
        for text, exact in zip(numbers, expected, strict=True):
            digits = len(text.partition(".")[2])
            assert float(text.replace("−", "-")) == pytest.approx(exact, abs=0.51 * 10**-digits), key


@pytest.mark.parametrize("name", NAMES)
def test_means_in_the_readme_are_those_of_the_table(name: str) -> None:
    """Tables headed by a stage: one column for every base, or base and finetuner; mean and standard deviation."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = re.search(rf"<!-- findings {name} -->(.*?)<!-- end -->", text, re.DOTALL)
    assert part
    checked = 0
    columns: list[str] = []
    for line in part[1].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0].startswith("stage "):
            columns = cells
        elif columns and re.fullmatch(r"`[\w./-]+`", cells[0]) and "±" in cells[1]:
            for head, cell in zip(columns[1:], cells[1:], strict=True):
                where = dict(zip(("optimizer", "finetuner"), head.lower().split(", "), strict=False))
                rows = [row for row in table(name) if row["stage"] == columns[0].removeprefix("stage ")]
                values = [float(row[cells[0].strip("`")]) for row in matching(rows, **where)]
                for text_of, exact in zip(cell.split(" ± "), (np.mean(values), np.std(values, ddof=1)), strict=True):
                    digits = len(text_of.partition(".")[2])
                    assert float(text_of) == pytest.approx(exact, abs=0.51 * 10**-digits), (cells[0], head)
                    checked += 1
        elif not line.startswith("|"):
            columns = []
    assert checked or "±" not in part[1]


def on_front(points: list[tuple[float, float]], level: float) -> float:
    """What is lost where the points that no other one beats have learned the level, on straight lines between them."""
    best = sorted({
        (x, y) for x, y in points if not any(x2 >= x and y2 <= y and (x2, y2) != (x, y) for x2, y2 in points)
    })  # fmt: skip
    for (l0, f0), (l1, f1) in zip(best, best[1:], strict=False):
        if l0 <= level <= l1:
            return f0 + (f1 - f0) * (level - l0) / (l1 - l0)
    return math.nan


def along_fronts(name: str, side: dict[str, str], content: dict[str, Any]) -> np.ndarray:
    """What each seed has lost at the level, along the front of its final models, and of what else the side reads."""
    read, where = content["read"], {axis: value for axis, value in side.items() if axis != "at"}
    more, lost = read["learning"] in ITEMS, read["forgetting"].replace("retain/", "forget/", 1)
    rows = {row["name"]: row for row in matching(table(name), **where) if row["stage"] == read["stage"]}
    also = {"final": "nothing", "early_stop": "step ", "dial": " of the way", "front": ""}[side["at"]]
    points = [*rows.values(), *(row for row in table(f"{name}.fronts") if also in row["point"])]
    seeds: dict[str, list[tuple[float, float]]] = {}
    for row in points:
        if row["name"] in rows and row.get("point") != "step 0":  # the base, which no reading takes
            learned = float(row[read["learning"]]) * (1 if more else -1)
            seeds.setdefault(rows[row["name"]]["axis.seed"], []).append((learned, float(row[lost])))
    level = read["level"] * (1 if more else -1)
    return np.array([on_front(seeds[seed], level) for seed in sorted(seeds, key=int)])


def interaction_on_fronts(name: str, scale: str) -> tuple[float, float, float]:
    """Of AdamW and Muon as base and as finetuner: mean over seeds and its 95% interval."""
    read = study(name)["read"]
    where = {row["name"]: row for row in table(name)}
    lost = read["forgetting"].replace("retain/", "forget/", 1)
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in table(f"{name}.fronts"):
        cell = where[row["name"]]
        now, forgotten = float(row[read["forgetting"]]), float(row[lost])
        if scale == "log-odds":
            n = ITEMS[read["forgetting"]]
            forgotten = log_odds(now + forgotten, n) - log_odds(now, n)
        group = (cell["axis.seed"], cell["axis.optimizer"], cell["axis.finetuner"])
        groups.setdefault(group, []).append((float(row[read["learning"]]), forgotten))
    values = [
        sum(
            (1 if base == tuner else -1) * on_front(groups[seed, base, tuner], read["level"])
            for base in ("adamw", "muon")
            for tuner in ("adamw", "muon")
        )
        for seed in sorted({seed for seed, *_ in groups})
    ]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(np.mean(values)), float(low), float(high)


def test_interactions_along_fronts_are_those_of_the_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\w+), interaction along fronts, in ([\w-]+) \| ([+−][\d.]+) \[([+−][\d.]+), ([+−][\d.]+)\] \|",
        text,
        re.M,
    )
    assert rows
    for name, scale, *said in rows:
        for number, exact in zip(said, interaction_on_fronts(name, scale), strict=True):
            digits = len(number.partition(".")[2])
            assert float(number.replace("−", "-")) == pytest.approx(exact, abs=0.51 * 10**-digits), (name, scale)


def test_there_are_findings() -> None:
    assert NAMES
    assert all((Path(ROOT) / "configs" / "studies" / f"{name}.yaml").is_file() for name in NAMES)
