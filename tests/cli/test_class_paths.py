"""A class path is a class of the expected kind, or the call ends before anything of it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_consistency.__main__ import main
from lit_consistency.cli.fit import build
from lit_consistency.data import Source
from lit_consistency.data.worlds import World
from lit_consistency.study.sequence.tasks import build as build_of_sequence
from tests.runs import SCRATCH, arguments

TOUCH = {"class_path": "os.system", "init_args": {"command": "touch canary"}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}
LAMBDA = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.abort"}}
DDP = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": "os.abort"}}
WRONG: dict[str, dict[str, Any]] = {
    "a function for an optimizer": {"model": {"optimizer": TOUCH}},
    "a class of another kind for an optimizer": {"model": {"optimizer": POPEN}},
    "a class whose objects can be called": {"model": {"optimizer": {"class_path": "functools.partial"}}},
    "a function for a callback": {"trainer": {"callbacks": [TOUCH]}},
    "a function that gives a callback": {"trainer": {"callbacks": [{"class_path": f"{__name__}.made"}]}},
    "a function as a value": {"trainer": {"callbacks": [LAMBDA]}},
    "a function as an optional value": {"trainer": {"strategy": DDP}},
    "a function for a logger": {"trainer": {"logger": [TOUCH]}},
    "a function for a method": {"model": {"method": TOUCH}},
    "a function for the data": {"data": TOUCH},
    "a function for the world": {"world": TOUCH},
    "a class in an option without a type": {"model": {"overrides": {"n_layer": POPEN}}},
    "a function in an inline task": {"forgetting": {"retain": {"x": {"task": {"data": {"world": TOUCH}}}}}},
}


class Mine(torch.optim.SGD):
    """A class that stands in no package."""


def made() -> Callback:
    """A factory."""
    raise AssertionError("called")


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parser of the real command line."""
    return build(arguments(tmp_path_factory.mktemp("runs"), *SCRATCH)).parser


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_class_of_the_kind_is_refused_when_it_is_read(
    case: str, parser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(WRONG[case]))
    for command in ("fit", "validate") if "optimizer" in case else ("fit",):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([command, *arguments(tmp_path, *SCRATCH, f"--config={file}")[1:]])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert "expected" in message
        assert any(name in message for name in ("os.system", "os.abort", "Popen", "partial", "made"))


@pytest.mark.parametrize("option", ["trainer.strategy", "trainer.accelerator"])
def test_a_function_named_on_the_command_line_is_never_called(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``os.abort`` would end this process; where a name is allowed too, as ``ddp``, it is looked up when built."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, *SCRATCH, f"--{option}=os.abort"))
    assert stop.value.code == 2
    assert "class_path = os.abort: expected a subclass of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_other_commands_read_no_function_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--model", str(tmp_path), "--tasks", "blimp", f"--world={{a: {TOUCH}}}"])
    assert stop.value.code == 2
    assert "class_path = os.system: expected a class" in capsys.readouterr().err
    for kind in (Source, World):
        with pytest.raises(ValueError, match=f"os.system does not correspond to a subclass of {kind.__name__}"):
            build_of_sequence("replay.source", kind, TOUCH)


def test_a_class_of_the_kind_may_stand_anywhere(parser: Any, tmp_path: Path) -> None:
    mine = [f"--model.optimizer={__name__}.Mine", "--model.optimizer.init_args.lr=1"]
    section = parser.parse_args(arguments(tmp_path, *SCRATCH, *mine))["fit"]
    assert section["model"]["optimizer"]["class_path"] == f"{__name__}.Mine"
