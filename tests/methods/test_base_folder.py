"""A step of a run is a base wherever a model is asked for, and the same model as the run itself would have written."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_consistency.__main__ import main
from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints
from lit_consistency.methods import base_folder as module
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.records.atomic import replaced_folder
from lit_consistency.records.model_folder import weights_hash
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import ROOT, WORLD, equal, finished, fit, weights

EACH = ["--checkpoint.every_n_steps=1", "--checkpoint.keep=4"]
SERIES = ["--checkpoint.series=[2]"]
METHODS = {
    "full": [],
    "lora": ["--model.method=lit_consistency.methods.LoRA", "--model.method.init_args.key=false"],
    "hft": ["--model.method=lit_consistency.methods.HFT"],
    "shards": ["--trainer.strategy=fsdp2", "--trainer.devices=1"],
}


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_is_the_model_that_the_run_wrote_itself(name: str, tmp_path: Path) -> None:
    """The run writes the model of step 2 into its series; made from the checkpoint, it has the same bytes."""
    base = None if name in ("full", "shards") else finished(tmp_path / "base") / "model"
    fit(tmp_path, *EACH, *SERIES, *METHODS[name], base=base)
    run = RunFolder(tmp_path / "run")
    written = tmp_path / "written"
    run.series_model(2).rename(written)
    checkpoint = run.checkpoints / "step-00000002.ckpt"
    assert checkpoint.is_dir() == (name == "shards")
    made = base_folder(run.checkpoints / "step-2")
    assert made == base_folder(checkpoint) == base_folder(run.series / "step-2") == run.series_model(2)
    assert weights_hash(made) == weights_hash(written)
    assert "transformer.h.0.attn.qkv.weight" in weights(made)
    files = {path.name for path in written.iterdir()}
    assert {path.name for path in made.iterdir()} == files
    assert "tokenizer.json" in files
    one, other = read_provenance(made), read_provenance(written)
    assert one is not None
    assert one == other
    assert (one.steps, one.planned_steps) == (2, 4)
    # the run's retention may remove the checkpoint: what was made of it stays
    shutil.rmtree(run.checkpoints)
    assert base_folder(checkpoint) == made
    assert base_folder(run.model) == run.model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run without a series, of which the checkpoints are there."""
    root = tmp_path_factory.mktemp("run")
    fit(root, *EACH, "--run.save_model=false")
    return RunFolder(root / "run")


def test_fit_evaluate_and_export_take_a_step(run: RunFolder, tmp_path: Path) -> None:
    sft = fit(tmp_path / "sft", base=run.checkpoints / "step-3", data="SFTData").model
    assert sft.checkpoint_dir == run.series_model(3)
    provenance = read_provenance(tmp_path / "sft" / "run" / "model")
    assert provenance is not None
    assert [(stage["steps"], stage["planned_steps"]) for stage in provenance.stages] == [(3, 4), (4, None)]
    assert provenance.base == str(run.series_model(3))
    saved = torch.load(run.checkpoints / "step-00000003.ckpt", weights_only=True)["state_dict"]
    main(["export", f"--checkpoint_dir={run.checkpoints}/step-3", f"--out_dir={tmp_path}/hf"])
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(exported["gpt_neox.embed_in.weight"], saved["gpt.transformer.wte.weight"])
    between = ["--to=litgpt", "--interpolate", "0.5", "--with", f"{run.checkpoints}/step-00000001.ckpt"]
    main(["export", f"--checkpoint_dir={run.checkpoints}/step-3", f"--out_dir={tmp_path}/half", *between])
    halves = [saved, torch.load(run.checkpoints / "step-00000001.ckpt", weights_only=True)["state_dict"]]
    mean = sum(state["gpt.lm_head.weight"].double() for state in halves) / 2
    torch.testing.assert_close(weights(tmp_path / "half")["lm_head.weight"].double(), mean, rtol=1e-6, atol=1e-8)
    tasks = ["--tasks", f"{ROOT}/configs/evaluation/markov.yaml/old", "--limit=4", "--device=cpu"]
    world = f"--world={json.dumps(json.loads(WORLD)['init_args'])}"
    main(["evaluate", f"--model={run.checkpoints}/step-3", *tasks, world, f"--output={tmp_path}/out"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["weights_sha256"] == weights_hash(run.series_model(3))


def test_a_step_that_is_not_there_names_those_that_are(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint_dir = .*step-9: .* no model of step 9; .* \[1, 2, 3, 4\]"):
        fit(tmp_path, base=run.checkpoints / "step-9")
    with pytest.raises(FileNotFoundError, match=r"model = nowhere/step-9: .*expected a step of a run"):
        base_folder(Path("nowhere/step-9"), "model")


def copied(run: RunFolder, root: Path) -> RunFolder:
    shutil.copytree(run.path, root / "run", ignore=shutil.ignore_patterns("series", ".*"))
    return RunFolder(root / "run")


def test_a_damaged_checkpoint_and_one_that_runs_code_are_refused(run: RunFolder, tmp_path: Path) -> None:
    here = copied(run, tmp_path)
    first, second = checkpoints(here.checkpoints)[:2]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    with pytest.raises(ValueError, match="sha256 .*, expected"):
        base_folder(first)

    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "canary",)

    saved = torch.load(second, weights_only=True)
    AtomicCheckpointIO().save_checkpoint({**saved, "more": Touch()}, second)
    with pytest.raises(ValueError, match=r"step-00000002\.ckpt: refused, .*asks to run code"):
        base_folder(second)
    config = saved["config"].replace("method: null", "method: {class_path: os.system, init_args: {command: id}}")
    assert config != saved["config"]
    AtomicCheckpointIO().save_checkpoint({**saved, "config": config}, second)
    with pytest.raises(ValueError, match=r"trained by os\.system: expected a method of lit_consistency\.methods"):
        base_folder(second)
    assert not (tmp_path / "canary").exists()
    assert not here.series.exists() or not here.series_models()
    shutil.rmtree(here.model_files)
    with pytest.raises(FileNotFoundError, match="model_files is missing"):
        base_folder(here.checkpoints / "step-3")


def test_a_folder_that_cannot_be_written_to_leaves_the_model_in_the_cache(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = copied(run, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(path: Path) -> Any:
        if here.path in path.parents:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return replaced_folder(path)

    monkeypatch.setattr(module, "replaced_folder", refuse)
    made = base_folder(here.checkpoints / "step-4")
    assert made.parents[3] == tmp_path / "cache"
    assert made == base_folder(here.checkpoints / "step-4")
    monkeypatch.undo()
    assert equal(weights(made), weights(base_folder(here.checkpoints / "step-4")))
