"""Loggers of the user's come on top, Lightning's callbacks find every number, and nobody has to read the output."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_consistency.__main__ import main
from tests.callbacks.test_forgetting import SETS
from tests.runs import ROOT, SCRATCH, VALIDATION, arguments, fit

CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"name": "", "version": "csv"}}
VALIDATED = [
    f"--data.init_args.validation={VALIDATION}",
    "--trainer.limit_val_batches=1",
    "--trainer.val_check_interval=4",
]


class Seen(Callback):
    """What Lightning's callbacks find at every validation."""

    numbers: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where EarlyStopping and ModelCheckpoint look."""
        Seen.numbers.append((trainer.global_step, {name: float(v) for name, v in trainer.callback_metrics.items()}))


def test_a_logger_is_added_to_the_two_of_every_run(tmp_path: Path) -> None:
    logger = {**CSV, "init_args": {**CSV["init_args"], "save_dir": str(tmp_path)}}  # type: ignore[dict-item]
    fit(tmp_path, f"--trainer.logger={json.dumps(logger)}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    with open(tmp_path / "csv" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    expected = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert len(expected) == 4
    assert [(int(row["step"]), float(row["train/loss"])) for row in rows] == expected


@pytest.mark.slow
def test_early_stopping_may_watch_forgetting_before_anything_is_measured_again(tmp_path: Path) -> None:
    """Also in a run that was resumed: its base was measured by an earlier part."""
    watch = [{"class_path": f"{__name__}.Seen"}]
    stop = {"monitor": "forget/old", "patience": 99}
    watch.append({"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop})  # type: ignore[dict-item]
    Seen.numbers = []
    options = [
        *SETS,
        *VALIDATED,
        f"--trainer.callbacks={json.dumps(watch)}",
        "--checkpoint.every_n_steps=4",
        "--forgetting.every_n_steps=4",
    ]
    fit(tmp_path, *options, "--trainer.max_epochs=9")
    longer = ["--trainer.max_epochs=9", "--trainer.max_steps=8", "--allow_changes=true", "--ckpt_path=auto"]
    with pytest.warns(UserWarning, match="made with another configuration"):
        fit(tmp_path, *options, *longer)
    numbers = dict(Seen.numbers)
    assert set(numbers) >= {2, 6}
    for key in ("learn/new", "retain/old", "forget/old", "forget/old.stderr", "kl_to_base", "distance/all"):
        assert key in numbers[2]
        assert key in numbers[6]
    assert numbers[2]["forget/old"] == 0.0, "as measured before the first step"
    assert numbers[6]["forget/old"] != 0.0, "as measured at step 4, by the earlier part"


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_a_training(tmp_path: Path) -> None:
    """As `... | head -1` leaves it: nobody reads what is printed, and messages go the same way."""
    command = [
        sys.executable,
        "-m",
        "lit_consistency",
        *arguments(tmp_path, *SCRATCH, "--trainer.enable_progress_bar=true"),
    ]
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=write, stderr=write, timeout=240, check=False)
    os.close(write)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "model" / "lit_model.pth").is_file()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--trainer.logger=lightning.pytorch.loggers.NeptuneLogger", ["trainer.logger", "Neptune"]),
        ("--trainer.devices=-1", ["trainer.devices = -1", "int > 0"]),
        ("--data.init_args.num_workers=100000", ["num_workers = 100000", "at most"]),
    ],
)
def test_impossible_options_are_refused(
    option: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, *SCRATCH, option))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()
