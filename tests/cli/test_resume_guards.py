"""What a run may be continued from, and with what: nothing changes silently, nothing on disk is lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_consistency.checkpointing.io import checkpoints
from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.data.worlds import MarkovChains
from tests.runs import SCRATCH, arguments, equal, finished, fit, weights

EACH = "--checkpoint.every_n_steps=1"
AUTO = "--ckpt_path=auto"


def names(root: Path, folder: str = ".") -> list[str]:
    return [path.name for path in checkpoints(root / "run" / "checkpoints" / folder)]


def record(root: Path) -> dict[str, Any]:
    return json.loads((root / "run" / "run.json").read_text())


def rates(cli: ConsistencyCLI) -> set[float]:
    return {group["lr"] for group in cli.trainer.optimizers[0].param_groups}


def test_a_difference_is_refused_with_its_keys(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    with pytest.raises(ValueError, match=r"model\.optimizer\.init_args\.lr: 0\.0003 in the checkpoint, 0\.5 now"):
        fit(tmp_path, AUTO, "--model.optimizer.init_args.lr=0.5")
    with pytest.raises(ValueError, match=r"optimizer\.class_path"):
        fit(tmp_path, AUTO, optimizer="muon")


def test_an_allowed_difference_holds_against_the_state_of_the_checkpoint(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    changed = ["--model.optimizer.init_args.lr=0.5", "--model.optimizer.init_args.weight_decay=0.25"]
    with pytest.warns(UserWarning, match="continuing with what is configured now"):
        cli = fit(tmp_path, AUTO, *changed, "--allow_changes=true", "--trainer.max_steps=6")
    assert rates(cli) == {0.5}
    decays = {group["role"]: group["weight_decay"] for group in cli.trainer.optimizers[0].param_groups}
    assert decays == {"hidden": 0.25, "embedding": 0.25, "head": 0.25, "norm": 0.0, "bias": 0.0}
    assert all(state["step"] == 6 for state in cli.trainer.optimizers[0].state.values()), "moments are carried over"


def test_what_muon_has_counted_is_no_difference(tmp_path: Path) -> None:
    warm = "--model.optimizer.init_args.momentum_warmup_steps=10"
    before = fit(tmp_path, EACH, warm, optimizer="muon").trainer.optimizers[0]
    with pytest.warns(UserWarning, match="continuing with"):
        cli = fit(tmp_path, AUTO, warm, "--allow_changes=true", "--trainer.max_steps=6", optimizer="muon")
    muon = cli.trainer.optimizers[0]
    assert {group["steps_taken"] for group in muon.param_groups if group["orthogonalized"]} == {6}
    assert muon.choices == before.choices != []


def test_an_allowed_schedule_counts_from_the_step_that_was_reached(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    linear = ["--model.schedule=lit_consistency.optimizers.Linear", "--trainer.max_steps=8"]
    with pytest.warns(UserWarning, match="continuing"):
        cli = fit(tmp_path, AUTO, *linear, "--allow_changes=true")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    used = [line["lr/hidden"] for line in lines if "lr/hidden" in line]
    assert used == pytest.approx([3e-4] * 4 + [3e-4 * (8 - step) / 8 for step in (4, 5, 6, 7)])
    assert cli.trainer.global_step == 8


def test_another_optimizer_begins_with_an_empty_state_and_says_so(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    empty = "holds the state of AdamW: Muon begins with an empty one"
    with pytest.warns(UserWarning, match=empty), pytest.warns(UserWarning, match="continuing with"):
        cli = fit(tmp_path, AUTO, "--allow_changes=true", "--trainer.max_steps=6", optimizer="muon")
    assert type(cli.trainer.optimizers[0]).__name__ == "Muon"
    assert cli.trainer.global_step == 6


def test_other_data_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    world = MarkovChains(n_documents=20, length=16)
    text.write_text("\n".join(world.documents()))
    from_file = [
        "--data.init_args.source=lit_consistency.data.TextFiles",
        f"--data.init_args.source.init_args.path={text}",
    ]
    from_file += [
        "--data.init_args.source.init_args.separator=\\n",
        f"--data.init_args.tokenizer_dir={tmp_path}/tokenizer",
    ]
    from lit_consistency.data import write_tokenizer

    write_tokenizer(world.tokenizer(), tmp_path / "tokenizer")
    args = [a for a in arguments(tmp_path, *SCRATCH, *from_file, EACH) if "source.init_args.world" not in a]
    build(args).execute()
    before = (tmp_path / "run" / "run.json").read_bytes()
    text.write_text("\n".join(reversed(list(world.documents()))))  # as many rows as before
    with pytest.raises(ValueError, match=r"begun on other inputs:\n  data\.train"):
        build(
            [*args, AUTO, "--run.save_model=false", f"--ckpt_path={tmp_path}/run/checkpoints/step-00000003.ckpt"]
        ).execute()
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_auto_skips_a_damaged_checkpoint_and_says_so(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    (tmp_path / "run" / "run.json").unlink()  # as after a kill
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"skipped a checkpoint: .*{newest.name}: 100 bytes"):
        fit(tmp_path, AUTO)


def test_auto_without_a_name_or_a_checkpoint(tmp_path: Path) -> None:
    nameless = [a for a in arguments(tmp_path, *SCRATCH) if not a.startswith("--run.name")]
    with pytest.raises(ValueError, match=r"ckpt_path = 'auto': expected run\.name"):
        build([*nameless, AUTO])
    assert build(arguments(tmp_path, *SCRATCH, AUTO)).config["fit"]["ckpt_path"] is None


def test_auto_begins_again_a_run_that_died_before_its_first_checkpoint(tmp_path: Path) -> None:
    finished(tmp_path / "straight")
    finished(tmp_path / "died")
    (tmp_path / "died" / "run" / "run.json").write_text(json.dumps({"status": "running", "total_steps": 4}))
    fit(tmp_path / "died", AUTO)
    texts = [(tmp_path / root / "run" / "metrics.jsonl").read_text() for root in ("straight", "died")]
    steps = [[json.loads(line)["step"] for line in text.splitlines()] for text in texts]
    assert steps[0] == steps[1]
    assert steps[0][0] == 0
    assert record(tmp_path / "died")["status"] == "finished"


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        build(arguments(tmp_path, *SCRATCH, f"--ckpt_path={tmp_path}/step-00000001.ckpt"))


def test_a_branch_that_was_left_is_set_aside_and_not_taken_for_the_newest(tmp_path: Path) -> None:
    fit(tmp_path, EACH, "--checkpoint.keep=4", "--checkpoint.at_end=true")
    assert names(tmp_path) == [f"step-{step:08d}.ckpt" for step in (1, 2, 3, 4)]
    first = tmp_path / "run" / "checkpoints" / "step-00000001.ckpt"

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    cli = build(arguments(tmp_path, *SCRATCH, f"--ckpt_path={first}"))
    cli.trainer.callbacks.insert(0, Stop())
    cli.execute()
    assert names(tmp_path) == ["step-00000001.ckpt", "step-00000002.ckpt"]
    (aside,) = (tmp_path / "run" / "checkpoints").glob("abandoned-*")
    assert names(tmp_path, aside.name) == [f"step-{step:08d}.ckpt" for step in (2, 3, 4)]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    finished(tmp_path, EACH)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fit(tmp_path, EACH, AUTO)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_killed_after_its_last_step_is_finished_by_auto(tmp_path: Path) -> None:
    finished(tmp_path / "straight")
    fit(tmp_path / "killed", EACH, "--run.save_model=false")
    file = tmp_path / "killed" / "run" / "run.json"
    file.write_text(json.dumps({**record(tmp_path / "killed"), "status": "running"}))
    fit(tmp_path / "killed", EACH, AUTO)
    assert record(tmp_path / "killed")["status"] == "finished"
    assert equal(*(weights(tmp_path / root / "run" / "model") for root in ("straight", "killed")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_step_or_at_the_end_lets_the_run_finish(number: int, tmp_path: Path) -> None:
    class Late(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3 and number == signal.SIGTERM:
                os.kill(os.getpid(), number)

        def on_train_end(self, *_: Any) -> None:
            os.kill(os.getpid(), number)

    cli = build(arguments(tmp_path, *SCRATCH))
    cli.trainer.callbacks.insert(0, Late())
    cli.execute()
    assert record(tmp_path)["status"] == "finished"
    assert (tmp_path / "run" / "model" / "lit_model.pth").is_file()


def test_a_minimum_of_steps_does_not_keep_a_run_from_stopping(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    cli = build(arguments(tmp_path, *SCRATCH, "--trainer.min_steps=4"))
    cli.trainer.callbacks.insert(0, Stop())
    cli.execute()
    assert cli.trainer.global_step == 2
    assert names(tmp_path) == ["step-00000002.ckpt"]
