"""The end of a run: nothing of it is lost, whatever fails or comes in between."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_consistency.callbacks import run_model
from lit_consistency.checkpointing.io import AtomicCheckpointIO
from lit_consistency.checkpointing.manifest import CheckpointError
from lit_consistency.cli.fit import build
from lit_consistency.records.lease import WRITER, Lease
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import SCRATCH, VALIDATION, arguments, equal, fit, weights

AUTO = "--ckpt_path=auto"
VALIDATED = [f"--data.init_args.validation={VALIDATION}", "--trainer.limit_val_batches=1.0"]


class Stop(Callback):
    """A signal during a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def lines(root: Path) -> list[dict[str, Any]]:
    """Logged numbers without those of the clock."""
    found = RunFolder(root / "run").read_metrics()
    return [line for line in found if not any(key.startswith(("speed/", "evaluation/")) for key in line)]


def same(tmp_path: Path, one: str, two: str) -> None:
    """Weights, logged numbers, and the numbers of record and provenance."""
    folders = [RunFolder(tmp_path / name / "run") for name in (one, two)]
    assert equal(*(weights(folder.model) for folder in folders))
    assert lines(tmp_path / one) == lines(tmp_path / two)
    records = [folder.read_record() for folder in folders]
    for key in ("status", "steps", "losses", "final_metrics"):
        assert records[0][key] == records[1][key], key
    provenances = [read_provenance(folder.model) for folder in folders]
    assert [p.final_metrics for p in provenances if p][0] == [p.final_metrics for p in provenances if p][1]


@pytest.mark.slow
def test_the_validation_of_an_epoch_that_a_signal_ends_is_made_up_for(tmp_path: Path) -> None:
    """Epochs have 9 steps; the signal comes in the ninth, and nothing is to be validated on the way out."""
    steps = ["--trainer.max_steps=12", "--trainer.max_epochs=3", *VALIDATED]
    fit(tmp_path / "straight", *steps)
    cli = build(arguments(tmp_path / "broken", *SCRATCH, *steps))
    cli.trainer.callbacks.insert(0, Stop(9))
    cli.execute()
    assert not [line for line in lines(tmp_path / "broken") if "val/loss" in line]
    fit(tmp_path / "broken", *steps, AUTO)
    assert [line["epoch"] for line in lines(tmp_path / "broken") if "val/loss" in line] == [0.0, 1.0]
    same(tmp_path, "straight", "broken")


def test_the_model_of_the_last_step_is_validated_once_wherever_it_lies(tmp_path: Path) -> None:
    """Epochs have 9 steps."""
    fit(tmp_path / "within", "--trainer.max_steps=6", *VALIDATED)
    (loss,) = [line["val/loss"] for line in lines(tmp_path / "within") if "val/loss" in line]
    options = [
        *arguments(tmp_path / "again", *SCRATCH, *VALIDATED),
        f"--model.checkpoint_dir={tmp_path}/within/run/model",
    ]
    cli = build(["validate", *[option for option in options[1:] if option not in SCRATCH]])
    cli.execute()
    assert loss == pytest.approx(float(cli.trainer.callback_metrics["val/loss"]), rel=1e-6)
    assert RunFolder(tmp_path / "within" / "run").read_record()["losses"]["val/loss"] == loss
    fit(tmp_path / "at_the_end", "--trainer.max_steps=9", *VALIDATED)
    assert [line["epoch"] for line in lines(tmp_path / "at_the_end") if "val/loss" in line] == [0.0]
    fit(tmp_path / "asked_not_to", "--trainer.max_steps=6", *VALIDATED, "--trainer.limit_val_batches=0")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("within", "asked_not_to")))
    for name in ("asked_not_to", "nothing"):
        if name == "nothing":
            fit(tmp_path / name, "--trainer.max_steps=6", "--trainer.limit_val_batches=1.0")
        assert not [line for line in lines(tmp_path / name) if "val/loss" in line]


@pytest.mark.parametrize(
    ("limit", "n"),
    [
        (["--trainer.max_steps=9"], 9),
        (["--trainer.max_steps=6"], 6),
        pytest.param(["--trainer.max_steps=-1", "--trainer.max_epochs=1"], 9, marks=pytest.mark.slow),
    ],
)
def test_what_fails_at_the_end_costs_no_step(
    limit: list[str], n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the model is written; validation and measurement of the end are made again."""
    fit(tmp_path / "straight", *limit, *VALIDATED)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(run_model, "save_model", full)
        holds = rf"all {n} steps are done and .*step-0000000{n}\.ckpt holds the end; .*--run\.name run --ckpt_path auto"
        with pytest.warns(UserWarning, match=holds), pytest.raises(OSError, match="No space left"):
            fit(tmp_path / "broken", *limit, *VALIDATED)
    assert RunFolder(tmp_path / "broken" / "run").read_record()["status"] == "failed"
    cli = fit(tmp_path / "broken", *limit, *VALIDATED, AUTO)
    assert cli.trainer.global_step == n
    assert RunFolder(tmp_path / "broken" / "run").read_record()["resumed_from"]
    same(tmp_path, "straight", "broken")


def test_a_place_that_cannot_hold_the_end_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run\.final_dir: .*file/model: cannot be written \(Not a directory"):
        fit(tmp_path / "a", f"--run.final_dir={tmp_path}/file/model")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("lit_consistency.records.atomic.shutil.disk_usage", lambda _: usage)
    # 15,600 parameters of four bytes, and with AdamW's state three times as much
    with pytest.raises(ValueError, match=r"run\.final_dir: .*/model: the end of the run needs 0\.00 GB on .*are free"):
        fit(tmp_path / "a")
    usage.free = 62_400
    with pytest.raises(ValueError, match=r"checkpoint\.at_end: .*needs 0\.00 GB .* or --checkpoint\.at_end false"):
        fit(tmp_path / "a")
    assert not (tmp_path / "a").exists() or not any((tmp_path / "a").iterdir())
    fit(tmp_path / "a", "--checkpoint.at_end=false")


def test_a_checkpoint_of_the_end_that_fails_does_not_cost_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(io: AtomicCheckpointIO, checkpoint: Any, path: Any, **_: Any) -> None:
        raise CheckpointError(f"could not save the checkpoint {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
        with pytest.warns(UserWarning, match=r"step-00000004\.ckpt: .*No space left.*; going on to the final model"):
            fit(tmp_path / "model_fits")
    assert RunFolder(tmp_path / "model_fits" / "run").has_model


@pytest.mark.slow
def test_a_model_that_was_written_just_before_a_kill_is_the_runs_own(tmp_path: Path) -> None:
    final = f"--run.final_dir={tmp_path}/model"
    fit(tmp_path, final)
    folder = RunFolder(tmp_path / "run")
    folder.write_record({**folder.read_record(), "status": "running"})
    fit(tmp_path, final, AUTO)
    assert folder.is_finished
    with pytest.raises(ValueError, match="final_dir = .*: exists"):
        fit(tmp_path / "other", final, "--run.name=other")


def test_a_second_run_is_kept_out_and_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.records.lease.ENDING", 0.1)
    lease = Lease.take(tmp_path / "run", file=WRITER)
    assert lease is not None
    for options in ([], [AUTO]):
        with pytest.raises(ValueError, match=rf"run: process {os.getpid()} on host \S+ writes there; expected one run"):
            fit(tmp_path, *options)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lease.lock"] == [WRITER]
    lease.release()
    fit(tmp_path)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_damaged_records_are_named_and_set_aside(tmp_path: Path) -> None:
    each = "--checkpoint.every_n_steps=1"
    fit(tmp_path / "straight", each)
    fit(tmp_path / "broken", each)
    run = tmp_path / "broken" / "run"
    (run / "run.json").write_text('{"status": "finis')
    (run / "config.yaml").write_text("a: [")
    content = (run / "metrics.jsonl").read_bytes().split(b"\n")
    content[0] = b"\0" * len(content[0])
    (run / "metrics.jsonl").write_bytes(b"\n".join(content))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path / "broken", each, AUTO)
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        assert any(f"{name}: " in str(w.message) and "set aside as" in str(w.message) for w in said), name
        assert len(list(run.glob(f"{name}.damaged-*"))) == 1
    assert RunFolder(run).is_finished
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("straight", "broken")))


def test_what_a_run_has_abandoned_is_removed_by_the_next(tmp_path: Path) -> None:
    keep = ["--checkpoint.every_n_steps=1", "--checkpoint.keep=4"]
    fit(tmp_path, *keep)
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run" / ".model.0123.unfinished").mkdir()
    for step, abandoned in ((2, ["3", "4"]), (3, ["4"])):
        fit(tmp_path, *keep, f"--ckpt_path={folder.checkpoints}/step-{step}")
        (aside,) = folder.checkpoints.glob("abandoned-*")
        assert sorted(path.stem[-1] for path in aside.glob("*.ckpt")) == abandoned
        aside.rename(aside.with_name("abandoned-20260101-000000"))  # two of one second
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_run_without_a_token_to_learn_is_refused_and_a_step_without_one_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_consistency.data.tokens.token_rows import StreamRows

    made = StreamRows.__init__

    def without(first: int) -> Any:
        def init(self: StreamRows, *arguments: Any) -> None:
            made(self, *arguments)
            self.supervised[first:] = 0

        return init

    monkeypatch.setattr(StreamRows, "__init__", without(0))
    with pytest.raises(ValueError, match="data, train: none of the tokens of 68 rows is learned"):
        fit(tmp_path)
    monkeypatch.setattr(StreamRows, "__init__", without(1))
    with pytest.warns(UserWarning, match="a step without a token to learn"):
        fit(tmp_path)
    # 68 rows, 8 a step: one of 9 steps has the row that is learned
    assert RunFolder(tmp_path / "run").read_record()["empty_steps"] in (3, 4)
