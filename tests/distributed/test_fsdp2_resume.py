"""A checkpoint of a sharded run is continued by any number of ranks, or by one process, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lit_consistency.checkpointing.io import checkpoints
from lit_consistency.cli.fit import build
from tests.distributed.test_fsdp2 import DORA, FSDP2, HSDP, LORA, OPTIONS, numbers
from tests.runs import SCRATCH, arguments, finish, largest_difference, start, weights

LONG = [*OPTIONS, "--trainer.max_steps=6", "--trainer.max_epochs=3"]
HALF = [*LONG, "--checkpoint.every_n_steps=3", "--run.save_model=false"]
ONE_FILE = ["--trainer.strategy.init_args.save_distributed_checkpoint=false"]
REPLICAS = ["--trainer.strategy.init_args.replicas=2"]
# what is resumed on shards; add an optimizer here when its step works on shards
CASES = {
    "adamw": ("adamw", []),
    "sgd": ("sgd", []),
    "muon": ("muon", []),
    "mofo": ("mofo", []),
    "muon-normuon": ("muon", ["--model.optimizer.init_args.normuon=true"]),
    "mofo-refreshed": ("mofo", ["--model.optimizer.init_args.refresh_every=2"]),
    "lora": ("adamw", LORA),
    "dora": ("adamw", DORA),
    "lora-paired": ("muon", [*LORA, "--model.optimizer.init_args.adapters=paired"]),
}
# strategy and its options, devices
LAYOUTS = {
    "single": ("auto", [], 1),
    "ddp-2": ("ddp", [], 2),
    "fsdp2-1": (FSDP2, [], 1),
    "fsdp2-2": (FSDP2, [], 2),
    "fsdp2-4": (FSDP2, [], 4),
    "hsdp-2x2": (HSDP, REPLICAS, 4),
    "fsdp2-2-file": (HSDP, ONE_FILE, 2),
    "fsdp2-1-file": (HSDP, ONE_FILE, 1),
}


def run(root: Path, layout: str, case: str, *extra: str) -> None:
    """Here where one process is enough, else on several."""
    strategy, options, devices = LAYOUTS[layout]
    optimizer, method = CASES[case]
    model = [*SCRATCH, *method, *options, *extra]
    if devices > 1:
        finish(start(root, *model, devices=devices, strategy=strategy, optimizer=optimizer))
        return
    one = [f"--trainer.strategy={strategy}", "--trainer.devices=1"]
    build(arguments(root, *one, *model, optimizer=optimizer)).execute()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Root of a case's run of six steps in one process."""
    roots: dict[str, Path] = {}

    def root_of(case: str) -> Path:
        if case not in roots:
            roots[case] = tmp_path_factory.mktemp("straight")
            run(roots[case], "single", case, *LONG)
        return roots[case]

    return root_of


def check_resumed(root: Path, straight: Path, saving: str, resuming: str, case: str) -> None:
    """Three steps in one layout and three in another are six in one process."""
    run(root / "half", saving, case, *HALF)
    path, _ = checkpoints(root / "half" / "run" / "checkpoints")
    assert path.is_dir() == (LAYOUTS[saving][0] in (FSDP2, HSDP) and "file" not in saving)
    run(root / "rest", resuming, case, *LONG, f"--ckpt_path={path}")
    assert largest_difference(*(weights(part / "run" / "model") for part in (straight, root / "rest"))) < 1e-9
    later = {line["step"]: line for line in numbers(straight) if "train/loss" in line and line["step"] > 3}
    found = {line["step"]: line for line in numbers(root / "rest") if "train/loss" in line}
    assert found.keys() == later.keys() == {4, 5, 6}
    for step, line in later.items():
        assert found[step] == pytest.approx(line, abs=1e-9)
    kl = [[line["kl_to_base"] for line in numbers(part) if "kl_to_base" in line] for part in (straight, root / "rest")]
    assert kl[0][2:] == pytest.approx(kl[1], abs=1e-6)  # the base's distributions are kept in float32
    assert len(kl[1]) == 2


OTHER_PAIRS = [("single", "fsdp2-1"), ("fsdp2-1-file", "single")]


@pytest.mark.parametrize(
    ("saving", "resuming"),
    [("fsdp2-1", "single"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHER_PAIRS)],
)
@pytest.mark.slow
def test_folders_and_files_are_read_by_either(
    saving: str, resuming: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    check_resumed(tmp_path, straight("adamw"), saving, resuming, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("resuming", ["single", "fsdp2-4"])
def test_two_shards_are_continued_by_one_and_by_four(
    resuming: str, case: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    check_resumed(tmp_path, straight(case), "fsdp2-2", resuming, case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saving", "resuming"),
    [("ddp-2", "fsdp2-2"), ("fsdp2-2", "hsdp-2x2"), ("hsdp-2x2", "fsdp2-2-file"), ("fsdp2-2-file", "ddp-2")],
)
def test_any_layout_is_continued_by_any_other(
    saving: str, resuming: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    check_resumed(tmp_path, straight("adamw"), saving, resuming, "adamw")


@pytest.mark.slow
def test_another_optimizer_begins_with_an_empty_state_on_shards_too(tmp_path: Path) -> None:
    run(tmp_path, "fsdp2-1", "adamw", *HALF)
    path, _ = checkpoints(tmp_path / "run" / "checkpoints")
    empty, go_on = "holds the state of AdamW: SGD begins with an empty one", "continuing with what is configured"
    with pytest.warns(UserWarning, match=empty), pytest.warns(UserWarning, match=go_on):
        run(tmp_path / "sgd", "fsdp2-1", "sgd", *LONG, f"--ckpt_path={path}", "--allow_changes=true")


def test_other_hyperparameters_are_refused_on_shards_too(tmp_path: Path) -> None:
    run(tmp_path, "fsdp2-1", "adamw", *HALF)
    path, _ = checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"model\.optimizer\.init_args\.lr: 0\.0003 in the checkpoint, 0\.5 now"):
        run(tmp_path, "fsdp2-1", "adamw", f"--ckpt_path={path}", "--model.optimizer.init_args.lr=0.5")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "mofo", "sgd", "lion", "signum"])
def test_masters_of_bfloat16_parameters_are_resumed_from_shards(optimizer: str, tmp_path: Path) -> None:
    """Bit for bit, and equal to one device without shards: steps below bfloat16's gap are not lost at the stop."""
    steps = ["--trainer.precision=bf16-true", "--trainer.max_steps=6", "--trainer.max_epochs=3"]
    shards = [f"--trainer.strategy={FSDP2}", "--trainer.devices=1", "--checkpoint.every_n_steps=3"]
    for root, options in (("one", []), ("straight", shards)):
        build(arguments(tmp_path / root, *SCRATCH, *steps, *options, optimizer=optimizer)).execute()
    path = checkpoints(tmp_path / "straight" / "run" / "checkpoints")[0]
    resumed = [*shards, f"--ckpt_path={path}"]
    build(arguments(tmp_path / "rest", *SCRATCH, *steps, *resumed, optimizer=optimizer)).execute()
    for root in ("one", "rest"):
        assert largest_difference(*(weights(tmp_path / name / "run" / "model") for name in ("straight", root))) == 0
