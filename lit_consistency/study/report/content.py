"""What a report shows, as plain data: made from a study's cells (study/results.py), drawn by page.py and figures.py.

Nothing here is computed; numbers that are not there are NaN. Names of axes and values are those of the study's file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_consistency.drawing.charts.heat_map import HeatMap


@dataclass(frozen=True)
class CellRow:
    """One cell.

    Args:
        name: of its folder.
        stage: of the study.
        coordinates: axis -> name of the value; the seed among them.
        state: ``finished``, ``missing``, ``running``, ``failed``, ``diverged``, ``out of memory`` or ``interrupted``.
        seconds: wall time, NaN if unknown.
        metrics: final numbers, with ``NAME.stderr`` beside ``NAME``.
        curve: rows of numbers over steps, each with ``step``.
        command: that makes it by hand.
        config: complete configuration as YAML text, or empty.
        log: the last lines of its log, or empty.
        error: what went wrong, or empty.
        folder: where it lies.
    """

    name: str
    stage: str
    coordinates: dict[str, str]
    state: str
    seconds: float
    metrics: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)
    command: str = ""
    config: str = ""
    log: str = ""
    error: str = ""
    folder: Path = Path()


@dataclass(frozen=True)
class FrontPoint:
    """A point of a front: what was learned, what was forgotten, and where it comes from.

    Args:
        learning: more is better.
        forgetting: less is better.
        seed: of the base, as text.
        cell: its name.
        kind: ``end``, ``step`` or ``interpolation``.
        label: as ``lr 0.0003, step 100`` or ``lr 0.0003, 0.5 of the way``.
        on_front: whether no other point of its seed is better in both.
    """

    learning: float
    forgetting: float
    seed: str
    cell: str
    kind: str
    label: str
    on_front: bool


@dataclass(frozen=True)
class Front:
    """Learning against forgetting of one group of cells.

    Args:
        panel: name of the picture in which it stands, as the base's; fronts of one panel are compared.
        group: its name within the panel, as the finetuner's.
        points: of all its seeds.
        surfaces: share of seeds (1/n .. n/n) that attain at least this -> corners (learning, forgetting), by learning.
        hypervolume: value, low, high (95%, bootstrap over seeds), relative to ``reference``; NaN for one seed.
        reference: (learning, forgetting) that every front of the panel dominates.
    """

    panel: str
    group: str
    points: list[FrontPoint]
    surfaces: dict[str, list[tuple[float, float]]]
    hypervolume: tuple[float, float, float]
    reference: tuple[float, float]


@dataclass(frozen=True)
class RateCurve:
    """A number over a swept rate, of one group of cells.

    Args:
        panel: name of the picture.
        group: its name within the panel.
        axis: what is swept, as ``lr``.
        metric: the number.
        points: (rate, mean over seeds, low, high) sorted by rate.
        singles: seed -> (rate, value).
        best: the rate that is best, NaN if none.
        mark: empty, or why it cannot be relied on: ``best at the edge``, ``level not bracketed``.
        level: at which the study reads, NaN if it does not.
    """

    panel: str
    group: str
    axis: str
    metric: str
    points: list[tuple[float, float, float, float]]
    singles: dict[str, list[tuple[float, float]]]
    best: float
    mark: str = ""
    level: float = float("nan")


@dataclass(frozen=True)
class Effect:
    """An effect with its interval.

    Args:
        table: what it belongs to, as ``forgetting at learning 0.9``.
        name: as ``interaction`` or ``Muon - AdamW on the AdamW base``.
        kind: ``main``, ``interaction``, ``simple`` or ``difference``.
        scale: as ``points``, ``log-odds``, ``log loss``.
        value: of the effect, with its 95% interval ``low``, ``high`` and ``p``.
        n: seeds of the base.
        order_spread: standard deviation of an identical run with another order of data, on this scale; NaN unknown.
        detectable: smallest effect that n seeds can tell from none (80% power), NaN unknown.
        mark: empty, or why it cannot be relied on.
    """

    table: str
    name: str
    kind: str
    scale: str
    value: float
    low: float
    high: float
    p: float
    n: int
    order_spread: float = float("nan")
    detectable: float = float("nan")
    mark: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A sentence with its verdict.

    Args:
        name: of the claim.
        sentence: what is claimed.
        verdict: ``supported``, ``contradicted``, ``equivalent``, ``undecided`` or ``no verdict``.
        scale: of the numbers.
        value: of the effect, with its interval ``low``, ``high`` at the claim's (Holm-adjusted) level.
        smallest_effect: that counts, fixed beforehand.
        n: seeds.
        seeds_needed: to decide an undecided one; 0 if it does not apply.
        p: adjusted by Holm over the claims of the study.
        note: why there is no verdict, or what limits it.
        command: that makes the numbers.
    """

    name: str
    sentence: str
    verdict: str
    scale: str
    value: float
    low: float
    high: float
    smallest_effect: float
    n: int
    seeds_needed: int
    p: float
    note: str
    command: str


@dataclass(frozen=True)
class Variance:
    """Where the spread of a number comes from.

    Args:
        metric: the number, in the group ``group``.
        components: name (``base``, ``order``, ``items``) -> standard deviation.
    """

    metric: str
    group: str
    components: dict[str, float]


@dataclass(frozen=True)
class ReadingRow:
    """Where and how a number of one group and seed was read.

    Args:
        place: as ``at learn/new_people = 0.8``.
        panel: of the group.
        group: that is read.
        seed: of the base.
        value: that was read, NaN if it could not be.
        neighbours: the points between which it was read, in words.
        interpolation_error: how far a reading on the straight line in points lies from it.
        mark: empty, or why it cannot be relied on.
    """

    place: str
    panel: str
    group: str
    seed: str
    value: float
    neighbours: str
    interpolation_error: float
    mark: str


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Args:
        title: of the study.
        description: what it asks, plain text, paragraphs parted by empty lines.
        command: that runs it.
        study_file: its configuration as YAML text.
        axes: stage -> axis -> names of its values.
        cells: all of them, also those that are missing; one of several stages stands in each of them.
        claims: first on the page.
        effects, fronts, rates, heat_maps, variances, readings: as above.
        environment: name -> value, as versions, processor, threads.
        not_run: sentences: what was left out, and why.
        made: date and time, as text.
        learning: metric on the fronts' x axis, ``forgetting`` that on the y axis.
    """

    title: str
    description: str
    command: str
    study_file: str
    axes: dict[str, dict[str, list[str]]]
    cells: list[CellRow]
    claims: list[ClaimResult] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    fronts: list[Front] = field(default_factory=list)
    rates: list[RateCurve] = field(default_factory=list)
    heat_maps: list[HeatMap] = field(default_factory=list)
    variances: list[Variance] = field(default_factory=list)
    readings: list[ReadingRow] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)
    made: str = ""
    learning: str = "learning"
    forgetting: str = "forgetting"

    @cached_property
    def runs(self) -> list[CellRow]:
        """The cells, each once; one that belongs to several stages, as a base that a tuning made, names all of them."""
        rows: dict[str, CellRow] = {}
        for cell in self.cells:
            known = rows.get(cell.name)
            if known is not None:
                both = {**known.coordinates, **cell.coordinates}
                cell = replace(known, stage=f"{known.stage}, {cell.stage}", coordinates=both)
            rows[cell.name] = cell
        return list(rows.values())
