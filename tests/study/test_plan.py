from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.study.axes import read_axes
from lit_consistency.study.options import Pick, Replicates, Stage, dotted_options
from lit_consistency.study.plan import Plan
from lit_consistency.study.results import Results
from tests.study.fakes import DEFAULTS, FakeParser, crossed_study, optimizer_files, write_run

NOTHING = lambda cell: None  # noqa: E731


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing all source files takes a second."""
    monkeypatch.setattr("lit_consistency.study.plan.code_version", lambda cache, kind="fit": "0123456789ab")


def test_cells_are_the_product_and_say_what_they_are(tmp_path: Path) -> None:
    plan = Plan(crossed_study(tmp_path), FakeParser())
    cells = plan.cells(NOTHING)
    assert len(cells["pretrain"]) == 2 * 3
    assert len(cells["finetune"]) == 2 * 3 * 2 * 2
    assert len({cell.name for of_stage in cells.values() for cell in of_stage}) == 6 + 24
    order = [(job.name in {c.name for c in cells["finetune"]}) for job in plan.jobs(cells)]
    assert order == 3 * [*2 * [False], *8 * [True]]  # replicate by replicate, bases first
    cell = cells["finetune"][-1]
    assert cell.coordinates == {"optimizer": "muon", "finetuner": "muon", "lr": "0.4", "seed": "2"}
    # composed, not parsed: equal to what the parser makes of the whole command
    call = [part for part in cell.given if not part.startswith("--seed") and not part.startswith("--world")]
    whole = FakeParser()([("fit", [*call, "--seed_everything=2", "--world.init_args.seed=2"])])[0]
    assert cell.options["model.optimizer.class_path"] == "Muon" == whole["model"]["optimizer"]["class_path"]
    assert cell.options["model.optimizer.init_args.lr"] == 0.4 == whole["model"]["optimizer"]["init_args"]["lr"]
    assert "model.optimizer.init_args.weight_decay" not in cell.options  # nothing of AdamW stays
    assert cell.options["world.init_args.seed"] == cell.options["seed_everything"] == 2
    assert f"--model.checkpoint_dir={tmp_path / 'cells' / cell.base.name / 'model'}" in cell.argv(
        tmp_path / "cells", False
    )


def test_values_are_parsed_once_and_as_a_sum(tmp_path: Path) -> None:
    first = FakeParser()
    study = crossed_study(tmp_path, rates=[0.1 * k for k in range(1, 11)])
    Plan(study, first)
    assert first.n <= 2 + 2 + 2 * 10  # a product would be 2 + 20 x the bases
    again = FakeParser()
    Plan(study, again)
    assert again.n == 0
    Path(study.stages["pretrain"].axes["optimizer"]["muon"]).write_text(
        "model: {optimizer: {class_path: Muon, init_args: {lr: 0.3}}}"
    )
    Plan(study, again)
    assert again.n > 0  # the file has changed


def test_identity_follows_what_the_numbers_depend_on(tmp_path: Path) -> None:
    def names(**options: object) -> dict[tuple[str, ...], str]:
        cells = Plan(crossed_study(tmp_path, **options), FakeParser()).cells(NOTHING)
        return {tuple(cell.coordinates.values()): cell.name for of_stage in cells.values() for cell in of_stage}

    before = names()
    assert names(title="another", output=tmp_path / "other") == before  # cells of several studies are one
    longer = crossed_study(tmp_path)
    longer.stages["pretrain"].options = {"trainer.max_steps": 20}
    after = names(stages=longer.stages)
    assert not set(before.values()) & set(after.values())  # the base has changed, and with it what starts from it
    shown = crossed_study(tmp_path)
    shown.stages["pretrain"].options = {"throughput.every": 3}
    assert names(stages=shown.stages) == before


def test_orders_repeat_a_cell_with_another_order_alone(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, replicates=Replicates([3, 4], orders=3, orders_seeds=1))
    cells = Plan(study, FakeParser()).cells(NOTHING)
    assert len(cells["pretrain"]) == 4
    assert len(cells["finetune"]) == 2 * 4 * (3 + 1)
    seeds = {c.options["seed_everything"] for c in cells["finetune"] if c.coordinates["seed"] == "3"}
    assert seeds == {3, 100_003, 200_003}
    assert {c.options["world.init_args.seed"] for c in cells["finetune"] if c.coordinates["seed"] == "3"} == {3}


def test_arms_have_fewer_seeds_and_combinations_are_skipped(tmp_path: Path) -> None:
    study = crossed_study(tmp_path)
    finetune = study.stages["finetune"]
    finetune.axes["finetuner"]["muon"] = {"config": finetune.axes["finetuner"]["muon"], "seeds": 1}
    finetune.skip = [{"optimizer": "muon", "lr": [0.1, 0.2]}]
    cells = Plan(study, FakeParser()).cells(NOTHING)["finetune"]
    by_arm = {(o, f): 0 for o in ("adamw", "muon") for f in ("adamw", "muon")}
    for cell in cells:
        by_arm[cell.coordinates["optimizer"], cell.coordinates["finetuner"]] += 1
    # muon starts at 0.2, which is skipped on its own base
    assert by_arm == {("adamw", "adamw"): 6, ("adamw", "muon"): 2, ("muon", "adamw"): 0, ("muon", "muon"): 1}


def test_rates_are_searched_until_the_best_is_bracketed(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, read=None)
    rate = {
        "key": "model.optimizer.init_args.lr",
        "values": [0.1, 0.2],
        "search": {"kind": "bracket", "metric": "val/loss", "factor": 2},
    }
    study.stages = {
        "pretrain": Stage(axes={"base_lr": rate}),
        "finetune": Stage(base="pretrain", pick=Pick(over="base_lr", best="val/loss")),
    }
    plan, results = Plan(study, FakeParser()), Results(study.cells)

    def outcome(cell):  # type: ignore[no-untyped-def]
        return result if (result := results.of(cell.name)).has_ended else None

    seen = []
    for _ in range(10):
        cells = plan.cells(outcome)
        fresh = [cell for cell in cells["pretrain"] if outcome(cell) is None]
        if not fresh:
            break
        seen.append(sorted({float(cell.coordinates["base_lr"]) for cell in fresh}))
        assert plan.waiting
        assert not cells["finetune"]
        for cell in fresh:  # best at 0.8
            lr = float(cell.options["model.optimizer.init_args.lr"])
            write_run(study.cells, cell, {}, losses={"val/loss": abs(lr - 0.8) + int(cell.coordinates["seed"])})
    assert seen == [[0.1, 0.2], [0.4], [0.8], [1.6]]
    assert {cell.coordinates["base_lr"] for cell in cells["finetune"]} == {"0.8"}
    assert len(cells["finetune"]) == 3
    assert not plan.waiting
    saves = {job.name: "--run.save_model=true" in job.argv for job in plan.jobs(cells)}
    assert all(saves[cell.name] for cell in cells["pretrain"])
    assert not any(saves[cell.name] for cell in cells["finetune"])


def test_nothing_is_picked_from_a_seed_as_long_as_the_search_over_all_seeds_goes_on(tmp_path: Path) -> None:
    """Seed 0 has run; what seed 1 says may add a rate that meets the level better, of seed 0 too."""
    study = crossed_study(tmp_path, seeds=(0, 1), read=None)
    rate = {
        "key": "model.optimizer.init_args.lr",
        "values": [0.1, 0.2],
        "search": {"kind": "level", "metric": "learn/new", "level": 0.5, "factor": 2},
    }
    study.stages = {
        "pretrain": Stage(axes={"lr": rate}),
        "finetune": Stage(base="pretrain", pick=Pick(over="lr", metric="learn/new", level=0.5)),
    }
    plan, results = Plan(study, FakeParser()), Results(study.cells)

    def outcome(cell):  # type: ignore[no-untyped-def]
        return result if (result := results.of(cell.name)).has_ended else None

    asked = 0
    while fresh := [cell for cell in plan.cells(outcome)["pretrain"] if outcome(cell) is None]:
        first = [cell for cell in fresh if cell.coordinates["seed"] == "0"] or fresh
        for cell in first:
            learned = float(cell.coordinates["lr"]) + (0.15 if cell.coordinates["seed"] == "0" else 0)
            write_run(study.cells, cell, {"learn/new": learned})
        cells = plan.cells(outcome)
        if any(outcome(cell) is None for cell in cells["pretrain"]):
            asked += 1
            assert not cells["finetune"]
            assert plan.waiting
    assert asked >= 3
    cells = plan.cells(outcome)
    rates = {cell.coordinates["lr"] for cell in cells["pretrain"]}
    nearest = {seed: min(rates, key=lambda lr: abs(float(lr) - aim)) for seed, aim in (("0", 0.35), ("1", 0.5))}
    assert {cell.coordinates["seed"]: cell.coordinates["lr"] for cell in cells["finetune"]} == nearest


def test_a_base_is_matched_to_the_number_of_another(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, read=None)
    study.stages["pretrain"].axes["steps"] = {"key": "trainer.max_steps", "values": [10, 20, 40]}
    study.stages["finetune"].pick = Pick(
        over="steps", metric="val/loss", to={"optimizer": "muon", "steps": "10"}, within=0.1
    )
    plan, results = Plan(study, FakeParser()), Results(study.cells)
    for cell in plan.cells(NOTHING)["pretrain"]:
        steps, muon = int(cell.coordinates["steps"]), cell.coordinates["optimizer"] == "muon"
        loss = 1.0 if muon and steps == 10 else 2.0 - steps / 20 + 0.02  # AdamW meets it at 20, within 0.02
        write_run(
            study.cells, cell, {}, losses={"val/loss": loss if cell.coordinates["seed"] != "1" or muon else loss + 0.5}
        )
    cells = plan.cells(lambda cell: results.of(cell.name))["finetune"]
    met = {(c.coordinates["optimizer"], c.coordinates["seed"]): c.coordinates["steps"] for c in cells}
    assert met == {
        ("adamw", "0"): "20",
        ("adamw", "2"): "20",
        ("muon", "0"): "10",
        ("muon", "1"): "10",
        ("muon", "2"): "10",
    }
    assert any("none comes within 0.1" in note and "seed 1" in note for note in plan.waiting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"axes": {"lr": {"key": "trainer.max_steps", "values": []}}},
            r"stages.finetune.axes.lr: trainer.max_steps = \[\]",
        ),
        ({"axes": {"lr": {"keys": {"a.b": [1, 2], "a.c": [1]}}}}, "lists of one length"),
        (
            {"axes": {"lr": {"key": "no_such.key", "values": [1]}}},
            "stages.finetune.*Unrecognized arguments: --no_such.key",
        ),
        ({"axes": {"lr": {"key": "trainer.max_steps", "values": [1, 1.0]}}}, "1 stands there twice"),
        (
            {"axes": {"a": {"x": {"options": {"trainer.max_steps": 3}}, "y": {"options": {"trainer.max_steps": 3}}}}},
            "x and y are the same",
        ),
        (
            {"axes": {"optimizer": {"key": "trainer.max_steps", "values": [1]}}},
            "the base's stage has an axis of this name",
        ),
        (
            {
                "axes": {
                    "a": {"key": "trainer.max_steps", "values": [1, 2]},
                    "b": {"key": "trainer.max_steps", "values": [3, 4]},
                }
            },
            "both change trainer.max_steps",
        ),
        (
            {"axes": {"a": {"key": "trainer.max_steps", "by": "nothing", "values": {"x": [1]}}}},
            "a.by = nothing: expected one of optimizer",
        ),
        (
            {"axes": {"a": {"key": "trainer.max_steps", "values": [1], "search": {"kind": "level", "metric": "m"}}}},
            "search.level = None",
        ),
        ({"axes": {"a": "here"}}, "expected values by their names"),
        ({"axes": {"a": {"x": "no/such.yaml"}}}, "no/such.yaml: no such file"),
        ({"base": "nothing"}, "stages.finetune.base = nothing: expected an earlier stage .pretrain."),
        ({"pick": Pick(where={"optimizer": ["sgd"]})}, "pick.where.optimizer = sgd: expected one of adamw, muon"),
        ({"pick": Pick(over="lr", best="val/loss")}, "pick.over = lr: expected one of optimizer"),
        ({"config": ["no/such.yaml"]}, "stages.finetune.config: no/such.yaml"),
        ({"skip": [{"nothing": 1}]}, "stages.finetune.skip = nothing"),
        ({"options": {"run": {"root": "/elsewhere"}}}, "stages.finetune.options: run.root: the study sets it"),
        (
            {"axes": {"a": {"x": {"options": {"model.checkpoint_dir": "m"}}}}},
            "axes: x: model.checkpoint_dir: the study",
        ),
        ({"threads": 0}, "stages.finetune.threads = 0"),
        ({"checkpoints": "all"}, "checkpoints = all: expected checkpoint.series"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_run(tmp_path: Path, change: dict, message: str) -> None:
    study = crossed_study(tmp_path)
    for key, value in change.items():
        setattr(study.stages["finetune"], key, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Plan(study, FakeParser()).cells(NOTHING)
    assert not (tmp_path / "study").exists()


def test_outside_of_the_clone_an_axis_takes_the_packages_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (axis,) = read_axes("stages.s", {"optimizer": {"adamw": "configs/optimizers/adamw.yaml"}}, [])
    assert axis.values[""][0].config == ("configs/optimizers/adamw.yaml",)


def test_linked_options_move_together_and_a_searched_value_keeps_their_ratio(tmp_path: Path) -> None:
    axis = read_axes("stages.s", {"rate": {"keys": {"m.lr": ["1e-4", 3e-4], "m.adamw_lr": [2e-4, 6e-4]}}}, [])[0]
    assert [value.name for value in axis.values[""]] == ["0.0001", "0.0003"]
    assert axis.values[""][1].options == {"m.lr": 3e-4, "m.adamw_lr": 6e-4}
    found = axis.swept(1e-3)
    assert found.options["m.adamw_lr"] == pytest.approx(2e-3)
    assert found.name == "0.001"


def test_a_thousand_cells_are_planned_in_a_moment(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=range(25), rates=[0.01 * k for k in range(1, 11)])
    parser = FakeParser()
    plan = Plan(study, parser)
    cells = plan.cells(NOTHING)["finetune"]
    assert len(cells) == 1000
    assert parser.n < 30
    assert DEFAULTS["trainer"]["max_steps"] == cells[0].options["trainer.max_steps"]
    assert optimizer_files(tmp_path)["adamw"] in cells[0].given


def test_cells_of_code_that_computes_the_same_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = crossed_study(tmp_path)
    before = Plan(study, FakeParser()).cells(NOTHING)
    done = before["pretrain"][0]
    write_run(study.cells, done, {})
    monkeypatch.setattr("lit_consistency.study.plan.code_version", lambda cache, kind="fit": "ba9876543210")
    assert done.name not in {cell.name for cell in Plan(study, FakeParser()).cells(NOTHING)["pretrain"]}
    study.accept_code = ["0123456789ab"]
    after = Plan(study, FakeParser()).cells(NOTHING)
    assert after["pretrain"][0].name == done.name
    assert after["pretrain"][1].name != before["pretrain"][1].name  # not run, so by the present code
    assert after["finetune"][0].base == done


CARRY = {"model.carry_optimizer_state": True}


def test_a_state_is_carried_from_a_base_that_is_yet_to_be_made(tmp_path: Path) -> None:
    study = crossed_study(tmp_path)
    finetune = study.stages["finetune"]
    finetuners = finetune.axes["finetuner"]
    finetuners["carried"] = {"config": finetuners["adamw"], "options": CARRY}
    finetune.axes["lr"]["values"]["carried"] = [0.1]
    with pytest.raises(ValueError, match=r"expected run.save_optimizer_state = true in the options of stages.pretrain"):
        Plan(study, FakeParser())
    study.stages["pretrain"].options = {"run.save_optimizer_state": True}
    with pytest.raises(ValueError, match="AdamW on a base of Muon .optimizer muon, finetuner carried, lr 0.1.*or skip"):
        Plan(study, FakeParser()).cells(NOTHING)
    finetune.skip = [{"optimizer": "muon", "finetuner": "carried"}]
    cells = Plan(study, FakeParser()).cells(NOTHING)["finetune"]
    carried = [cell for cell in cells if cell.coordinates["finetuner"] == "carried"]
    assert len(carried) == 3
    assert all(cell.options["model.carry_optimizer_state"] is True for cell in carried)
    assert "--model.carry_optimizer_state=true" in carried[0].argv(study.cells, False)
    others = {cell.name for cell in cells if cell.coordinates["optimizer"] == "adamw"} - {cell.name for cell in carried}
    assert len(others) == 3 * 4  # the same rate without a state is another cell


def test_files_that_name_a_model_or_a_shape_give_way_to_the_base(tmp_path: Path) -> None:
    study = crossed_study(tmp_path)
    (tmp_path / "shape.yaml").write_text("model: {name: pythia, overrides: {n_layer: 2}}")
    (tmp_path / "task.yaml").write_text("model: {checkpoint_dir: checkpoints/nowhere}")
    study.stages["pretrain"].config = [str(tmp_path / "shape.yaml")]
    study.stages["finetune"].config = [str(tmp_path / "task.yaml")]
    cell = Plan(study, FakeParser()).cells(NOTHING)["finetune"][0]
    assert cell.options["model.checkpoint_dir"] is None
    assert (cell.options["model.name"], cell.options["model.overrides.n_layer"]) == ("pythia", 2)  # it stands in
    given = cell.argv(study.cells, False)
    assert given.index(f"--model.checkpoint_dir={study.cells / cell.base.name / 'model'}") > given.index("--config")
    assert "--model.name=null" in given


def test_a_cell_runs_in_the_prompt_style_that_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser settles it without the base, which is yet to be made and may turn out to have another."""
    monkeypatch.setitem(DEFAULTS, "data", {"init_args": {"prompt_style": "default"}})
    study = crossed_study(tmp_path)
    cell = Plan(study, FakeParser()).cells(NOTHING)["finetune"][0]
    given = "--data.init_args.prompt_style=default"
    assert given in cell.argv(study.cells, False)
    study.stages["finetune"].options = {"data.init_args.prompt_style": "default"}
    [same, *_] = Plan(study, FakeParser()).cells(NOTHING)["finetune"]
    assert same.name == cell.name


def test_checkpoints_of_a_series_are_an_axis(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[0], rates=[0.1])
    study.stages["finetune"].checkpoints = [5, 10]
    plan = Plan(study, FakeParser())
    assert [value.name for value in plan.axes_of("finetune")["checkpoint"].values[""]] == ["5", "10"]
    assert "checkpoint" not in plan.axes_of("pretrain")
    study.stages["again"] = Stage(base="finetune", pick=Pick(where={"checkpoint": ["10"]}))
    cells = Plan(study, FakeParser()).cells(NOTHING)
    assert [len(cells[stage]) for stage in ("pretrain", "finetune", "again")] == [2, 8, 4]
    study.stages["again"] = Stage(base="finetune", pick=Pick(where={"checkpoint": ["7"]}))
    with pytest.raises(ValueError, match="pick.where.checkpoint = 7: expected one of 5, 10"):
        Plan(study, FakeParser())


def test_others_are_the_values_that_are_not_named() -> None:
    finetuner = {name: {"options": {"m.name": name}} for name in ("a", "b", "c")}
    rates = {"key": "m.lr", "by": "finetuner", "values": {"others": [1, 2], "b": [3]}}
    axes = read_axes("stages.s", {"finetuner": finetuner, "lr": rates}, [])
    found = {branch: [value.name for value in values] for branch, values in axes[1].values.items()}
    assert found == {"a": ["1", "2"], "b": ["3"], "c": ["1", "2"]}
    rates["values"]["d"] = [4]
    with pytest.raises(ValueError, match="expected one of a, b, c"):
        read_axes("stages.s", {"finetuner": finetuner, "lr": rates}, [])


def test_what_is_skipped_is_a_value_however_it_is_written(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[0])
    study.stages["finetune"].skip = [{"lr": ["1e-1", 0.20]}]
    assert {c.coordinates["lr"] for c in Plan(study, FakeParser()).cells(NOTHING)["finetune"]} == {"0.4"}
    study.stages["finetune"].skip = [{"lr": 0.3}]
    with pytest.raises(ValueError, match=r"finetune.skip.lr = 0.3: expected one of 0.1, 0.2, 0.2, 0.4"):
        Plan(study, FakeParser())


def test_regular_expressions_are_keys_of_one_value() -> None:
    given = {"model": {"roles": {r"mlp\..*weight": "head"}, "overrides": {"n_layer": 2}}, "data.init_args": {"a": 1}}
    assert dotted_options(given) == {
        "model.roles": {r"mlp\..*weight": "head"},
        "model.overrides.n_layer": 2,
        "data.init_args.a": 1,
    }


def test_a_sequence_is_run_once_a_seed_of_its_base(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[3, 4], read=None)
    study.stages["sequence"] = Stage(kind="sequence", base="pretrain")
    cells = Plan(study, FakeParser()).cells(NOTHING)["sequence"]
    assert [(cell.base.coordinates["seed"], cell.options["seeds"]) for cell in cells] == 2 * [("3", [3])] + 2 * [
        ("4", [4])
    ]
    given = cells[0].argv(study.cells, False)
    base, own = (study.cells / name for name in (f"{cells[0].base.name}/model", cells[0].name))
    assert given[-2:] == (f"--base={base}", f"--output={own}")
