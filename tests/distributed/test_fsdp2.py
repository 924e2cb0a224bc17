"""A model in shards trains as on one device, in float64 to 1e-9: the final weights, and every number on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.runs import SCRATCH, WORLD, finish, finished, fit, largest_difference, start, weights

HELD_OUT = [
    "--data.init_args.validation=lit_consistency.data.worlds.WorldText",
    "--data.init_args.validation.init_args.part=held_out",
    f"--data.init_args.validation.init_args.world={WORLD}",
]
# clipped, watched and accumulated, so that all of these are the same in shards
OPTIONS = [*HELD_OUT, "--trainer.precision=64-true", "--forgetting.every_n_steps=2", "--trainer.gradient_clip_val=0.5"]
OPTIONS.append("--forgetting.interpolate=[0.5, -1]")
FSDP2, HSDP = "fsdp2", "lit_consistency.distributed.FSDP2Strategy"
LORA = ["--model.method=lit_consistency.methods.LoRA"]
DORA = [*LORA, "--model.method.init_args.dora=true", "--model.method.init_args.key=false"]
METHODS: dict[str, list[str]] = {"full": [], "lora": LORA, "dora": DORA}
# OPTIMIZERS whose step works on shards; add a name here when another does
SHARDED = ("adamw", "sgd", "muon", "mofo")


def numbers(root: Path) -> list[dict[str, float]]:
    """Logged numbers without those of the clock."""
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not any(key.startswith(("speed/", "evaluation/")) for key in line)]


def check_equal(one: Path, many: Path) -> None:
    assert largest_difference(*(weights(root / "run" / "model") for root in (one, many))) < 1e-9
    found, expected = numbers(many), numbers(one)
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        for key, value in other.items():
            # a coordinate without gradient may move by rounding, and one of 15,600 is one
            close = 1e-3 if "moved" in key else 1e-9
            # the base's distributions are kept in float32
            close = 1e-6 if "kl" in key else close
            assert math.isclose(line[key], value, rel_tol=close, abs_tol=close), (key, line, other)
    tables = [json.loads((root / "run" / "run.json").read_text())["parameters"] for root in (one, many)]
    assert tables[0] == tables[1]


def compare(root: Path, devices: int, strategy: list[str], optimizer: str, model: list[str]) -> None:
    name, *more = strategy
    process = start(root / "many", *model, *OPTIONS, *more, devices=devices, strategy=name, optimizer=optimizer)
    fit(root / "one", *[a for a in model if a not in SCRATCH], *OPTIONS, base=base_of(model), optimizer=optimizer)
    finish(process)
    check_equal(root / "one", root / "many")


def base_of(model: list[str]) -> Path | None:
    found = [a.partition("=")[2] for a in model if a.startswith("--model.checkpoint_dir=")]
    return Path(found[0]) if found else None


@pytest.mark.slow
def test_two_shards_equal_one_process(tmp_path: Path) -> None:
    compare(tmp_path, 2, [FSDP2], "adamw", SCRATCH)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SHARDED)
@pytest.mark.parametrize(
    ("devices", "strategy"),
    [(2, ["ddp"]), (4, [FSDP2]), (4, [HSDP, "--trainer.strategy.init_args.replicas=2"])],
    ids=["ddp2", "fsdp2-4", "hsdp-2x2"],
)
def test_any_layout_equals_one_process(devices: int, strategy: list[str], optimizer: str, tmp_path: Path) -> None:
    compare(tmp_path, devices, strategy, optimizer, SCRATCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "strategy"),
    [(2, ["ddp"]), (2, [FSDP2]), (4, [HSDP, "--trainer.strategy.init_args.replicas=2"])],
    ids=["ddp2", "fsdp2-2", "hsdp-2x2"],
)
@pytest.mark.parametrize("method", METHODS)
def test_finetuning_from_a_base_equals_one_process(
    method: str, devices: int, strategy: list[str], tmp_path: Path
) -> None:
    base = finished(tmp_path / "base") / "model"
    compare(tmp_path, devices, strategy, "adamw", [f"--model.checkpoint_dir={base}", *METHODS[method]])
