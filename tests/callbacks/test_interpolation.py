"""Models between start and end, measured in the run: those that ``export --interpolate`` writes, without a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_consistency.callbacks import Forgetting
from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.inference.load import load_model
from lit_consistency.model import export_interpolated
from lit_consistency.records.run_folder import RunFolder
from tests.callbacks.test_forgetting import SETS, callback
from tests.reference.divergence import mean_kl
from tests.runs import VALIDATION, arguments, equal, fit, weights

SHARES = [0.25, 1.5, -1.0]
LORA = ["--model.method=lit_consistency.methods.LoRA", "--model.method.init_args.r=4"]
METHODS = {
    "full": [],
    "lora": LORA,
    "hft": ["--model.method=lit_consistency.methods.HFT"],
}
MORE = ["--trainer.max_steps=6", "--model.optimizer.init_args.lr=0.02"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has learned the old chains a little."""
    longer = ["--trainer.max_steps=20", "--trainer.max_epochs=9", "--model.optimizer.init_args.lr=0.01"]
    return Path(fit(tmp_path_factory.mktemp("base"), *longer).trainer.default_root_dir) / "model"


def validated(root: Path, model: Path) -> dict[str, float]:
    """What ``validate`` prints of the watched tasks of a model on disk."""
    given = arguments(root, *SETS, f"--model.checkpoint_dir={model}", f"--data.init_args.validation={VALIDATION}")
    cli = build(["validate", *(option for option in given[1:] if "limit_val_batches" not in option)])
    cli.execute()
    return {name: value.item() for name, value in cli.trainer.callback_metrics.items()}


def divergence(watched: Forgetting, base: Path, model: Path) -> float:
    """KL to the base over every right answer of what is learned, from whole forwards."""
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for folder, kept in zip((base, model), rows, strict=True):
        gpt = load_model(folder, "cpu").model
        for key, task in watched._tasks.items():
            for question in task.encoded.questions if key.startswith("learn/") else []:
                right = question.item.candidates[question.item.gold]
                tokens = torch.as_tensor(right.tokens, dtype=torch.int64)
                with torch.no_grad():
                    logits = gpt(tokens[None, :-1])[0].log_softmax(-1)
                kept.append(logits[torch.as_tensor(right.supervised[1:])])
    return mean_kl(torch.cat(rows[0]), torch.cat(rows[1]))


def run(root: Path, base: Path, method: str, *more: str) -> ConsistencyCLI:
    return fit(root, *SETS, *MORE, *METHODS[method], *more, base=base, data="SFTData")


@pytest.mark.parametrize("method", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "hft"))])
def test_numbers_are_those_of_the_exported_model_and_the_end_is_left_as_it_is(
    method: str, base: Path, tmp_path: Path
) -> None:
    option = f"--forgetting.interpolate={SHARES}"
    cli = run(tmp_path / "with", base, method, option)
    run(tmp_path / "without", base, method)
    folder, other = (RunFolder(tmp_path / name / "run") for name in ("with", "without"))
    assert equal(weights(folder.model), weights(other.model))
    record, plain = folder.read_record(), other.read_record()
    assert record["final_metrics"] == plain["final_metrics"]
    assert plain["interpolated"] == {}
    items = sorted(path.relative_to(folder.path) for path in folder.last_measured.rglob("*.jsonl"))
    assert items
    assert all((folder.path / path).read_text() == (other.path / path).read_text() for path in items)
    assert record["interpolated"].keys() == {"0.25", "1.5", "-1"}
    exported = tmp_path / "quarter"
    export_interpolated(base, folder.model, [0.25], exported)
    expected = validated(tmp_path / "validate", exported)
    numbers = record["interpolated"]["0.25"]
    asked = [key for key in expected if key.startswith(("learn/", "retain/"))]
    assert {"learn/new", "learn/new.stderr", "retain/next.exact", "retain/old.nats_per_token"} <= set(asked)
    assert {key: numbers[key] for key in asked} == pytest.approx(
        {key: expected[key] for key in asked}, rel=1e-5, abs=1e-6
    )
    end = record["final_metrics"]
    assert numbers.keys() == end.keys()
    for name, share in (("0.25", 0.25), ("1.5", 1.5), ("-1", 1.0)):
        between = record["interpolated"][name]
        assert between["distance/all"] == pytest.approx(share * end["distance/all"], rel=1e-5)
        forgotten = between["retain/old"] - record["base_metrics"]["retain/old"]
        assert between["forget/old"] == pytest.approx(forgotten, rel=1e-6)
    assert numbers["learn/new"] != end["learn/new"]
    assert numbers["kl_to_base"] == pytest.approx(divergence(callback(cli), base, exported), rel=1e-3)
    lines = [line for line in folder.read_metrics() if "interpolated/1.5/learn/new" in line]
    assert [line["step"] for line in lines] == [6]
    assert lines[0]["interpolated/1.5/learn/new"] == record["interpolated"]["1.5"]["learn/new"]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 1], "1: expected a share between start and end; the end is measured"),
        ([0.0], "0: expected .*; the base is measured at step 0 anyway"),
        ([2.5], "2.5: expected a share from -2 to 2"),
        ([float("nan")], "nan: expected a share from -2 to 2"),
        ([0.5, 0.5000000001], "0.5 stands twice"),
    ],
)
def test_shares_that_tell_nothing_new_are_refused(shares: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"forgetting\.interpolate: {message}"):
        Forgetting(interpolate=shares)


@pytest.mark.slow
def test_the_option_may_be_added_when_a_run_is_continued(base: Path, tmp_path: Path) -> None:
    each = ["--checkpoint.every_n_steps=1"]
    run(tmp_path, base, "full", *each)
    folder = RunFolder(tmp_path / "run")
    before = weights(folder.model)
    run(
        tmp_path,
        base,
        "full",
        *each,
        f"--ckpt_path={folder.checkpoints}/step-00000005.ckpt",
        "--forgetting.interpolate=[0.5]",
    )
    assert json.loads(folder.record_file.read_text())["interpolated"].keys() == {"0.5"}
    assert equal(before, weights(folder.model))
