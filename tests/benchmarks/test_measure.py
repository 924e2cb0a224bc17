from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import measure, optimizers, quality, shapes, watching
from tests.benchmarks.measure import Bar


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "met"),
    [(8.0, 8.0, True, True), (7.9, 8.0, True, False), (1.05, 1.05, False, True), (1.06, 1.05, False, False)]
    + [(math.nan, 1.0, at_least, False) for at_least in (True, False)],
)
def test_a_bar_is_met_from_its_limit_on_and_never_by_nan(value: float, limit: float, at_least: bool, met: bool) -> None:
    assert Bar("speed", value, limit, at_least).met is met


def test_medians_are_of_interleaved_rounds_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = {"a": iter([1.0, 5.0, 9.0, 2.0]), "b": iter([1.0, 7.0, 7.0, 700.0])}

    def seconds(step: Any, device: str, repeats: int = 1) -> float:
        step()
        return next(clock[calls[-1]])

    monkeypatch.setattr("lit_consistency.optimizers.measure.seconds", seconds)
    steps = {name: (lambda name=name: calls.append(name)) for name in clock}
    assert measure.medians(steps, "cpu", rounds=3) == {"a": 5000.0, "b": 7000.0}
    # each is run and timed once, then every round has both
    assert calls[:4] == ["a", "a", "b", "b"]
    assert [sorted(calls[i : i + 2]) for i in (4, 6, 8)] == [["a", "b"]] * 3


def test_short_steps_are_repeated_until_they_can_be_timed() -> None:
    calls: list[int] = []
    found = measure.medians({"step": lambda: calls.append(1)}, "cpu", rounds=2)
    assert len(calls) > 100
    assert 0 < found["step"] < 0.1


def test_peak_is_what_was_held_at_once_above_what_there_was() -> None:
    mib = 2**18  # float32 elements
    before = torch.ones(8 * mib)

    def step() -> None:
        for _ in range(3):
            first = before[: 2 * mib] + 1
            second = first + 1
            del first, second

    assert 4 * 2**20 <= measure.peak_bytes(step, "cpu") < 4.1 * 2**20


@pytest.mark.parametrize("steps", [1, 5])
def test_the_floor_is_the_cheaper_of_the_two_forms(steps: int) -> None:
    n = 4
    assert measure.newton_schulz_flops(n, 100 * n, steps) == 3 * n**2 * 100 * n + (4 * steps - 3) * n**3
    assert measure.newton_schulz_flops(n, n, 1) == 4 * n**3
    assert measure.newton_schulz_flops(n, 3 * n) == measure.newton_schulz_flops(3 * n, n)


def test_sets_have_the_matrices_of_their_models() -> None:
    layer = shapes.llama_layer("meta")
    assert sorted(shapes.block_shapes(shapes.hidden_groups(layer, "fused"))) == sorted(
        [(3072, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
    )
    gpt2 = shapes.gpt2(12, "meta")
    assert sum(p.numel() for p in gpt2.parameters()) == pytest.approx(124e6, rel=0.01)
    assert shapes.block_shapes(shapes.hidden_groups(gpt2)).count((768, 768)) == 12 * 4
    assert len(shapes.hidden_matrices(gpt2)) == 12 * 4


def test_muon_has_its_bars_whatever_the_floor_is() -> None:
    times = {
        "torch.optim.Muon": 100.0,
        "Muon": 20.0,
        "Muon, QKV fused": 12.5,
        "Muon, QKV by head": 9.0,
        "floor": 25.0,
        "floor, QKV fused": 10.0,
        "floor, QKV by head": 5.0,
    }
    fused, whole, by_head = optimizers.muon_bars("cpu", "gpt2-layer, as it is", times)
    assert (fused.value, fused.limit, fused.met) == (8.0, 8.0, True)
    assert (whole.value, whole.limit, whole.met) == (5.0, 8.0, False)
    assert "floor 4.0" in whole.name
    assert (by_head.limit, by_head.met) == (10.0, True)
    assert "floor" not in by_head.name
    assert [bar.limit for bar in optimizers.muon_bars("cuda", "gpt2, as it is", times)] == [2.0] * 3
    assert [bar.limit for bar in optimizers.muon_bars("cuda", "1b-layer, as it is", times)] == [1.0] * 3


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_check_exits_with_1_where_a_bar_is_missed_and_names_it(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = [Bar("first", 0.0, 1.0), Bar("second", value, 2.0)]
    monkeypatch.setitem(optimizers.SECTIONS, "muon", lambda device: ([{"set": "x", "ms": "1"}], bars))
    file = tmp_path / "numbers.json"
    threads = torch.get_num_threads()
    try:
        assert optimizers.main(["--only", "muon", "--json", str(file)]) == 0
        assert optimizers.main(["--only", "muon", "--check"]) == int(value > 2)
    finally:
        torch.set_num_threads(threads)
    assert ("MISSED second: 3, bar <= 2" in capsys.readouterr().out) == (value > 2)
    assert [bar["met"] for bar in json.loads(file.read_text())["bars"]] == [True, value <= 2]


def test_what_the_quality_runs_learn_is_there_to_be_learned() -> None:
    first, second = quality.sequences(0, 500), quality.sequences(1, 500)
    assert first.shape == (500, quality.LENGTH + 1)
    assert not torch.equal(first, second)
    pairs = first[:, :-1] * quality.SYMBOLS + first[:, 1:]
    # the two symbols before tell the next: most pairs are followed by few symbols
    following = torch.zeros(quality.SYMBOLS**2, quality.SYMBOLS)
    following.index_put_((pairs[:, :-1].flatten(), first[:, 2:].flatten()), torch.tensor(1.0), accumulate=True)
    assert float((following.amax(1) / following.sum(1).clamp(min=1)).mean()) > 3 / quality.SYMBOLS


def test_a_quality_run_of_a_seed_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "N_STEPS", 3)
    found = quality.losses("cpu", seeds=[0])
    assert found == quality.losses("cpu", seeds=[0])
    assert found["Muon"] == pytest.approx(found["torch.optim.Muon"], abs=1e-2)
    assert quality.spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert [row["optimizer"] for row in quality.summary({"Muon": [1.0, 2.0]})] == ["Muon"]


def test_the_share_of_a_run_is_its_fixed_part_and_that_of_every_step() -> None:
    """600 seconds: 30 outside of the steps, of which a bare run has 1, then 570 steps, a hundredth of each watched."""
    on = watching.Spent(30.0, 1.0, 0.01, 0.0, {}, [], 50)
    assert watching.share(on, on._replace(fixed=1.0)) == (pytest.approx((29 + 5.7) / 600), 570)
    other = on._replace(fixed=40.0, step=0.9, of_step=0.02)
    assert watching.least([on, other]) == on._replace(step=0.9)
    assert watching.rounds(list(range(0, 62, 2))) == [20, 20, 20]
