from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.__main__ import main
from lit_consistency.analysis.core.finetunings import Finetuning, group_names, read_runs
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.analysis.forecast import Forecast, hold_out
from lit_consistency.records.analysis_folder import AnalysisFolder
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.stats.ridge import cv_plus, fit_ridge

TARGET = "forget/old"


def write_run(folder: Path, base: str | None, final: float | None, early: dict[str, float], **record: Any) -> Path:
    """A run of 100 steps, measured at 0, 10, 50 and 100; what is early is twice as much at step 50."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    rate = record.pop("lr", 1e-3)
    run.write_config(f"model: {{optimizer: {{init_args: {{lr: {rate}}}}}}}\n")
    run.write_record(
        {"status": "finished", "base": base, "base_hash": base, "seed": 0, "optimizer": "AdamW", "steps": 100} | record
    )
    for step, factor in ((0, 0), (10, 1), (50, 2)):
        run.append_metrics(step, {key: value * factor for key, value in early.items()})
    run.append_metrics(100, {TARGET: final or 0.0})
    if final is not None:
        run.append_metrics(100, {f"final/{TARGET}": final})
    return folder


def study(folder: Path, n_bases: int = 5, law: float = 20.0, noise: float = 0.0) -> Path:
    """Runs whose forgetting at the end is ``law`` times that at step 10, times a random factor."""
    rng = np.random.default_rng(0)
    for base in range(n_bases):
        for i in range(6):
            early = float(np.exp(rng.normal(-3, 1)))
            final = law * early * float(np.exp(noise * rng.normal()))
            kl = float(np.exp(rng.normal()))  # tells nothing
            write_run(
                folder / f"fit-{base}{i}",
                f"base{base}",
                final,
                {TARGET: early, "kl_to_base": kl},
                seed=base,
                lr=10.0**-i,
            )
    return folder


def test_a_law_that_holds_is_found_and_beats_what_does_not_know_it(tmp_path: Path) -> None:
    """Final = 20 early, so that asinh(final / s') is a line in asinh(early / s), with the same scale in units of 20."""
    folder = analyze(Options({"forecast": Forecast([str(study(tmp_path / "cells"))])}, tmp_path / "out"))
    numbers = folder.numbers()
    assert numbers["forecast/r2_log/forget/old"] > 0.99
    assert numbers["forecast/r2_log/all"] > 0.99
    assert numbers["forecast/r2_log/mean"] < 0
    assert numbers["forecast/r2_log/kl_to_base"] < 0.3
    assert numbers["forecast/mae/all"] < 0.2 * numbers["forecast/mae/mean"]
    assert numbers["forecast/n_runs"] == 30
    assert numbers["forecast/n_groups"] == 5
    assert numbers["forecast/early_share"] == 0.1
    rows = folder.read_table("forecast")
    assert {row["early_step"] for row in rows} == {10}
    assert {path.stem for path in folder.figures.glob("*.svg")} >= {"forecast-forgetting-foretold"}
    # no scalar belongs to a model, as none was asked
    assert json.loads(folder.record_file.read_text())["models"] == []


def test_intervals_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    cells = study(tmp_path / "cells", n_bases=12, noise=0.5)
    folder = analyze(Options({"forecast": Forecast([str(cells)], level=0.8)}, tmp_path / "out"))
    numbers = folder.numbers()
    assert numbers["forecast/coverage/all"] == pytest.approx(0.8, abs=0.15)  # three standard errors of 72 runs
    assert numbers["forecast/coverage_low/all"] < 0.8 < numbers["forecast/coverage_high/all"]


def test_nothing_of_a_group_is_learnt_from() -> None:
    """The forecast of one group by hand; changing its own targets changes nothing of its forecast."""
    rng = np.random.default_rng(3)
    x, y = np.exp(rng.normal(size=(20, 2))), np.exp(rng.normal(size=20))
    groups = [f"g{i % 4}" for i in range(20)]
    foretold = hold_out(x, y, groups, 0.01, 0.8)
    own = np.arange(20) % 4 == 2
    s, t = np.median(x[~own], 0) / 10, np.median(y[~own]) / 10
    z, w = np.arcsinh(x / s), np.arcsinh(y / t)
    kept = [group for group in groups if group != "g2"]
    low, high = cv_plus(z[~own], w[~own], kept, z[own], 0.01, 0.8)
    middle = fit_ridge(z[~own], w[~own], 0.01).predict(z[own])
    np.testing.assert_allclose(foretold[own], t * np.sinh(np.stack([middle, low, high], 1)))
    changed = np.where(own, 1000.0, y)
    np.testing.assert_array_equal(hold_out(x, changed, groups, 0.01, 0.8)[own], foretold[own])


def test_seeds_that_share_a_base_are_one_group() -> None:
    def run(base: str, seed: str) -> Finetuning:
        return Finetuning("r", base, seed, "AdamW", 1.0, 1, 0.1, {}, 0.0)

    runs = [run("a", "0"), run("a", "1"), run("b", "1"), run("c", "2"), run("d", "3"), run("d", "2")]
    assert group_names(runs, "base") == ["a", "a", "b", "c", "d", "d"]
    groups = group_names(runs, "seed")
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4] == groups[5]
    assert groups[0] != groups[3]


def test_a_later_measurement_is_read_with_a_share(tmp_path: Path) -> None:
    cells = study(tmp_path / "cells", n_bases=3)
    for share, step in ((0.0, 10), (0.49, 10), (0.5, 50), (0.99, 50)):
        runs, _, _ = read_runs((str(cells),), None, share)
        assert {run.step for run in runs} == {step}
    with pytest.raises(ValueError, match="at the steps .*10, 50.* of 100; expected a measurement before share"):
        read_runs((str(cells / "fit-00"),), None, 0.05)


def test_what_is_no_finetuning_is_counted_in_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    cells = study(tmp_path / "cells", n_bases=3)
    bad: dict[str, tuple[dict[str, Any], float | None, str]] = {
        "interrupted": ({"status": "interrupted"}, 1.0, "status is interrupted; expected a finished run"),
        "pretrained": ({}, 1.0, "it started from no base"),
        "other": ({}, None, "has no number final/forget/old"),
    }
    for name, (record, final, message) in bad.items():
        base = None if name == "pretrained" else "base0"
        folder = write_run(cells / name, base, final, {TARGET: 1.0}, **record)
        with pytest.raises(ValueError, match=message):
            Forecast([str(folder)], target=TARGET).check(None)  # type: ignore[arg-type]
    runs, n_left_out, target = read_runs((str(cells),), None, 0.0)
    assert (len(runs), n_left_out, target) == (18, 3, TARGET)


def test_wrong_options_are_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = study(tmp_path / "cells", n_bases=2)
    wrong = [
        ([], "runs: expected folders of finished finetunings"),
        (["--forecast.runs", "nowhere"], "runs: nowhere: there is no such folder"),
        (["--forecast.runs", str(cells)], "12 of them, in 2 groups by base; expected at least 3 groups"),
        (
            ["--forecast.runs", str(cells / "fit-00"), str(cells / "fit-10"), "--forecast.features", "kl"],
            "features: 'kl': run fit-00 has none at step 10",
        ),
        (
            ["--forecast.runs", str(cells), "--forecast.target", "forget/x"],
            "none of 12 folders is a finished",
        ),
        (["--forecast.runs", str(cells), "--forecast.group", "model"], "group = 'model': expected one of base, seed"),
    ]
    for given, message in wrong:
        with pytest.raises(SystemExit):
            main(["analyze", "--what", "forecast", *given, "--output", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_forecast_that_is_no_good_is_told_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for i in range(24):
        early = {TARGET: float(rng.exponential()), "kl_to_base": float(rng.exponential())}
        write_run(tmp_path / "cells" / f"fit-{i:02}", f"base{i % 6}", float(rng.normal()), early)
    folder = analyze(Options({"forecast": Forecast([str(tmp_path / "cells")])}, tmp_path / "out"))
    numbers = AnalysisFolder(folder.path).numbers()
    assert numbers["forecast/r2/all"] < 0.1
    assert math.isfinite(numbers["forecast/mae/all"])
    assert 0.6 < numbers["forecast/coverage/all"] <= 1
