from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_consistency.cli.study import parse
from lit_consistency.records.differences import flatten
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.study import identity
from lit_consistency.study.identity import code_version, contents, numbers_of
from lit_consistency.study.search_optuna import suggested
from tests.runs import ROOT


def test_files_count_by_content_also_those_that_a_task_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/evaluation").mkdir(parents=True)
    (tmp_path / "data/books").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / f"data/books/{name}.txt").write_text(name)
    (tmp_path / "configs/evaluation/quiz.yaml").write_text("kind: text\ndata: {path: data/books/a.txt}\n")
    options = {
        "data.init_args.source.init_args.path": "data/books/*.txt",
        "forgetting.learn.quiz.task": "quiz/easy",
        "run.name": "data",
        "model.name": "pythia-14m",
        "data.init_args.cache_dir": "data/books",
    }
    before = contents(options)
    assert list(before) == ["configs/evaluation/quiz.yaml", "data/books/a.txt", "data/books/b.txt"]
    (tmp_path / "data/books/b.txt").write_text("changed")
    after = contents(options)
    assert {path for path in before if before[path] != after[path]} == {"data/books/b.txt"}
    folder = contents({"data.init_args.path": "data/books"})
    assert list(folder) == ["data/books/a.txt", "data/books/b.txt"]


def test_an_option_that_is_off_is_as_if_it_were_not_there() -> None:
    options = {
        "model.lr": 0.0,
        "model.carry": False,
        "checkpoint.series": None,
        "forgetting.interpolate": [],
        "run.name": "x",
    }
    assert numbers_of(options) == {"model.lr": 0.0}
    assert numbers_of({**options, "forgetting.interpolate": [0.5]}) != numbers_of(options)


@pytest.mark.parametrize(
    ("file", "fingerprint"),
    [("configs/markov/pretrain.yaml", "15a7c7c35c0d5478"), ("configs/quickstart.yaml", "4a1ad90b56d3758f")],
)
def test_finished_cells_of_earlier_versions_are_found(file: str, fingerprint: str) -> None:
    """An option that is added is off by default (null, false, empty); else every finished cell would run again.

    The right values change when a default of an existing option does, which makes other cells on purpose.
    """
    [options] = parse([("fit", ["--config", str(ROOT / file), "--config", str(ROOT / "configs/optimizers/muon.yaml")])])
    assert fingerprint_of(numbers_of(flatten(options)), sort_keys=True)[:16] == fingerprint


def test_what_the_suite_asks_is_part_of_a_cell_that_names_it() -> None:
    named = contents({"forgetting.retain.suite.task": "suite", "world": "suite"})
    assert {"suite/suite.yaml", "suite/pairs.jsonl"} <= named.keys()
    assert contents({"tasks": ["suite/pairs"]}) == named
    assert contents({"world": "suite"}) == {}


def test_the_code_counts_by_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    monkeypatch.setattr(identity, "ROOMS", ("module.py", "optimizers"))
    (tmp_path / "optimizers").mkdir()
    (tmp_path / "optimizers/sgd.py").write_text('"""SGD."""\ndef step(x):\n    """A step."""\n    return x - 1\n')
    (tmp_path / "module.py").write_text("import this\n")
    cache = tmp_path / "cache.json"
    before = code_version(cache)
    assert code_version(cache) == before
    # other words for the same thing
    (tmp_path / "optimizers/sgd.py").write_text(
        '"""Descent."""\n\n\ndef step(x):\n    """Go down."""\n    # by one\n    return x - 1\n'
    )
    assert code_version(cache) == code_version(None) == before
    (tmp_path / "optimizers/sgd.py").write_text("def step(x):\n    return x - 2\n")
    assert code_version(cache) == code_version(None) != before


def test_optuna_suggests_the_same_after_the_same_results() -> None:
    pytest.importorskip("optuna")
    search = {"kind": "optuna", "metric": "val/loss", "low": 1e-4, "high": 1e-1, "trials": 12}

    def loss(rate: float) -> list[float]:
        return [abs(math.log10(rate) + 2.5) + shift for shift in (0.0, 0.1)] if rate < 0.05 else [math.nan, 1.0]

    results = {1e-4: loss(1e-4)}
    while new := suggested(search, results, higher_is_better=False):
        assert new == suggested(search, dict(results), higher_is_better=False)
        results[new[0]] = loss(new[0])
    assert len(results) == 12
    best = min((rate for rate in results if rate < 0.05), key=lambda rate: sum(results[rate]))
    assert 1e-3 < best < 1e-2  # the optimum is 10^-2.5
