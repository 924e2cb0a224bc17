from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lit_consistency.cli.parser import ShortErrors
from lit_consistency.cli.study import main, options_of, parse, parser
from lit_consistency.study.options import Claim, Pick, Stage

STUDIES = sorted(Path("configs/studies").rglob("*.yaml"))


@pytest.fixture(scope="module")
def command() -> ShortErrors:
    """The parser, which takes longer to make than to read a study with."""
    return parser()


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_is_read_into_its_dataclasses(file: Path, command: ShortErrors) -> None:
    study, execution = options_of(command.parse_args(["--config", str(file), "--execution.workers", "3"]))
    assert execution.workers == 3
    assert all(isinstance(stage, Stage) and isinstance(stage.pick, Pick) for stage in study.stages.values())
    assert all(isinstance(claim, Claim) for claim in study.claims.values())


def test_one_value_is_changed_on_the_command_line() -> None:
    given = ["--config", "configs/studies/quickstart.yaml", "--stages.finetune.seeds=2", "--replicates.seeds=[4,5]"]
    study, _ = options_of(parser().parse_args(given))
    assert study.stages["finetune"].seeds == 2
    assert study.replicates.seeds == [4, 5]
    assert study.stages["finetune"].axes["lr"]["by"] == "finetuner"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--stages.finetune.base=nowhere"], "stages.finetune.base = nowhere: expected an earlier stage"),
        (["--read.stage=nothing"], "read.stage = nothing: expected one of finetune"),
        (["--replicates.seeds=[1,1]"], "replicates.seeds = [1, 1]"),
        (["--execution.workers=0"], "workers = 0: expected at least 1"),
        (["--no_such=1"], "no_such"),
    ],
)
def test_a_mistake_ends_with_2_and_writes_nothing(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.cli.study.parse", lambda calls: [{} for _ in calls])
    monkeypatch.setattr("lit_consistency.study.values._check_changes", lambda *args: None)
    folders = [f"--output={tmp_path / 'study'}", f"--cells={tmp_path / 'cells'}"]
    with pytest.raises(SystemExit) as stop:
        main(["--config", "configs/studies/quickstart.yaml", *folders, *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_the_parser_of_fit_says_what_is_wrong_with_a_call() -> None:
    good = ["--config", "configs/quickstart.yaml"]
    with pytest.raises(ValueError, match=r"^1: .*fraction = 3.*"):
        parse(
            [
                ("fit", good),
                ("fit", [*good, "--config", "configs/optimizers/mofo.yaml", "--model.optimizer.init_args.fraction=3"]),
            ]
        )


def test_help_waits_for_no_torch() -> None:
    code = "import sys; from lit_consistency.__main__ import main; sys.argv[1:] = ['study', '--help']\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--dry_run" in said
    assert "stages" in said
