"""The command line: what it composes, and what it says when the call is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_consistency.__main__ import main
from lit_consistency.cli.commands import FILES
from lit_consistency.cli.fit import build
from lit_consistency.optimizers import MoFO
from tests.runs import ROOT, SCRATCH, WORLD, arguments, finished, weights

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """The message of a call that must end with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


THREE_REPLICAS = ["--trainer.strategy.init_args.replicas=3"]
WRONG = {
    "unknown key": (["--trainer.max_stepz=3"], ["trainer.max_stepz", "did you mean trainer.max_steps"]),
    "wrong type": (["--data.init_args.block_size=many"], ["block_size", "many", "expected a whole number"]),
    "unknown optimizer": (["--model.optimizer=lit_consistency.optimizers.Moun"], ["Moun", "AdamW", "Muon"]),
    "rate below zero": (["--model.optimizer.init_args.lr=-1"], ["lr = -1", "lr >= 0"]),
    "unknown model": (["--model.name=pythia-14"], ["pythia-14", "pythia-14m"]),
    "unknown override": (["--model.overrides.n_layers=2"], ["n_layers", "n_layer"]),
    "block longer than the model": (["--data.init_args.block_size=64"], ["block_size = 64", "at most 32"]),
    "batch does not divide": (
        ["--data.init_args.micro_batch_size=3"],
        ["global_batch_size = 8", "micro_batch_size = 3"],
    ),
    "folder that is not there": (
        ["--model.checkpoint_dir=nowhere", "--model.name=null"],
        ["nowhere", "no such folder"],
    ),
    "two origins": (["--model.checkpoint_dir={base}"], ["name", "checkpoint_dir"]),
    "an address of data": (
        ["--data.init_args.source=lit_consistency.data.TextFiles", "--data.init_args.source.init_args.path=s3://b/x"],
        ["path = s3://b/x: an address; expected a path on this machine"],
    ),
    "an address of the runs": (["--run.root=gs://bucket/runs"], ["root = gs:/", "an address", "this machine"]),
    "path as a run name": (["--run.name=../escaped"], ["../escaped", "letters, digits"]),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], ["accumulate_grad_batches = 2", "global_batch_size"]),
    "more than every block": (["--model.activation_checkpointing=2"], ["activation_checkpointing = 2", "n_layer = 1"]),
    "no accelerator": (["--trainer.accelerator=gpu"], ["gpu"]),
    "a file as a folder": (["--run.root=/dev/null/x"], ["/dev/null/x"]),
    "warm-up longer than the run": (
        ["--model.schedule=lit_consistency.optimizers.Cosine", "--model.schedule.init_args.warmup=50"],
        ["warmup = 50"],
    ),
    "replicas that do not divide": (
        ["--trainer.strategy=lit_consistency.distributed.FSDP2Strategy", *THREE_REPLICAS, "--trainer.devices=4"],
        ["trainer.strategy.init_args.replicas = 3", "divisor of 4"],
    ),
    "flattened parameters by name": (["--trainer.strategy=deepspeed"], ["trainer.strategy = deepspeed", "fsdp2"]),
    "unknown filter": (
        ["--model.optimizer=lit_consistency.optimizers.MoFO", "--model.optimizer.init_args.filter=foo"],
        ["model.optimizer.init_args.filter", "'foo': expected one of momentum, gradient, adam_update"],
    ),
    "unknown task": (
        [
            "--data=lit_consistency.data.SFTData",
            "--data.init_args.rows=lit_consistency.data.worlds.WorldRows",
            f"--data.init_args.rows.init_args.world={WORLD}",
            "--data.init_args.rows.init_args.task=nothing",
        ],
        ["nothing", "new_chain"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_names_key_value_and_what_is_allowed(
    case: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, expected = WRONG[case]
    if case == "two origins":
        extra = [a.format(base=finished(tmp_path / "base") / "model") for a in extra]
        capsys.readouterr()
    message = refused(capsys, arguments(run_dir, *SCRATCH, *extra))
    assert "Traceback" not in message
    for part in expected:
        assert part in message, message
    assert not run_dir.exists(), "nothing is written for a wrong call"


def test_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refused(capsys, ["fit", "--config", "nowhere.yaml"])


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"expected one of {', '.join(FILES)}; see --help" in refused(capsys, ["train"])
    assert {"fit", "init", "evaluate", "check-optimizer", "import"} <= set(FILES)


def test_a_run_never_writes_into_the_folder_of_another(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    message = refused(capsys, arguments(run_dir, *SCRATCH))
    assert "run.name = 'run'" in message
    assert "--ckpt_path auto" in message
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_help_costs_no_import_of_lightning() -> None:
    code = "import sys; from lit_consistency.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "quickstart.yaml" in result.stdout


def test_overlays_are_composed_left_to_right(run_dir: Path) -> None:
    config = f"--config={ROOT}/configs/optimizers/mofo.yaml"
    cli = build(arguments(run_dir, *SCRATCH, config, "--model.optimizer.init_args.fraction=0.5"))
    cli.model.trainer = cli.trainer
    options = cli.config["fit"]["model"]["optimizer"]
    assert options["class_path"] == f"lit_consistency.optimizers.{MoFO.__name__}"
    assert options["init_args"]["fraction"] == 0.5


def test_environment_variables_are_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_CONSISTENCY_FIT__TRAINER__MAX_STEPS", "7")
    without = [a for a in arguments(run_dir, *SCRATCH) if "max_steps" not in a]
    assert build(without).config["fit"]["trainer"]["max_steps"] == 7


def test_print_config_is_a_config(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments(run_dir, *SCRATCH), "--print_config"])
    text = capsys.readouterr().out
    file = tmp_path / "complete.yaml"
    file.write_text(text)
    assert yaml.safe_load(build(["fit", f"--config={file}"]).dump()) == yaml.safe_load(text)


def test_the_saved_config_repeats_the_run(run_dir: Path, tmp_path: Path) -> None:
    finished(run_dir)
    again = build(["fit", f"--config={run_dir}/run/config.yaml", f"--run.root={tmp_path}/again"])
    again.execute()
    first, second = weights(run_dir / "run" / "model"), weights(tmp_path / "again" / "run" / "model")
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("command", ["validate", pytest.param("test", marks=pytest.mark.slow), "predict"])
def test_other_commands_run_on_a_saved_model(command: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = finished(run_dir)
    held_out = [
        "--data.init_args.validation=lit_consistency.data.worlds.WorldText",
        "--data.init_args.validation.init_args.part=held_out",
        f"--data.init_args.validation.init_args.world={WORLD}",
        f"--model.checkpoint_dir={base}/model",
    ]
    args = [a for a in arguments(run_dir, *held_out, "--run.name=other") if "limit_val" not in a]
    main([command, *args[1:]])
    if command == "predict":
        lines = (run_dir / "other" / "predictions.jsonl").read_text().splitlines()
        assert len(lines) > 100
        assert {"nll", "n_tokens", "targets", "greedy"} <= set(yaml.safe_load(lines[0]))
    else:
        assert f"{'val' if command == 'validate' else 'test'}/loss" in capsys.readouterr().out
        assert not (run_dir / "other").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#")
    assert "python -m lit_consistency" in text
    assert f"configs/{path.relative_to(ROOT / 'configs')}" in text, "the command names the file itself"
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.slow
def test_a_narrow_locale_and_a_path_with_spaces_are_fine(tmp_path: Path) -> None:
    root = tmp_path / "a földer with späces"
    environment = {**os.environ, "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_consistency", *arguments(root, *SCRATCH)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert (root / "run" / "model" / "lit_model.pth").is_file()


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            "evaluate",
            ("--strict", "--compare", "few-shot examples", "evaluate --model checkpoints/ORG/MODEL --tasks piqa"),
        ),
        ("sequence", ("--replay.earlier_tasks", "--fit.config", "--evaluation.general", "--seeds", "never trained on")),
    ],
)
def test_help_explains_every_option_and_costs_no_import_of_torch(command: str, parts: tuple[str, ...]) -> None:
    code = (
        "import sys; from lit_consistency.__main__ import main\n"
        f"try: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(part in result.stdout for part in parts)
