"""Class paths that were right once: the error gives what stands there now."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from lit_consistency.__main__ import main
from lit_consistency.cli.moved import MOVED, TASK
from tests.runs import SCRATCH, arguments


def stands_at(path: str) -> bool:
    module, _, name = path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError:
        return False


def test_no_old_path_leads_anywhere_and_every_new_one_does() -> None:
    assert not [path for path in MOVED if stands_at(path)]
    assert not [path for path in MOVED.values() if path != TASK and not stands_at(path)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--data.init_args.source=lit_consistency.data.sources.TextFiles",
            "data.init_args.source: class_path = lit_consistency.data.sources.TextFiles: expected "
            "lit_consistency.data.TextFiles",
        ),
        (
            "--trainer.strategy=lit_consistency.strategy.FSDP2Strategy",
            "trainer.strategy: class_path = lit_consistency.strategy.FSDP2Strategy: expected "
            "lit_consistency.distributed.FSDP2Strategy",
        ),
        (
            "--config=forgetting: {retain: {sets: {a: {class_path: lit_consistency.data.ChoiceSet}}}}",
            f"forgetting.retain: class_path = lit_consistency.data.ChoiceSet: expected {TASK}",
        ),
        (
            "--forgetting.retain={a: {class_path: lit_consistency.data.worlds.WorldProbes, init_args: {probes: old}}}",
            f"forgetting.retain: class_path = lit_consistency.data.worlds.WorldProbes: expected {TASK}",
        ),
    ],
)
def test_the_error_gives_the_new_path(
    option: str, message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(run_dir, *SCRATCH, option))
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {message}"
    assert not run_dir.exists()
