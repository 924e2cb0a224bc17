"""A resumed run is pulled to the base, not to where it resumed, and keeps its half, or its magnitudes: bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.cli.fit import build
from tests.cli.test_resume import Stop, lines
from tests.runs import arguments, equal, finished, weights

METHODS = {
    "l2": ("adamw", "Pull", ["norm=l2", "strength=0.1"]),
    "l1_decoupled": ("muon", "Pull", ["norm=l1", "strength=0.1", "decoupled=true"]),
    "hft": ("muon", "HFT", []),
    "dora": ("muon", "LoRA", ["dora=true", "rslora=true", "dropout=0.1"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "hft" else pytest.mark.slow) for name in METHODS]
)
def test_stopped_and_resumed_equals_straight(name: str, tmp_path: Path) -> None:
    optimizer, method, options = METHODS[name]
    base = finished(tmp_path / "base", optimizer=optimizer)
    given = [f"--model.checkpoint_dir={base}/model", f"--model.method=lit_consistency.methods.{method}"]
    given += [f"--model.method.init_args.{option}" for option in options]
    for folder, stop, more in (
        ("straight", None, []),
        ("broken", Stop(at=5), []),
        ("broken", None, ["--ckpt_path=auto"]),
    ):
        cli = build(arguments(tmp_path / folder, *given, *more, optimizer=optimizer))
        if stop is not None:
            cli.trainer.callbacks.insert(0, stop)
        cli.execute()
    straight, resumed = (weights(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    assert equal(straight, resumed)
    assert lines(tmp_path / "straight") == lines(tmp_path / "broken")
