"""Analyses as cells of a study: what they start from, what they depend on, and claims about their numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_consistency.__main__ import main
from lit_consistency.records.analysis_folder import ALL, AnalysisFolder
from lit_consistency.stats.effects import over_seeds
from lit_consistency.study.claims import check_claims, claim_results
from lit_consistency.study.execute.state import Attempt, State, write_attempts
from lit_consistency.study.identity import code_version
from lit_consistency.study.options import Claim, Stage, StudyOptions
from lit_consistency.study.plan import Plan
from lit_consistency.study.points import groups_of
from lit_consistency.study.results import Results
from tests.runs import ROOT, SIZES, WORLD
from tests.study.fakes import FakeParser, crossed_study

SEEDS = [0, 1, 2, 3]


def study_with_analyses(folder: Path, **changes: object) -> StudyOptions:
    study = crossed_study(folder, SEEDS, ["0.1"])
    looks = {
        "look_bases": Stage(kind="analyze", base="pretrain", options={"what": ["perturbations"]}),
        "look_updates": Stage(kind="analyze", base="finetune", options={"what": ["updates", "kl"]}),
    }
    return replace(study, stages={**study.stages, **looks}, **changes)


def test_an_analysis_compares_a_model_with_what_it_was_trained_from(tmp_path: Path) -> None:
    study = study_with_analyses(tmp_path)
    plan = Plan(study, FakeParser())
    cells = plan.cells(lambda cell: None)
    base, finetuned = cells["look_bases"][0], cells["look_updates"][0]
    argv = finetuned.argv(study.cells, save_model=False)
    assert argv[0] == "analyze"
    assert list(argv[1:4]) == ["--what", "updates", "kl"]
    assert f"--model={study.cells / finetuned.base.name / 'model'}" in argv
    assert f"--base={study.cells / finetuned.base.base.name / 'model'}" in argv
    assert not any(part.startswith("--base") for part in base.argv(study.cells, save_model=False))
    # both must have run, and have kept their weights
    jobs = {job.name: job for job in plan.jobs(cells, [finetuned.name])}
    assert set(jobs) == {finetuned.name, finetuned.base.name, finetuned.base.base.name}
    assert set(jobs[finetuned.name].needs) == {finetuned.base.name, finetuned.base.base.name}
    assert "--run.save_model=true" in jobs[finetuned.base.name].argv


@pytest.mark.slow
def test_code_of_analyses_counts_for_analyses_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lit_consistency.study import identity

    before = {kind: code_version(None, kind) for kind in ("fit", "evaluate", "analyze")}
    assert len(set(before.values())) == 3
    changed = tmp_path / "analysis"
    changed.mkdir()
    (changed / "new.py").write_text("x = 1\n")
    monkeypatch.setitem(identity.ROOMS_OF, "analyze", (*identity.ROOMS, str(changed)))
    monkeypatch.setattr(Path, "relative_to", lambda self, *_: self)
    assert code_version(None, "analyze") != before["analyze"]


def write_analyses(study: StudyOptions, numbers: dict[str, np.ndarray]) -> None:
    """``rise/sign`` and ``rise/orthogonal`` of every base, by optimizer and seed."""
    for cell in Plan(study, FakeParser()).cells(lambda cell: None)["look_bases"]:
        at = ["adamw", "muon"].index(cell.coordinates["optimizer"]), SEEDS.index(int(cell.coordinates["seed"]))
        own = {f"perturbations/{name}": float(table[at]) for name, table in numbers.items()}
        folder = AnalysisFolder(study.cells / cell.name)
        folder.write_record({"numbers": {"model": own, ALL: {}}})
        write_attempts(folder.path, [Attempt("analyze", "here", 0.0, 1, 2.0, 0, State.FINISHED)])


def test_claims_about_the_numbers_of_analyses(tmp_path: Path) -> None:
    """Planted: sign hurts the AdamW bases less than orthogonal ones do, and the other way on Muon's."""
    crossed = Claim(
        "matched perturbations hurt less", "interaction", {"optimizer": ["adamw", "muon"]},
        {"metric": ["perturbations/rise/sign", "perturbations/rise/orthogonal"]},
        stage="look_bases", scale="log", smallest_effect=0.1,
    )  # fmt: skip
    plain = Claim(
        "AdamW's bases rise less", of={"optimizer": "adamw"}, against={"optimizer": "muon"}, stage="look_bases",
        metric="perturbations/rise/sign", smallest_effect=0.01,
    )  # fmt: skip
    study = study_with_analyses(tmp_path, claims={"crossed": crossed, "plain": plain})
    rng = np.random.default_rng(0)
    numbers = {
        "rise/sign": np.exp([[-1.0], [0.0]] + 0.05 * rng.normal(size=(2, 4))),
        "rise/orthogonal": np.exp([[-0.5], [-0.2]] + 0.05 * rng.normal(size=(2, 4))),
    }
    write_analyses(study, numbers)
    plan, results = Plan(study, FakeParser()), Results(study.cells)
    check_claims(study, {name: plan.axes_of(name) for name in plan.stages})
    cells = plan.cells(lambda cell: None)
    got = {r.name: r for r in claim_results(study, lambda stage, own: groups_of(cells[stage], own, results), "")}
    sign, orthogonal = numbers["rise/sign"], numbers["rise/orthogonal"]
    expected = np.log(sign[0]) - np.log(orthogonal[0]) - np.log(sign[1]) + np.log(orthogonal[1])
    assert got["crossed"].value == pytest.approx(expected.mean())
    assert got["plain"].value == pytest.approx((sign[0] - sign[1]).mean())
    assert got["plain"].n == 4
    assert [got[name].verdict for name in ("crossed", "plain")] == ["supported", "supported"]
    # its own interval, before Holm widens it, is Student's over seeds
    assert got["crossed"].high - got["crossed"].low >= over_seeds(expected).high - over_seeds(expected).low


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "nowhere"}, "claims.c.stage = nowhere: expected one of"),
        ({"metric": None}, "claims.c.metric: expected the number of stages.look_bases"),
        ({"of": {"finetuner": "adamw"}}, "claims.c.of = finetuner: expected one of optimizer"),
    ],
)
def test_a_claim_about_an_analysis_that_is_not_there_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    claim = replace(
        Claim("x", of={"optimizer": "adamw"}, against={"optimizer": "muon"}, stage="look_bases", metric="a/b"),
        **changes,
    )
    study = study_with_analyses(tmp_path, claims={"c": claim})
    plan = Plan(study, FakeParser())
    with pytest.raises(ValueError, match=message):
        check_claims(study, {name: plan.axes_of(name) for name in plan.stages})


@pytest.mark.slow
def test_a_study_trains_and_analyses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command on two tiny bases: the numbers of the report are those of ``analyze`` by hand."""
    monkeypatch.chdir(ROOT)
    sizes = {f"model.overrides.{size.partition('=')[0]}": int(size.partition("=")[2]) for size in SIZES}
    world = yaml.safe_load(WORLD)
    content = {
        "title": "tiny", "output": str(tmp_path / "study"), "cells": str(tmp_path / "cells"),
        "replicates": {"seeds": [0, 1, 2]},
        "stages": {
            "pretrain": {
                "config": ["configs/markov/pretrain.yaml", "configs/pretraining/adamw.yaml"],
                "options": {
                    "trainer.max_steps": 2, "trainer.max_epochs": -1, "forgetting.every_n_steps": 0, "world": world,
                    "data.init_args.block_size": 32, "forgetting.kl_positions": 0, **sizes,
                },
                "axes": {"lr": {"key": "model.optimizer.init_args.lr", "values": [0.001, 0.01]}},
            },
            "look": {
                "kind": "analyze", "base": "pretrain",
                "options": {"what": ["attention_rank"], "attention_rank.share": 0.9},
            },
        },
        "claims": {"rank": {
            "sentence": "The higher rate has the lower rank.", "stage": "look",
            "metric": "attention_rank/pseudo_rank/qk", "of": {"lr": "0.01"}, "against": {"lr": "0.001"},
            "smallest_effect": 0.01,
        }},
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(SystemExit) as ended:
        main(["study", "--config", str(file), "--execution.workers", "1"])
    assert ended.value.code == 0
    (cell, *others) = sorted((tmp_path / "cells").glob("analyze-*"))
    assert len(others) == 5
    model = next(part for part in yaml.safe_load((cell / "analysis.json").read_text())["models"])["folder"]
    by_hand = ["--model", model, "--what", "attention_rank", "--attention_rank.share", "0.9"]
    main(["analyze", *by_hand, "--output", str(tmp_path / "hand")])
    assert AnalysisFolder(tmp_path / "hand").numbers() == AnalysisFolder(cell).numbers()
    assert "attention_rank/pseudo_rank/qk" in (tmp_path / "study" / "report" / "results.csv").read_text()
