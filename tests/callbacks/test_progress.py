"""The bar on a terminal: of the run, not of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer

from lit_consistency.callbacks import RunProgress
from lit_consistency.callbacks.log_lines import LogLines
from lit_consistency.cli.fit import build
from tests.callbacks.test_forgetting import SETS
from tests.runs import SCRATCH, arguments


class Seen(RunProgress):
    """Notes where the bar stands."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As it begins."""
        super().on_train_start(trainer, pl_module)
        self.seen = [self.train_progress_bar.completed]

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:  # type: ignore[override]
        """After every micro-batch."""
        super().on_train_batch_end(trainer, *args)  # type: ignore[arg-type]
        self.seen.append(self.train_progress_bar.completed)


@pytest.mark.slow
def test_the_bar_counts_steps_over_epochs_accumulation_and_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.cli.fit.bar_or_lines", Seen)
    args = [a for a in arguments(tmp_path, *SCRATCH, *SETS) if "enable_progress_bar" not in a and "max_steps" not in a]
    args += ["--data.init_args.global_batch_size=48", "--data.init_args.micro_batch_size=24"]
    args += ["--checkpoint.every_n_steps=1", "--forgetting.every_n_steps=2", "--trainer.max_epochs=2"]
    cli = build(args)
    cli.execute()
    bar = next(c for c in cli.trainer.callbacks if isinstance(c, Seen))
    total = bar.train_progress_bar.total
    per_epoch = cli.datamodule.steps_per_epoch
    assert per_epoch > 1
    assert total == 2 * per_epoch
    assert bar.seen == [0, *(step for done in range(total) for step in (done, done + 1))]
    text = " ".join(capsys.readouterr().out.split())
    assert f"{total}/{total} took" in text
    assert "epoch 2" in text
    assert f"step 0/{total}, the base: new" in text
    assert f"step 2/{total}: learned new" in text
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{total - 1:08d}.ckpt"
    again = build([*args, f"--ckpt_path={checkpoint}"])
    again.execute()
    bar = next(c for c in again.trainer.callbacks if isinstance(c, Seen))
    assert bar.train_progress_bar.total == total
    assert bar.seen == [total - 1, total - 1, total]


def test_another_bar_replaces_it(tmp_path: Path) -> None:
    args = [a for a in arguments(tmp_path, *SCRATCH) if "enable_progress_bar" not in a]
    bar = '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]'
    kinds = {type(c) for c in build([*args, bar]).trainer.callbacks}
    assert not {RunProgress, LogLines} & kinds
