"""One world for a run: what is trained on and what is asked refer to the key ``world``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.data.worlds import Biographies, World
from tests.runs import ROOT, OnlyFit

REPLAYED = "--config=configs/replay/biographies.yaml"
PEOPLE = "lit_consistency.data.worlds.Biographies"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def quickstart(tmp_path: Path, *args: str) -> ConsistencyCLI:
    """The quickstart, built and not run."""
    return build(["fit", "--config=configs/quickstart.yaml", f"--run.root={tmp_path}", *args], OnlyFit)


def worlds(cli: ConsistencyCLI) -> dict[str, World]:
    """The world of everything that has one."""
    data: Any = cli.datamodule
    forgetting = next(callback for callback in cli.trainer.callbacks if hasattr(callback, "retain"))  # type: ignore[attr-defined]
    asked = {**forgetting.learn, **forgetting.retain}
    replayed = {} if data.replay is None else data.replay.parts
    named = {"train": data.train, "validation": data.validation, **asked, **replayed}
    return {name: owner.world for name, owner in named.items()}


def test_the_seed_of_the_world_is_that_of_all_who_name_none(tmp_path: Path) -> None:
    found = worlds(quickstart(tmp_path, REPLAYED, "--world.init_args.seed=1"))
    assert found.keys() == {"train", "validation", "new_people", "old_people", "old_text", "pretraining"}
    assert set(found.values()) == {Biographies(seed=1)}


def test_the_written_configuration_names_it_once(tmp_path: Path) -> None:
    text = quickstart(tmp_path, "--forgetting.retain.old_text=null", "--forgetting.retain.old_people.limit=50").dump()
    written = yaml.safe_load(text)
    assert written["data"]["init_args"]["rows"]["init_args"]["world"] is None
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert build(["fit", f"--config={file}"], OnlyFit).dump() == text
    other = build(["fit", f"--config={file}", "--world.init_args.seed=1"], OnlyFit)
    assert set(worlds(other).values()) == {Biographies(seed=1)}


LEARNED = ("data.init_args.rows.init_args", "data.init_args.validation.init_args", "forgetting.learn.new_people")


def test_what_is_learned_is_of_the_run_s_world(tmp_path: Path) -> None:
    for key in LEARNED:
        with pytest.raises(ValueError, match=rf"^{key}.world, world: seed = 0 against 1; expected the same world"):
            quickstart(tmp_path, "--world.init_args.seed=1", f"--{key}.world={PEOPLE}")
    quickstart(tmp_path, *(f"--{key}.world={PEOPLE}" for key in LEARNED))  # the same world, given again


def test_another_world_may_be_retained_and_replayed_and_is_named(tmp_path: Path) -> None:
    part = "data.init_args.replay.init_args.parts.pretraining.init_args.world"
    retained = "forgetting.retain.old_people.world"
    args = [REPLAYED, "--world.init_args.seed=1", f"--{part}={PEOPLE}", f"--{retained}={PEOPLE}"]
    with pytest.warns(
        UserWarning, match=f"more than one world in this run: {part}: seed = 0 against 1 in world; {retained}"
    ):
        found = worlds(quickstart(tmp_path, *args))
    assert {name for name, world in found.items() if world == Biographies()} == {"pretraining", "old_people"}


def test_without_the_key_what_is_asked_is_what_is_trained_on(tmp_path: Path) -> None:
    trained = [f"--data.init_args.{name}.init_args.world={PEOPLE}" for name in ("rows", "validation")]
    seeds = [f"--data.init_args.{name}.init_args.world.init_args.seed=2" for name in ("rows", "validation")]
    found = worlds(quickstart(tmp_path, "--world=null", *trained, *seeds))
    assert set(found.values()) == {Biographies(seed=2)}


def test_no_world_at_all_and_a_seed_without_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^world = None: expected a world of lit_consistency\.data\.worlds, as `--world "
    ):
        quickstart(tmp_path, "--world=null")
    with pytest.raises(SystemExit):
        quickstart(tmp_path, "--data.init_args.rows.init_args.world.init_args.seed=1")
    message = capsys.readouterr().err
    assert "data.init_args.rows.init_args.world: no class_path of a world is given" in message
    assert "--world.init_args" in message
