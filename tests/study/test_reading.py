from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lit_consistency.records.atomic import write_json
from lit_consistency.records.results import Result, write_result
from lit_consistency.study.axes import Axis
from lit_consistency.study.claims import check_claims, claim_results
from lit_consistency.study.crossed import components, crossed_effects, order_spread
from lit_consistency.study.execute.state import Attempt, State, write_attempts
from lit_consistency.study.options import Claim, Replicates, StudyOptions
from lit_consistency.study.plan import Plan
from lit_consistency.study.points import Group, Point, groups_of
from lit_consistency.study.reading import Where, fronts, rate_curves, read_group
from lit_consistency.study.results import Results
from lit_consistency.study.sequence.matrix import Matrix, as_json
from tests.study.fakes import FakeParser, crossed_reading, crossed_study, write_run

RATES = (0.1, 0.2, 0.4)
LEARNED = {0.1: 0.3, 0.2: 0.5, 0.4: 0.8}  # AdamW's rates; Muon's are twice as large
BASES = ("adamw", "muon")
SEEDS = range(6)


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.study.plan.code_version", lambda cache, kind="fit": "0123456789ab")


def kept(base: str, finetuner: str, seed: int, order: int = 0) -> float:
    """What is kept of old facts at the level: matched pairs keep .1 more, AdamW's bases .05, Muon .02; seeds differ."""
    noise = [0.01, -0.01, 0.02, -0.02, 0.015, -0.015][seed] * (1 if base == finetuner else -1)
    return (
        0.6 + 0.1 * (base == finetuner) + 0.05 * (base == "adamw") + 0.02 * (finetuner == "muon") + noise + 0.03 * order
    )


def run_all(study: StudyOptions, **changes: object) -> tuple[list[Group], StudyOptions]:
    plan, results = Plan(study, FakeParser()), Results(study.cells)
    cells = plan.cells(lambda cell: None)["finetune"]
    for cell in cells:
        c = cell.coordinates
        rate = round(float(c["lr"]) / (2 if c["finetuner"] == "muon" else 1), 6)
        value = kept(c["optimizer"], c["finetuner"], int(c["seed"]), int(c.get("order", "0")))
        # at other rates than that of the level forgetting is another
        numbers = {"learn/new": LEARNED[rate], "retain/old": value - (rate - 0.2), "forget/old.stderr": 0.01}
        write_run(study.cells, cell, numbers, {"learn/new": 0.0, "retain/old": 0.95}, **changes)
    assert study.read
    return groups_of(cells, study.read, results), study


def test_forgetting_is_read_at_the_level_by_seed(tmp_path: Path) -> None:
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES))
    assert [(g.panel, g.name) for g in groups] == [(f"optimizer {b}", f) for b in BASES for f in BASES]
    for group in groups:
        for seed in SEEDS:
            got = read_group(group, str(seed), Where("learning", "retain/old"), study.read)
            assert got.value == pytest.approx(0.95 - kept(group.coordinates["optimizer"], group.name, seed))
            odds = read_group(group, str(seed), Where("learning", "retain/old", "log-odds"), study.read)
            share = (kept(group.coordinates["optimizer"], group.name, seed) * 100 + 0.5) / 101
            base = (95 + 0.5) / 101
            assert odds.value == pytest.approx(math.log(base / (1 - base)) - math.log(share / (1 - share)))
    outside = crossed_reading(level=0.9)
    assert "not bracketed" in read_group(groups[0], "0", Where("learning", "retain/old"), outside).mark


def test_a_loss_is_learned_where_it_falls(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, [0], RATES)
    plan, results = Plan(study, FakeParser()), Results(study.cells)
    cells = plan.cells(lambda cell: None)["finetune"]
    judged = {"learn/new": {"metric": "kl", "items": 9}, "retain/old": {"metric": "kl", "items": 9}}
    for cell in cells:
        kl = {0.1: 1.0, 0.2: 0.1, 0.4: 0.01, 0.8: 0.001}[float(cell.coordinates["lr"])]
        write_run(study.cells, cell, {"learn/new": kl, "retain/old": 2 * kl}, {"retain/old": 0.05}, judged_by=judged)
    group = groups_of(cells, study.read, results)[0]
    # halfway between .1 and .01 on the logarithm; what is forgotten rises from .05 to twice the KL
    reading = crossed_reading(level=math.sqrt(0.1 * 0.01))
    got = read_group(group, "0", Where("learning", "retain/old"), reading)
    assert got.value == pytest.approx(((0.2 - 0.05) + (0.02 - 0.05)) / 2)
    assert [p.learning("learn/new") for p in group.ends()] == [-1.0, -0.1, -0.01]
    log = read_group(group, "0", Where("learning", "retain/old", "log"), reading)
    assert log.value == pytest.approx((math.log(0.2 / 0.05) + math.log(0.02 / 0.05)) / 2)
    with pytest.raises(ValueError, match="scale log-odds of retain/old: expected log or points"):
        read_group(group, "0", Where("end", "retain/old", "log-odds"), reading)


def test_effects_are_differences_within_seeds(tmp_path: Path) -> None:
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES))
    where = Where("learning", "retain/old")
    effects = crossed_effects(groups, ("optimizer", BASES), ("finetuner", BASES), where, study.read)
    by_seed = [
        sum((-1 if b == f else 1) * kept(b, f, seed) for b in BASES for f in BASES) for seed in SEEDS
    ]  # forgetting is .95 less what is kept
    test = scipy_stats.ttest_1samp(by_seed, 0)
    kind, interaction = effects["interaction: matched less mismatched"]
    assert kind == "interaction"
    assert interaction.value == pytest.approx(np.mean(by_seed)) == pytest.approx(-0.2)
    assert (interaction.low, interaction.high) == pytest.approx(tuple(test.confidence_interval()))
    assert interaction.p == pytest.approx(test.pvalue)
    assert effects["base muon - adamw"][1].value == pytest.approx(0.05)
    # pairs are matched by their names, whatever the order of the columns
    turned = crossed_effects(groups, ("optimizer", BASES), ("finetuner", BASES[::-1]), where, study.read)
    assert turned["interaction: matched less mismatched"][1].value == pytest.approx(interaction.value)
    assert turned["finetuner adamw - muon"][1].value == pytest.approx(0.02)
    # of one base the simple effect is the main one, which is told once
    of_one = crossed_effects(groups, ("optimizer", BASES[:1]), ("finetuner", BASES), where, study.read)
    assert list(of_one) == ["finetuner muon - adamw"]


def test_a_seed_is_left_out_where_it_was_planned_and_has_no_number(tmp_path: Path) -> None:
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES))
    where = Where("learning", "retain/old")
    for planned, left_out in ((("0", "1", "2"), 0), (tuple(map(str, SEEDS)), 3)):
        fewer = [
            replace(g, points=[p for p in g.points if int(p.seed) < 3], planned=planned) if g.name == "muon" else g
            for g in groups
        ]
        effects = crossed_effects(fewer, ("optimizer", BASES), ("finetuner", BASES), where, study.read)
        assert {name: (c.n, c.left_out) for name, (_, c) in effects.items() if name.startswith("muon - adamw")} == {
            f"muon - adamw on base {base}": (3, left_out) for base in BASES
        }
        assert effects["base muon - adamw with finetuner adamw"][1].left_out == 0


def test_verdicts_follow_the_bounds_and_holm(tmp_path: Path) -> None:
    crossed = {"rows": {"optimizer": list(BASES)}, "columns": {"finetuner": list(BASES)}}
    claims = {
        "consistency": Claim("matched pairs forget less", "interaction", **crossed, smallest_effect=0.05),
        "opposite": Claim("they forget more", "interaction", **crossed, smallest_effect=0.05, expect="above"),
        "muon": Claim(
            "Muon forgets less", of={"finetuner": "muon"}, against={"finetuner": "adamw"}, smallest_effect=0.04
        ),
        "huge": Claim("by half", "interaction", **crossed, smallest_effect=0.22),
        "nowhere": Claim("at no level", "interaction", **crossed, at="divergence"),
    }
    study = crossed_study(tmp_path, SEEDS, RATES, claims=claims)
    study.read.divergence, study.read.divergence_level = "kl_to_base", 1.0
    groups, _ = run_all(study)
    results = {result.name: result for result in claim_results(study, lambda *_: groups, "study")}
    assert {name: result.verdict for name, result in results.items()} == {
        "consistency": "supported",
        "opposite": "contradicted",
        "muon": "equivalent",
        "huge": "undecided",
        "nowhere": "no verdict",
    }
    assert results["huge"].seeds_needed > len(SEEDS)
    assert "0 seeds" in results["nowhere"].note
    # Holm: the interval of a claim among several is wider than one by itself
    alone = claim_results(
        crossed_study(tmp_path, SEEDS, RATES, claims={"consistency": claims["consistency"]}), lambda *_: groups, "study"
    )[0]
    assert results["consistency"].high - results["consistency"].low > alone.high - alone.low
    assert results["consistency"].p > alone.p


def test_failed_cells_are_no_points_and_too_many_lost_seeds_no_verdict(tmp_path: Path) -> None:
    claims = {"c": Claim("x", "interaction", {"optimizer": list(BASES)}, {"finetuner": list(BASES)})}
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES, claims=claims))
    lost = [p.cell.name for g in groups[:1] for p in g.points if p.seed in ("0", "1")]
    for name in lost:
        file = study.cells / name / "run.json"
        file.write_text(file.read_text().replace('"finished"', '"failed"'))
    plan = Plan(study, FakeParser())
    groups = groups_of(plan.cells(lambda cell: None)["finetune"], study.read, Results(study.cells))
    assert {p.seed for p in groups[0].points} == {"2", "3", "4", "5"}
    result = claim_results(study, lambda *_: groups, "study")[0]
    assert result.verdict == "no verdict"
    assert "2 of 6 seeds lack a number" in result.note


def test_fronts_join_ends_steps_and_interpolations(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, [0, 1], RATES)
    groups, _ = run_all(study, interpolated={"0.5": {"learn/new": 0.6, "retain/old": 0.94}})
    shown = fronts(groups, study.read)
    assert [(front.panel, front.group) for front in shown] == [(f"optimizer {b}", f) for b in BASES for f in BASES]
    first = shown[0]
    assert {point.kind for point in first.points} == {"end", "interpolation"}
    on = sorted({(round(p.learning, 6), round(p.forgetting, 6)) for p in first.points if p.on_front and p.seed == "0"})
    # halfway it has learned .6 and lost .01, which leaves of the ends only what learned more
    assert on == [(0.6, 0.01), (0.8, pytest.approx(0.95 - kept("adamw", "adamw", 0) + 0.2))]
    assert set(first.surfaces) == {"1/2", "2/2", "median"}
    curves = rate_curves(groups, study.read)
    assert [curve.metric for curve in curves[:2]] == ["learn/new", "change of retain/old"]
    assert curves[0].points[1][:2] == (0.2, 0.5)


def test_spread_is_parted_into_bases_and_orders(tmp_path: Path) -> None:
    groups, study = run_all(
        crossed_study(tmp_path, [0, 1, 2], RATES, replicates=Replicates([0, 1, 2], orders=3, orders_seeds=3))
    )
    parts = components(groups[:1], Where("learning", "retain/old"), study.read)
    orders = [[0.95 - kept("adamw", "adamw", seed, k) for k in range(3)] for seed in range(3)]
    within = np.mean([np.var(row, ddof=1) for row in orders])
    assert parts[0].components["order"] == pytest.approx(math.sqrt(within - 0.01**2))
    assert order_spread(parts) == parts[0].components["order"]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim("x", "interaction", {"optimizer": ["adamw"]}, {"finetuner": ["adamw", "muon"]}), "claims.c.rows"),
        (
            Claim("x", "interaction", {"optimizer": ["adamw", "sgd"]}, {"finetuner": ["adamw", "muon"]}),
            "rows.optimizer = sgd: expected one of adamw, muon",
        ),
        (
            Claim("x", of={"nothing": "a"}, against={"finetuner": "muon"}),
            "claims.c.of = nothing: expected one of optimizer, finetuner",
        ),
        (Claim("x", of={"finetuner": "muon"}, against={"finetuner": "muon"}), "two different sets"),
        (
            Claim("x", of={"finetuner": "muon"}, against={"finetuner": "adamw"}, smallest_effect=-1),
            "claims.c.smallest_effect = -1",
        ),
        (
            Claim("x", of={"finetuner": "muon"}, against={"finetuner": "adamw"}, at="divergence"),
            "at = divergence: expected read.divergence",
        ),
        (
            Claim("x", of={"finetuner": "muon", "at": "dial"}, against={"finetuner": "muon"}),
            "expected at in both, or in neither",
        ),
        (
            Claim("x", of={"finetuner": "muon", "at": "end"}, against={"finetuner": "muon", "at": "dial"}),
            "against.at = end: expected one of front, final, early_stop, dial",
        ),
    ],
)
def test_a_claim_on_what_is_not_there_is_refused(tmp_path: Path, claim: Claim, message: str) -> None:
    study = crossed_study(tmp_path, claims={"c": claim})
    with pytest.raises(ValueError, match=message):
        check_claims(study, axes_of_stages(study))


def axes_of_stages(study: StudyOptions) -> dict[str, dict[str, Axis]]:
    plan = Plan(study, FakeParser())
    return {name: plan.axes_of(name) for name in plan.stages}


def contrast(groups: list[Group], study: StudyOptions, **claim: object) -> tuple[float, int]:
    study.claims = {"claim": Claim("A sentence.", **claim)}
    check_claims(study, axes_of_stages(study))
    (result,) = claim_results(study, lambda *_: groups, "")
    assert result.note == ""
    return result.value, result.n


def test_a_claim_at_one_rate_reads_the_cells_of_that_rate(tmp_path: Path) -> None:
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES))
    of, against = ({"optimizer": "adamw", "finetuner": "adamw", "lr": rate} for rate in ("0.4", "0.1"))
    # what is kept falls by as much as the rate rises, see run_all
    assert contrast(groups, study, of=of, against=against, at="end")[0] == pytest.approx(0.4 - 0.1)
    with pytest.raises(ValueError, match="claims.claim.of = lr: expected one of optimizer, finetuner"):
        contrast(groups, study, of=of, against=against, at="learning")


def test_a_side_of_a_claim_says_of_which_points_its_front_is(tmp_path: Path) -> None:
    # at a quarter and at half of the way it has learned .4 and .6 and lost .01 and .03: .02 at the level, .5
    between = {"0.25": {"learn/new": 0.4, "retain/old": 0.94}, "0.5": {"learn/new": 0.6, "retain/old": 0.92}}
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES), interpolated=between)
    final = np.mean([0.95 - kept(base, "adamw", seed) for base in BASES for seed in SEEDS])

    def gain(at: str, group: list[Group]) -> float:
        of, against = ({"finetuner": "adamw", "at": place} for place in (at, "final"))
        return contrast(group, study, of=of, against=against)[0]

    assert gain("dial", groups) == gain("front", groups) == pytest.approx(0.02 - final)
    assert gain("early_stop", groups) == pytest.approx(0)
    as_steps = [
        replace(g, points=[replace(p, kind="step") if p.kind == "interpolation" else p for p in g.points])
        for g in groups
    ]
    assert gain("early_stop", as_steps) == gain("front", as_steps) == pytest.approx(0.02 - final)
    assert gain("dial", as_steps) == pytest.approx(0)


def test_a_claim_on_the_number_itself_leaves_the_base_out(tmp_path: Path) -> None:
    groups, study = run_all(crossed_study(tmp_path, SEEDS, RATES))
    point = groups[0].ends()[0]
    assert point.forgetting("retain/old") == pytest.approx(0.95 - point.number("retain/old"))
    assert point.forgetting("retain/old", itself=True) == pytest.approx(-point.number("retain/old"))
    of, against = {"optimizer": "adamw"}, {"optimizer": "muon"}
    changes, numbers = (contrast(groups, study, of=of, against=against, at="end", itself=i)[0] for i in (False, True))
    assert changes == pytest.approx(numbers)  # all have one base here
    # AdamW's bases keep .05 more
    assert numbers == pytest.approx(-0.05)


def test_an_arm_of_fewer_seeds_is_compared_on_those(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, SEEDS, RATES)
    muon = study.stages["finetune"].axes["finetuner"]["muon"]
    study.stages["finetune"].axes["finetuner"]["muon"] = {"config": muon, "seeds": 4}
    groups, study = run_all(study)
    value, n = contrast(groups, study, of={"finetuner": "muon"}, against={"finetuner": "adamw"})
    assert n == 4
    by_hand = [kept(b, "adamw", s) - kept(b, "muon", s) for b in BASES for s in range(4)]
    assert value == pytest.approx(np.mean(by_hand))
    # of a planned seed that is missing the claim says so: 1 of 4 is more than a selection may lose
    missing = [replace(g, points=[p for p in g.points if g.name != "muon" or p.seed != "3"]) for g in groups]
    study.claims = {"claim": Claim("A sentence.", of={"finetuner": "muon"}, against={"finetuner": "adamw"})}
    (result,) = claim_results(study, lambda *_: missing, "")
    assert "1 of 4 seeds lack a number" in result.note


def test_an_evaluation_is_read_by_its_numbers_and_a_sequence_by_its_transfer(tmp_path: Path) -> None:
    evaluated = tmp_path / "evaluate-1"
    metrics = {"accuracy": {"value": 0.7, "stderr": 0.02}}
    write_result(evaluated, Result("facts", "choice", "default", 0, 50, metrics, {}, {}, [], 0, ""), [])
    attempt = Attempt("evaluate", "here", 10.0, ended=14.0, status=0, state=State.FINISHED)
    write_attempts(evaluated, [attempt])
    result = Results(tmp_path).of("evaluate-1")
    assert (result.metrics["retain/facts"], result.seconds) == (0.7, 4.0)
    cell = Plan(crossed_study(tmp_path), FakeParser()).cells(lambda cell: None)["finetune"][0]
    assert Point(cell, "end", 1.0, result.metrics, result).forgetting("retain/facts") == pytest.approx(-0.7)

    scores = {seed: [[0.0, 0.0], [0.8, 0.1], [0.5 + seed / 10, 0.6]] for seed in (0, 1)}
    matrix = Matrix(["a", "b"], ["a", "b"], ["accuracy", "accuracy"], scores)
    write_json(tmp_path / "sequence-1" / "matrix.json", {"matrices": as_json({"default/0": matrix})})
    write_attempts(tmp_path / "sequence-1", [replace(attempt, command="sequence")])
    result = Results(tmp_path).of("sequence-1")
    # overall performance: mean of the last row; backward transfer: last score of a less that after its own stage
    assert result.metrics["overall_performance"] == pytest.approx((0.55 + 0.6) / 2)
    assert result.metrics["backward_transfer"] == pytest.approx(0.55 - 0.8)
    assert result.metrics["forget/a"] == pytest.approx(0.8 - 0.55)
    assert result.more_is_better("backward_transfer")
    assert not result.more_is_better("forget/a")
