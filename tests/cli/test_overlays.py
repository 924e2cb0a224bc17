"""Configurations compose left to right: nothing of another class stays, named things merge by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ActionConfigFile, Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters

from lit_consistency.cli.fit import build
from lit_consistency.cli.overlays import OverlayParser
from lit_consistency.cli.parser import command_parser
from lit_consistency.cli.sequence import parser as sequence_parser
from lit_consistency.data import HubDataset, HubRows, JsonLines, PretrainData, RowFiles, SFTData, TextFiles
from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic, World, WorldRows, WorldText
from lit_consistency.methods import HFT, Full, LoRA, Pull
from lit_consistency.optimizers import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    FilteredMuon,
    Linear,
    MoFO,
    Muon,
    WarmupStableDecay,
)
from lit_consistency.tasks import TaskRows
from tests.runs import SCRATCH, arguments

REQUIRED = {"path": "a", "name": "a", "task": "a", "source": "WorldText", "rows": "WorldRows"}
"""Options without a default, as a file would give them."""
PRETRAIN = ["--data=PretrainData", "--data.init_args.source=WorldText"]
SFT = ["--data=SFTData", "--data.init_args.rows=WorldRows"]
KINDS: dict[str, tuple[list[type], list[str]]] = {
    "model.optimizer": ([AdamW, SGD, MoFO, Muon, FilteredMuon], PRETRAIN),
    "model.method": ([Full, HFT, LoRA, Pull], PRETRAIN),
    "model.schedule": ([Constant, Cosine, Linear, WarmupStableDecay], PRETRAIN),
    "data": ([PretrainData, SFTData], []),
    "data.init_args.source": ([TextFiles, JsonLines, HubDataset, WorldText], PRETRAIN),
    "data.init_args.rows": ([RowFiles, HubRows, WorldRows, TaskRows], SFT),
    "data.init_args.source.init_args.world": ([Biographies, MarkovChains, ModularArithmetic], PRETRAIN),
}


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parser of the real command line."""
    return build(arguments(tmp_path_factory.mktemp("runs"), *SCRATCH)).parser


def fit(parser: Any, *args: str) -> Namespace:
    """What ``fit`` is configured with."""
    return parser.parse_args(["fit", "--model.optimizer=lit_consistency.optimizers.SGD", *args])["fit"]


def defaults_of(kind: type) -> dict[str, Any]:
    """Every option with its default, also those that a class hands on to its parent as ``**kwargs``."""
    return {p.name: p.default for p in get_signature_parameters(kind, "__init__")}


def other_than_default(kind: type) -> dict[str, Any]:
    """A value for every option that can be changed without knowing what it means."""
    changed: dict[str, Any] = {}
    for name, default in defaults_of(kind).items():
        if default is inspect.Parameter.empty and name in REQUIRED:
            changed[name] = REQUIRED[name]
        elif isinstance(default, bool):
            changed[name] = not default
        elif isinstance(default, int | float):
            changed[name] = default + 1
        elif isinstance(default, tuple) and all(isinstance(entry, float) for entry in default):
            changed[name] = tuple(entry / 2 for entry in default)
    return changed


def required(kind: type) -> dict[str, Any]:
    """Values of the options that have no default."""
    return {name: value for name, value in other_than_default(kind).items() if name in REQUIRED}


def class_path(kind: type) -> str:
    """As a configuration names it, by its package."""
    for package in ("optimizers", "methods", "data.worlds", "data", "tasks"):
        module = __import__(f"lit_consistency.{package}", fromlist=[kind.__name__])
        if getattr(module, kind.__name__, None) is kind:
            return f"lit_consistency.{package}.{kind.__name__}"
    raise AssertionError(kind)


def options_of(value: Namespace) -> dict[str, Any]:
    """The options of a class."""
    return value.get("init_args", Namespace()).as_dict()


QUICK = ("data",)


def section(key: str, kind: type, options: dict[str, Any]) -> str:
    """A configuration that names one class at a key."""
    plain = {name: list(option) if isinstance(option, tuple) else option for name, option in options.items()}
    value: Any = {"class_path": class_path(kind), "init_args": plain}
    for name in reversed(key.split(".")):
        value = {name: value}
    return f"--config={yaml.safe_dump(value)}"


# all ordered pairs of classes of a key are half a minute; those of one key say that it works
@pytest.mark.parametrize("key", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_of_two_classes_the_second_is_what_it_is_alone(key: str, parser: Any) -> None:
    kinds, before = KINDS[key]
    alone = {kind: fit(parser, *before, section(key, kind, required(kind)))[key] for kind in kinds}
    for first, second in permutations(kinds, 2):
        files = section(key, first, other_than_default(first)), section(key, second, required(second))
        assert fit(parser, *before, *files)[key] == alone[second], (first, second)
    for first, second in pairwise([*kinds, kinds[0]]):
        options = [f"--{key}.init_args.{name}={value}" for name, value in required(second).items()]
        first_file = section(key, first, other_than_default(first))
        assert fit(parser, *before, first_file, f"--{key}={class_path(second)}", *options)[key] == alone[second]


@pytest.mark.parametrize("key", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_the_same_class_keeps_its_values_and_later_options_hold(key: str, parser: Any) -> None:
    kinds, before = KINDS[key]
    for kind in kinds:
        changed = other_than_default(kind)
        once = options_of(fit(parser, *before, section(key, kind, changed))[key])
        assert all(once[name] == value for name, value in changed.items() if name not in REQUIRED)
        number = next((name for name, value in changed.items() if type(value) is int), None)
        later = [f"--{key}.init_args.{number}=7"] if number else []
        # the class by the path of its own module is the same class
        same = f"--{key}={kind.__module__}.{kind.__name__}"
        again = options_of(fit(parser, *before, section(key, kind, changed), same, *later)[key])
        assert again == {**once, **({number: 7} if number else {})}, kind


def test_an_environment_variable_leaves_nothing_to_another_class(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimizer(*args: str) -> Any:
        return parser.parse_args(["fit", *PRETRAIN, *args])["fit"]["model"]["optimizer"]

    alone = optimizer("--model.optimizer=lit_consistency.optimizers.AdamW")
    value = "{class_path: lit_consistency.optimizers.MoFO, init_args: {lr: 0.5, fraction: 0.3}}"
    monkeypatch.setenv("LIT_CONSISTENCY_FIT__MODEL__OPTIMIZER", value)
    assert (optimizer()["init_args"]["lr"], optimizer()["init_args"]["fraction"]) == (0.5, 0.3)
    assert optimizer("--model.optimizer=lit_consistency.optimizers.AdamW") == alone


def test_parsers_of_others_are_left_as_they_are() -> None:
    from jsonargparse import ArgumentParser

    theirs = ArgumentParser(exit_on_error=False)
    theirs.add_subclass_arguments(World, "world")
    seeded = "--world={class_path: lit_consistency.data.worlds.Biographies, init_args: {seed: 3}}"
    kept = theirs.parse_args([seeded, "--world=lit_consistency.data.worlds.MarkovChains"])
    assert kept["world"]["init_args"]["seed"] == 3


# -------------------- named things


@dataclass
class Thing:
    """Something that is named.

    Args:
        task: what it is.
        limit: how much of it.
        metric: by what.
        world: of which world.
    """

    task: str | dict[str, Any] | None = None
    limit: int = 0
    metric: str | None = "exact"
    world: World | None = None


class Watch:
    """Owner of named things, beside a dictionary of plain values and a list."""

    def __init__(
        self,
        retain: dict[str, Thing] | None = None,
        plain: dict[str, int] | None = None,
        several: list[Thing] | None = None,
    ) -> None:
        self.retain, self.plain, self.several = retain, plain, several


@pytest.fixture
def watch() -> OverlayParser:
    """A parser of our own with named things."""
    parser = command_parser("watch", "")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Watch, "watch")
    return parser


def things(parser: OverlayParser, *args: str) -> dict[str, dict[str, Any]]:
    """Name -> options of the things, without those that have their defaults."""
    found = parser.parse_args(list(args))["watch"]["retain"]
    defaults = vars(Thing())
    given = {name: {**thing.as_dict()} for name, thing in found.items()}
    return {name: {k: v for k, v in thing.items() if defaults[k] != v} for name, thing in given.items()}


def test_a_list_names_things_after_the_last_part(watch: OverlayParser) -> None:
    expected = {
        "old_people": {"task": "biographies/old_people"},
        "blimp": {"task": "blimp"},
        "my": {"task": "a/my.yaml"},
    }
    assert things(watch, "--watch.retain=[biographies/old_people, blimp, a/my.yaml]") == expected
    assert things(watch, "--config=watch: {retain: [biographies/old_people, blimp, a/my.yaml]}") == expected


def test_a_string_is_the_task_and_a_mapping_its_options(watch: OverlayParser) -> None:
    text = "{blimp: blimp, old: {task: biographies/old_people, limit: 100}, inline: {task: {kind: text}}}"
    expected = {
        "blimp": {"task": "blimp"},
        "old": {"task": "biographies/old_people", "limit": 100},
        "inline": {"task": {"kind": "text"}},
    }
    assert things(watch, f"--watch.retain={text}") == expected


def test_a_second_file_adds_things_and_changes_what_it_names(watch: OverlayParser) -> None:
    first = "--config=watch: {retain: {a: {task: x, limit: 5}, b: y}}"
    assert things(watch, first, "--config=watch: {retain: [c]}") == {
        "a": {"task": "x", "limit": 5},
        "b": {"task": "y"},
        "c": {"task": "c"},
    }
    assert things(watch, first, "--config=watch: {retain: {a: {metric: loss}}}")["a"] == {
        "task": "x",
        "limit": 5,
        "metric": "loss",
    }


def test_an_option_reaches_into_one_of_them(watch: OverlayParser) -> None:
    first = "--watch.retain={a: {task: x, limit: 5}, b: y}"
    world = "--watch.retain.b.world=lit_consistency.data.worlds.MarkovChains"
    found = things(watch, first, "--watch.retain.a.limit=123", "--watch.retain.a.metric=null", world)
    assert found["a"] == {"task": "x", "limit": 123, "metric": None}
    assert found["b"]["world"]["class_path"] == "lit_consistency.data.worlds.MarkovChains"
    # nothing of b's world comes to a thing that is named afterwards
    nested = ["--watch.retain.b.world.init_args.seed=3", "--watch.retain.c.limit=1"]
    found = things(watch, first, world, *nested)
    assert found["b"]["world"]["init_args"]["seed"] == 3
    assert found["c"] == {"limit": 1}
    assert things(watch, "--watch.retain.c.limit=1") == {"c": {"limit": 1}}, "nor to another call"


def test_null_removes_one_of_them(watch: OverlayParser) -> None:
    first = "--config=watch: {retain: [a, b]}"
    assert things(watch, first, "--watch.retain.a=null") == {"b": {"task": "b"}}
    assert things(watch, first, "--config=watch: {retain: {a: null, c: x}}") == {"b": {"task": "b"}, "c": {"task": "x"}}
    assert things(watch, first, "--watch.retain=null", "--watch.retain=[c]") == {"c": {"task": "c"}}
    for nothing in ("{}", "[]"):
        assert things(watch, first, f"--watch.retain={nothing}") == {}, "not null, which may mean a default"
        assert things(watch, first, f"--config=watch: {{retain: {nothing}}}", "--watch.retain=[c]") == {
            "c": {"task": "c"}
        }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--watch.retain=[a/x, b/x]"],
            "watch.retain: x stands twice in a list: expected a mapping of different names",
        ),
        (["--watch.retain=[a]", "--watch.retain.b=null"], "watch.retain: b = null: expected one of a"),
        (["--watch.retain=blimp"], "watch.retain: blimp: expected a list, as [blimp], or a mapping of names"),
        (["--watch.retain=[{limit: 3}]"], "watch.retain: {'limit': 3} has no name: expected a mapping of names"),
        (["--watch.retain={a: 123}"], "watch.retain.a: 123: expected a name or a mapping"),
        (["--watch.retain.a.limit=many"], "watch.retain.a.limit: many: expected a whole number"),
        (["--watch.retain={a: {limits: 3}}"], "watch.retain.a: Key 'limits' is not expected"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(
    watch: OverlayParser, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        watch.parse_args(args)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {message}")


def test_lists_and_plain_dictionaries_are_one_value(watch: OverlayParser) -> None:
    first = "--config=watch: {plain: {a: 1, b: 2}, several: [{task: x, limit: 3}, {task: y}]}"
    found = watch.parse_args([first, "--config=watch: {plain: {c: 3}, several: [{task: z}, {task: y, limit: 4}]}"])
    assert found["watch"]["plain"] == {"c": 3}
    assert [(thing["task"], thing["limit"]) for thing in found["watch"]["several"]] == [("z", 0), ("y", 4)]


def test_what_is_merged_survives_a_round_trip(watch: OverlayParser, tmp_path: Path) -> None:
    args = ["--watch.retain=[a]", "--watch.retain={b: {task: {kind: text}, limit: 2}}", "--watch.retain.a.limit=4"]
    once = watch.parse_args(args)
    file = tmp_path / "config.yaml"
    file.write_text(watch.dump(once, skip_none=False))
    again = watch.parse_args([f"--config={file}"])
    assert again["watch"] == once["watch"]
    retained = watch.instantiate_classes(again)["watch"].retain
    assert retained == {"a": Thing("a", limit=4), "b": Thing({"kind": "text"}, limit=2)}


def test_parts_of_a_replay_merge_by_name(parser: Any) -> None:
    replay = "data.init_args.replay.init_args.parts"
    part = "{class_path: lit_consistency.data.TextFiles, init_args: {path: x, validation_share: 0.1}}"
    rows = "{class_path: lit_consistency.data.RowFiles, init_args: {path: y, part: train}}"
    args = [
        "--data=SFTData",
        "--data.init_args.rows=TaskRows",
        "--data.init_args.rows.init_args.task=a",
        "--data.init_args.replay=lit_consistency.data.Replay",
        f"--{replay}={{books: {part}}}",
        f"--config=data: {{init_args: {{replay: {{init_args: {{parts: {{chats: {rows}}}}}}}}}}}",
        f"--{replay}.chats.init_args.path=z",
    ]
    parts = fit(parser, *args)[replay]
    assert parts["books"]["init_args"]["validation_share"] == 0.1
    assert (parts["chats"]["init_args"]["path"], parts["chats"]["init_args"]["part"]) == ("z", "train")
    assert list(fit(parser, *args, f"--{replay}.books=null")[replay]) == ["chats"]
    other = fit(parser, *args, f"--{replay}.books=lit_consistency.data.JsonLines", f"--{replay}.books.init_args.path=w")
    assert "separator" not in other[replay]["books"]["init_args"], "nothing of TextFiles"
    assert other[replay]["books"]["init_args"]["path"] == "w"


def test_worlds_and_stages_of_a_sequence(tmp_path: Path) -> None:
    plan = {
        "base": "b",
        "output": "o",
        "stages": [{"task": "x", "fit": {"trainer.max_steps": 3}}, {"task": "y"}],
        "worlds": {"w": {"world": {"class_path": "A"}, "probes": "p", "task": "t"}},
    }
    more = {"stages": [{"task": "y"}, {"task": "x"}], "worlds": {"v": {"world": {"class_path": "B"}, "probes": "q"}}}
    args = [f"--config={yaml.safe_dump(plan)}", f"--config={yaml.safe_dump(more)}", "--worlds.w.probes=r"]
    found = sequence_parser().parse_args(args)
    assert [stage["fit"] for stage in found["stages"]] == [{}, {}]
    assert {name: world["probes"] for name, world in found["worlds"].items()} == {"w": "r", "v": "q"}
    assert found["worlds"]["w"]["task"] == "t"
