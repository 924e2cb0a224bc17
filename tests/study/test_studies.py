"""The studies that come with the package: every one is planned, and every stage on a world is run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.cli.study import options_of, parse, parser
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.options import Stage, StudyOptions
from lit_consistency.study.run import StudyRun
from tests.runs import ROOT
from tests.study.fakes import FakeParser

STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.yaml"))
SIZES = {
    "checkpoints": {"pretrain": 3, "as_it_is": 24, "anneal": 48, "finetune": 96},
    "checkpoints_paper": {"pretrain": 1, "as_it_is": 8, "plain": 8, "finetune": 40, "transfer": 40},
    "checkpoints_text": {"pretrain": 3, "as_it_is": 24, "plain": 24, "anneal": 48, "finetune": 192},
    "consistency_controls": {"pretrain": 21, "finetune": 0},
    "consistency_paper": {"tune": 9, "pretrain": 9, "finetune": 405, "llama": 72},
    "consistency_text": {"tune": 9, "pretrain": 9, "finetune": 135},
    "mechanisms_markov": {"pretrain": 12, "finetune": 72, "bases": 12, "updates": 0},
    "mechanisms": {"pretrain": 12, "finetune": 72, "bases": 12, "updates": 0},
    "memorization": {"pretrain": 252},
    "mofo": {"pretrain": 5, "finetune": 495},
    "mofo_paper": {"finetune": 150, "sequence": 12},
    "mofo_text": {"pretrain": 3, "finetune": 126, "sequence": 12},
    "own": {"finetune": 90},
    "rates": {"finetune": 3},
    "early_stop": {"pretrain": 3, "finetune": 9},
    "remedies_text": {"pretrain": 3, "finetune": 39},
    "weight_decay": {"pretrain": 153, "finetune": 0, "robustness": 0, "mechanism": 0},
    "weight_decay_paper": {"pretrain": 60, "finetune": 120, "samples": 120},
    "weight_decay_text": {"pretrain": 42, "finetune": 126},
}
"""Cells that are known before the first run, as the first lines of the files have them; 0 where bases are picked."""
WORLDS = ("consistency_controls", "mechanisms", "mofo", "weight_decay", "checkpoints", "memorization")
DATA = os.environ.get("LIT_CONSISTENCY_TEST_DATA")
HUB_MODELS = {
    "meta-llama/Llama-2-7b-hf": "Llama-2-7b-hf",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tiny-llama-1.1b-chat",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the configurations, the bases of the quickstart, and what the files' placeholders name."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (checkpoints / "lit_consistency").symlink_to(ROOT / "checkpoints" / "lit_consistency")
    shutil.copytree(ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw", checkpoints / "ORG" / "MODEL")
    rows = [{"prompt": f"Which hobby is number {i}?", "completion": " golf."} for i in range(100)]
    (tmp_path / "YOUR.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in HUB_MODELS:
        (checkpoints / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_hub_models(place: Path) -> None:
    """Folders as `litgpt download` leaves them, but for the weights, of which a plan reads nothing."""
    from litgpt.config import Config

    for folder, name in HUB_MODELS.items():
        model = place / "checkpoints" / folder
        (model / "model_config.yaml").write_text(yaml.safe_dump(asdict(Config.from_name(name))))
        (model / "lit_model.pth").touch()
        shutil.copy(place / "checkpoints" / "ORG" / "MODEL" / "tokenizer.json", model)


def study_of(name: str) -> StudyOptions:
    """A file's options; what it writes goes below the working folder."""
    return options_of(parser().parse_args(["--config", f"configs/studies/{name}.yaml"]))[0]


def a_run(study: StudyOptions, parse_calls: Any) -> StudyRun:
    return StudyRun(study, ExecutionOptions(workers=1, devices=[]), parse_calls, ["--config", "study.yaml"])


def cells_of(study: StudyOptions, parse_calls: Any) -> dict[str, int]:
    return {stage: len(cells) for stage, cells in a_run(study, parse_calls).cells().items()}


@pytest.mark.slow
def test_every_study_has_its_cells_claims_and_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of the commands is replaced, which takes a second a value: names, sums and products are what they are.

    What the values mean is planned by the slow test.
    """
    monkeypatch.setattr("lit_consistency.study.plan.code_version", lambda cache, kind="fit": "0123456789ab")
    monkeypatch.setattr("lit_consistency.study.cells.model_fingerprint", str)
    assert set(SIZES) <= set(STUDIES)
    for name in SIZES:
        text = (ROOT / "configs" / "studies" / f"{name}.yaml").read_text()
        assert len(text.splitlines()) < 150
        assert f"python -m lit_consistency study --config configs/studies/{name}.yaml" in text
        study = study_of(name)
        assert cells_of(study, FakeParser()) == SIZES[name], name
        assert study.description
        assert study.output == Path("checkpoints/studies") / name
        sentences = [claim.sentence for claim in study.claims.values()]
        assert all(
            sentence.endswith(".") and claim.smallest_effect > 0
            for sentence, claim in zip(sentences, study.claims.values(), strict=True)
        )
        assert len(set(sentences)) == len(sentences)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_planned_without_network(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if name.endswith(("_text", "_paper")) or name == "own":
        if DATA is None:
            pytest.skip("LIT_CONSISTENCY_TEST_DATA is not set to a folder with the real data")
        (place / "data").symlink_to(Path(DATA).resolve())
    if name.endswith("_paper") and find_spec("datasets") is None:
        pytest.skip("needs the extra hf")
    add_hub_models(place)
    study = study_of(name)
    known = cells_of(study, parse)
    assert known == SIZES.get(name, known)
    assert known[next(iter(study.stages))] > 0


def first_of(stage: Stage, names: dict[str, list[str]]) -> Stage:
    """The stage with the first value of every axis, two steps long; ``names`` of values go on to later stages."""
    axes: dict[str, Any] = {}
    for axis, spec in stage.axes.items():
        if "key" in spec or "keys" in spec:
            axes[axis] = _first_swept(spec, names)
        else:
            value = next(iter(spec))
            axes[axis], names[axis] = {value: spec[value]}, [value]
    pick = replace(stage.pick, where={}, to={}, level=0.0) if stage.pick.metric else replace(stage.pick, where={})
    short: dict[str, Any] = {}
    if stage.kind == "fit":
        short = {"trainer.max_steps": 2, "trainer.limit_val_batches": 1, "forgetting.kl_positions": 8}
        # bases are picked by their loss on held-out data
        short |= {"trainer.check_val_every_n_epoch": None, "trainer.val_check_interval": 1}
        if "checkpoint.series" in stage.options:
            short["checkpoint.series"] = {"steps": "log", "count": 2}
    elif stage.kind == "evaluate":
        short = {"limit": 20}
    return replace(stage, axes=axes, options={**stage.options, **short}, skip=[], pick=pick, seeds=None)


def _first_swept(spec: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    kept = {key: value for key, value in spec.items() if key != "search"}
    if "keys" in spec:
        return {**kept, "keys": {option: values[:1] for option, values in spec["keys"].items()}}
    values = spec["values"]
    if "by" in spec:
        branch = names[spec["by"]][0]
        values = {branch: values.get(branch, values.get("others"))[:1]}
    else:
        values = values[:1]
    if spec["key"] == "trainer.max_steps":
        values = {branch: [2] for branch in values} if "by" in spec else [2]
    return {**kept, "values": values}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WORLDS)
def test_the_first_cell_of_every_stage_on_a_world_runs(name: str, place: Path) -> None:
    study = study_of(name)
    names: dict[str, list[str]] = {}
    stages = {key: first_of(stage, names) for key, stage in study.stages.items()}
    one_seed = replace(study.replicates, seeds=[1], orders=1)  # not the seed that every file has anyway
    run = a_run(replace(study, stages=stages, replicates=one_seed, read=None, claims={}), parse)
    status = run.execute()
    results = {stage: {cell.name: run.results.of(cell.name) for cell in cells} for stage, cells in run.cells().items()}
    said = {stage: {result.error for result in of_stage.values()} for stage, of_stage in results.items()}
    assert status == 0, said
    assert all(of_stage for of_stage in results.values())
    assert all(result.metrics for of_stage in results.values() for result in of_stage.values())
    if (read := study.read) is not None:
        ends = results[read.stage].values()
        assert all({read.learning, read.forgetting} <= set(end.metrics) for end in ends)
        assert all(read.divergence is None or read.divergence in end.metrics for end in ends)
    for claim in study.claims.values():
        stage = claim.stage or (read.stage if read else "")
        of_stage = results[stage].values()
        assert all(claim.metric is None or claim.metric in result.metrics for result in of_stage), claim
