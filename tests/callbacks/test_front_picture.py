"""Learning against forgetting of one run: from its lines of metrics to a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_consistency.callbacks import front_picture
from lit_consistency.callbacks.front_picture import TAG, front_png, panels_of, way_of
from lit_consistency.cli.fit import build
from lit_consistency.drawing.charts.path import Stop
from tests.callbacks.test_forgetting import SETS
from tests.runs import SCRATCH, arguments

LINES = [
    {"step": 0, "learned/new": 0.0, "learned/new.stderr": 0.0, "forget/old": 0.0, "forget/old.stderr": None},
    {"step": 1, "train/loss": 2.0},
    {"step": 2, "learned/new": 9.0, "forget/old": 9.0},
    {"step": 4, "learned/new": 0.8, "learned/new.stderr": 0.01, "forget/old": 0.2, "forget/old.stderr": 0.05},
    {"step": 2, "learned/new": 0.5, "learned/new.stderr": 0.02, "forget/old": -0.1, "forget/old.stderr": 0.03},
    {"step": 4, "speed/tokens_per_second": 100.0},
]


def test_the_way_holds_what_was_measured_last_at_each_step() -> None:
    way = way_of(LINES)
    assert list(way) == [0, 2, 4]
    assert way[2]["learned/new"] == 0.5
    assert math.isnan(way[0]["forget/old.stderr"])


def test_a_panel_has_one_unit_on_each_axis_and_95_percent_intervals() -> None:
    learned = {"new": "exact", "loss": "nats_per_token", "more": "exact"}
    panels = panels_of(way_of(LINES), learned, {"old": "exact", "text": "nats_per_token"})
    assert [(p.heading, p.x_title, p.y_title, list(p.paths)) for p in panels] == [
        ("old", "better by (exact)", "worse by (exact)", ["new", "more"]),
        ("text", "better by (exact)", "worse by (nats_per_token)", ["new", "more"]),
        ("old", "loss, better by (nats_per_token)", "worse by (exact)", ["loss"]),
        ("text", "loss, better by (nats_per_token)", "worse by (nats_per_token)", ["loss"]),
    ]
    path = panels[0].paths["new"]
    assert path[1:] == [
        Stop("2", 0.5, -0.1, pytest.approx(0.0392), pytest.approx(0.0588)),
        Stop("step 4", 0.8, 0.2, pytest.approx(0.0196), pytest.approx(0.098)),
    ]


def test_the_picture_of_a_run_is_in_tensorboard(tmp_path: Path) -> None:
    """Once it has moved, at its last step, as the numbers of metrics.jsonl have it."""
    pytest.importorskip("matplotlib")
    options = [o for o in arguments(tmp_path, *SCRATCH, *SETS) if "progress_bar" not in o]
    build([*options, "--forgetting.every_n_steps=2"]).execute()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    image = events.Images(TAG)[-1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = json.loads((tmp_path / "run" / "run.json").read_text())["judged_by"]
    learned, retained = (
        {key.removeprefix(kind): of["metric"] for key, of in judged.items() if key.startswith(kind)}
        for kind in ("learn/", "retain/")
    )
    assert (list(learned), list(retained)) == (["new"], ["old", "next"])
    drawn = front_png(panels_of(way_of(lines), learned, retained), str(tmp_path / "run"))
    assert image.step == 4
    assert image.encoded_image_string == drawn
    assert (image.width, image.height) == (int.from_bytes(drawn[16:20], "big"), int.from_bytes(drawn[20:24], "big"))


def test_without_matplotlib_a_run_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(front_picture, "rank_zero_info", said.append)
    monkeypatch.setattr(front_picture.png, "can_draw", lambda: False)
    options = [o for o in arguments(tmp_path, *SCRATCH, *SETS) if "progress_bar" not in o]
    build([*options, "--forgetting.every_n_steps=1", "--forgetting.time_budget=1"]).execute()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(way_of(lines)) > 2  # so there was more than one occasion
    assert said == [f"no picture of {TAG}: matplotlib is absent; pip install 'lit_consistency[study]'"]
