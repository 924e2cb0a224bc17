"""Tasks watched in a run: written answers, adapters, low precision, two processes, and a budget of time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_consistency.callbacks import Forgetting
from lit_consistency.callbacks.divergence import Divergence
from lit_consistency.callbacks.time_budget import TimeBudget
from lit_consistency.cli.fit import ConsistencyCLI
from lit_consistency.evaluation import evaluate as command
from lit_consistency.module import LitLanguageModel
from tests.runs import SCRATCH, equal, finish, fit, start, weights
from tests.tasks.tiny import NLI, WRITTEN, nli_rows, tiny_model, write_task

pytestmark = pytest.mark.filterwarnings("ignore:task .*(constant|truncated)", "ignore:.*was pretrained with")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny_model") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A task whose answers are chosen, and one whose answers are written."""
    folder = tmp_path_factory.mktemp("tasks")
    written = {**WRITTEN, "references": "{p}", "generation": {"max_new_tokens": 6}}
    return {
        "nli": str(write_task(folder / "nli.yaml", **NLI, data=nli_rows(14), few_shot=nli_rows(9, start=50))),
        "said": str(write_task(folder / "said.yaml", **written, data=nli_rows(5))),
    }


def watching(files: dict[str, str], **more: dict[str, Any]) -> list[str]:
    """Options that watch the choices for forgetting and the written answers for learning."""
    retain = {"nli": {"task": files["nli"], "limit": 12, "shots": 1}, **more}
    return [
        f"--forgetting.retain={json.dumps(retain)}",
        f"--forgetting.learn={json.dumps({'said': {'task': files['said']}})}",
    ]


def callback(cli: ConsistencyCLI) -> Forgetting:
    return next(c for c in cli.trainer.callbacks if isinstance(c, Forgetting))


def lines(root: Path, key: str = "retain/nli") -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if key in line]


def test_a_model_with_lora_is_asked_as_its_merged_weights_are(
    files: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    options = ["--model.method=lit_consistency.methods.LoRA", "--model.optimizer.init_args.lr=0.01"]
    latest = callback(fit(tmp_path, *watching(files), *options, base=tiny_folder, data="SFTData")).latest
    model = tmp_path / "run" / "model"
    for key, shots, limit in (("retain/nli", 1, 12), ("learn/said", 0, 0)):
        file = files[key.partition("/")[2]]
        (result,) = command.evaluate(command.Options(model, [file], shots=(shots,), limit=limit, device="cpu"))
        for metric, numbers in result.metrics.items():
            name = key if metric == result.metric else f"{key}.{metric}"
            assert latest[name] == pytest.approx(numbers["value"], rel=1e-5), name


def test_a_run_in_bfloat16_writes_too(files: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    cli = fit(tmp_path, *watching(files), "--trainer.precision=bf16-mixed", base=tiny_folder, data="SFTData")
    assert 0 <= callback(cli).latest["learn/said"] <= 1


# -------------------- time budget


def skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement takes a third of a second at least, which no four steps do."""
    real = TimeBudget.spend
    monkeypatch.setattr(TimeBudget, "spend", lambda self, seconds: real(self, seconds + 0.3))


BUDGET = ["--forgetting.every_n_steps=1", "--forgetting.time_budget=0.05", "--trainer.max_steps=6"]


def test_what_exceeds_the_budget_is_skipped_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    skipping(monkeypatch)
    fit(tmp_path, *BUDGET)
    found = lines(tmp_path, "distance/all")
    assert [line["step"] for line in found] == [0, 6]
    record = json.loads((tmp_path / "run" / "run.json").read_text())["evaluation"]
    assert (record["made"], record["skipped"], record["time_budget"]) == (2, 5, 0.05)
    assert lines(tmp_path, "evaluation/skipped")[-1]["evaluation/skipped"] == 5
    assert lines(tmp_path, "evaluation/skipped")[-1]["evaluation/seconds"] == record["seconds"] >= 0.6
    assert "skipped 5 of 7 measurements to stay within 5% of the time" in caplog.text


def test_what_the_base_predicts_is_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_spend = Divergence.read_base, TimeBudget.spend
    spent: list[float] = []
    monkeypatch.setattr(Divergence, "read_base", lambda self, model: (time.sleep(0.4), real_read(self, model))[1])
    monkeypatch.setattr(
        TimeBudget, "spend", lambda self, seconds: (spent.append(seconds), real_spend(self, seconds))[1]
    )
    budget = callback(fit(tmp_path, *BUDGET)).budget
    assert len(spent) == budget.made
    assert budget.seconds >= sum(spent) + 0.4


def test_the_base_is_read_when_a_model_is_first_compared_with_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, bool]] = []
    real_read = Divergence.read_base

    def reading(self: Divergence, model: LitLanguageModel) -> None:
        now, base = model.merged_state(), weights(tiny_folder)
        read.append((model.trainer.global_step, all(torch.equal(now[name], base[name]) for name in base)))
        real_read(self, model)

    monkeypatch.setattr(Divergence, "read_base", reading)
    options = ["--forgetting.every_n_steps=2", "--trainer.max_steps=4", "--model.optimizer.init_args.lr=0.01"]
    validation = "--data.init_args.validation_share=0.2"
    fit(tmp_path, *options, validation, "--data.init_args.micro_batch_size=8", base=tiny_folder, data="SFTData")
    assert read == [(2, True)], "once, by the weights of the start, though training has moved them"
    distances = [line["kl_to_base"] for line in lines(tmp_path, "kl_to_base")]
    assert distances[0] == 0.0
    assert len(distances) == 3
    assert 0 < distances[1] < distances[2]


def test_a_run_that_skips_equals_a_run_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "all", *BUDGET, "--forgetting.time_budget=1")
    skipping(monkeypatch)
    fit(tmp_path / "few", *BUDGET)
    assert [len(lines(tmp_path / name, "distance/all")) for name in ("all", "few")] == [7, 2]
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("all", "few")))


def test_counts_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping(monkeypatch)
    first = callback(fit(tmp_path, *BUDGET, "--checkpoint.every_n_steps=3")).budget
    path = tmp_path / "run" / "checkpoints" / "step-00000003.ckpt"
    second = callback(fit(tmp_path, *BUDGET, f"--ckpt_path={path}")).budget
    assert (second.made, second.skipped) == (first.made, first.skipped) == (2, 5)
    assert second.seconds >= 0.6


def test_micro_batches_of_one_step_decide_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(TimeBudget, "allows_one_more", lambda self: bool(asked.append(1)))
    cli = fit(tmp_path, *BUDGET, "--data.init_args.micro_batch_size=2")
    assert cli.trainer.accumulate_grad_batches == 4
    assert len(asked) == 6


def test_a_rank_follows_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own clock would allow every measurement; rank 0, which a broadcast stands for, allows none."""
    real = SingleDeviceStrategy.broadcast
    monkeypatch.setattr(
        SingleDeviceStrategy, "broadcast", lambda self, value, src=0: value is not True and real(self, value, src)
    )
    fit(tmp_path, *BUDGET, "--forgetting.time_budget=1")
    assert [line["step"] for line in lines(tmp_path, "distance/all")] == [0, 6]


# -------------------- several processes


@pytest.mark.slow
def test_two_processes_skip_alike(tmp_path: Path) -> None:
    """A rank that measured alone would wait for the other for ever."""
    options = ["--forgetting.every_n_steps=1", "--forgetting.time_budget=0.02", "--trainer.max_epochs=20"]
    finish(start(tmp_path, *SCRATCH, *options, "--trainer.max_steps=100", devices=2, strategy="ddp"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())["evaluation"]
    assert record["made"] + record["skipped"] == 101
    assert record["skipped"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_report_what_one_does(
    strategy: str, files: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    sets = watching(files, own_samples={"limit": 8})
    options = [*sets, "--forgetting.every_n_steps=2", "--trainer.precision=64-true"]
    process = start(
        tmp_path / "two",
        f"--model.checkpoint_dir={tiny_folder}",
        *options,
        devices=2,
        strategy=strategy,
        data="SFTData",
    )
    fit(tmp_path / "one", *options, base=tiny_folder, data="SFTData")
    finish(process)
    found, expected = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        # a coordinate without gradient may move by rounding; the base's distributions are kept in float32
        other = {key: value for key, value in other.items() if "moved" not in key}
        assert {key: line[key] for key in other} == pytest.approx(other, rel=1e-6, abs=1e-6)
