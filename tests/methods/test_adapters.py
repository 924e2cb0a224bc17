"""What a LoRA run has learned is a few kilobytes beside its base, and merged it is the model that the run writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_consistency.__main__ import main
from lit_consistency.methods import base_folder as module
from lit_consistency.methods.adapters import merge_adapters, read_adapters
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model import check_checkpoint_dir
from lit_consistency.records.atomic import new_folder
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.model_folder import weights_files, weights_hash
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import ROOT, WORLD, changed_on_purpose, equal, finished, fit, weights

LORA = ["--model.method=lit_consistency.methods.LoRA", "--model.optimizer.init_args.lr=0.01"]
DORA = ["--model.method.init_args.dora=true", "--model.method.init_args.key=false"]
ONLY = "--run.save_model=adapters"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("base")) / "model"


@pytest.fixture(scope="module")
def half_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in bfloat16, as most models on the hub are."""
    folder = tmp_path_factory.mktemp("half") / "model"
    shutil.copytree(base, folder)
    torch.save({name: tensor.bfloat16() for name, tensor in weights(base).items()}, folder / "lit_model.pth")
    changed_on_purpose(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that saves its adapters alone."""
    root = tmp_path_factory.mktemp("run")
    fit(root, *LORA, *DORA, ONLY, base=base)
    return RunFolder(root / "run")


def test_a_series_of_adapters_is_adapters_merged_when_a_model_is_asked_for(base: Path, tmp_path: Path) -> None:
    steps = "--checkpoint.series=[2, 4]"
    fit(tmp_path / "small", *LORA, ONLY, steps, base=base)
    fit(tmp_path / "whole", *LORA, steps, base=base)
    small, whole = (RunFolder(tmp_path / name / "run") for name in ("small", "whole"))
    assert list(small.series_models()) == [2, 4]
    assert not list(small.path.rglob("lit_model.*"))
    assert (read_provenance(small.series_model(2)).planned_steps, small.model.exists()) == (4, False)  # type: ignore[union-attr]
    for name in ("series/step-2", "series/step-00000004", "checkpoints/step-2"):
        merged = base_folder(small.path / name)
        assert equal(weights(merged), weights(base_folder(whole.path / name)))
        assert merged.name == "merged"


def copied(run: RunFolder, root: Path) -> Path:
    return Path(shutil.copytree(run.adapters, root / "adapters", ignore=shutil.ignore_patterns("merged", ".*")))


@pytest.mark.parametrize(
    ("options", "half"),
    [
        ([], False),
        ([], True),
        (DORA, True),
        pytest.param([*DORA, "--trainer.precision=64-true"], True, marks=pytest.mark.slow),
        pytest.param(["--trainer.precision=64-true"], False, marks=pytest.mark.slow),
        pytest.param(["--trainer.precision=bf16-true"], False, marks=pytest.mark.slow),
    ],
    ids=["lora", "lora-half", "dora-half", "dora-64-half", "lora-64", "lora-bf16-true"],
)
def test_merged_they_are_the_model_of_the_run_in_the_dtype_of_its_base(
    options: list[str], half: bool, base: Path, half_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = half_base if half else base
    fit(tmp_path, *LORA, *options, "--checkpoint.every_n_steps=4", base=start)
    run = RunFolder(tmp_path / "run")
    saved, before = weights(run.model), weights(start)
    assert equal(weights(base_folder(run.adapters)), saved)
    run.series.mkdir()
    assert equal(weights(base_folder(run.checkpoints / "step-4")), saved)
    provenance = read_provenance(run.model)
    assert provenance is not None
    for folder in (run.adapters, run.adapters / "merged"):
        other = read_provenance(folder)
        assert other is not None
        assert other.weights_sha256 == {path.name: sha256(path) for path in weights_files(folder)}
        assert replace(other, weights_sha256=provenance.weights_sha256) == provenance
    computed = "float64" if "--trainer.precision=64-true" in options else "float32"
    stored = "bfloat16" if half or "bf16" in str(options) else computed
    assert provenance.merging == {"computed": computed, "stored_as": stored}
    assert {value.dtype for value in saved.values()} == {getattr(torch, stored)}
    frozen = {"transformer.wte.weight", "lm_head.weight", "transformer.ln_f.weight"}
    if stored != "bfloat16" or half:
        assert all(torch.equal(saved[name], before[name].to(saved[name].dtype)) for name in frozen)
    assert not torch.equal(saved["transformer.h.0.mlp.fc.weight"], before["transformer.h.0.mlp.fc.weight"])
    size = sum(path.stat().st_size for path in run.adapters.iterdir() if path.name.startswith("adapters"))
    assert size < 40_000


def test_fit_evaluate_and_export_take_adapters(run: RunFolder, tmp_path: Path) -> None:
    assert not run.model.exists()
    assert {"adapters.safetensors", "adapters.yaml", "tokenizer.json", "provenance.yaml", "model_config.yaml"} <= {
        path.name for path in run.adapters.iterdir()
    }
    adapters = copied(run, tmp_path)
    sft = fit(tmp_path / "sft", base=adapters, data="SFTData").model
    assert sft.checkpoint_dir == adapters / "merged"
    main(["export", f"--checkpoint_dir={adapters}", f"--out_dir={tmp_path}/hf"])
    exported = load_file(tmp_path / "hf" / "model.safetensors")["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"]
    assert torch.equal(exported, weights(adapters / "merged")["transformer.h.0.mlp.fc.weight"])
    tasks = ["--tasks", f"{ROOT}/configs/evaluation/markov.yaml/old", "--limit=4", "--device=cpu"]
    world = f"--world={json.dumps(json.loads(WORLD)['init_args'])}"
    main(["evaluate", f"--model={adapters}", *tasks, world, f"--output={tmp_path}/out"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["weights_sha256"] == weights_hash(adapters / "merged")


def test_onto_a_base_that_was_moved_the_command_merges(run: RunFolder, base: Path, tmp_path: Path) -> None:
    adapters, moved = copied(run, tmp_path), Path(shutil.copytree(base, tmp_path / "moved"))
    text = (adapters / "adapters.yaml").read_text()
    (adapters / "adapters.yaml").write_text(text.replace(str(base), "nowhere/base"))
    with pytest.raises(FileNotFoundError, match=r"its base is missing .*nowhere/base.* --with BASE --to litgpt"):
        base_folder(adapters)
    with pytest.raises(FileNotFoundError, match=r"it holds adapters, merge them first: .* --to litgpt --out_dir OUT"):
        check_checkpoint_dir(adapters)
    given = ["export", f"--checkpoint_dir={adapters}", f"--with={moved}", "--to=litgpt"]
    main([*given, f"--out_dir={tmp_path}/out"])
    assert equal(weights(tmp_path / "out"), weights(base_folder(run.adapters)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    other = dict(weights(moved))
    other["lm_head.weight"] = other["lm_head.weight"] + 1
    torch.save(other, moved / "lit_model.pth")
    with pytest.raises(SystemExit):
        main([*given, f"--out_dir={tmp_path}/other"])
    with pytest.raises(ValueError, match=r"was trained on weights of SHA-256 \w{64}, .*moved has \w{64}: expected"):
        merge_adapters(adapters, tmp_path / "other", moved)


def test_damaged_adapters_are_refused(run: RunFolder, tmp_path: Path) -> None:
    adapters = copied(run, tmp_path)
    tensors, text = adapters / "adapters.safetensors", (adapters / "adapters.yaml").read_text()
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapters\.safetensors: SHA-256 \w{64}, expected \w{64}"):
        base_folder(adapters)
    shutil.copyfile(run.adapters / "adapters.safetensors", tensors)
    for old, new, message in (
        ("r: 8", "r: 0", "cannot be read as adapters .r = 0: expected at least 1"),
        ("r: 8", "rank: 8", "cannot be read as adapters .*unexpected keyword argument 'rank'"),
        ("key: false", "key: true", r"qkv.lora_A: expected \(24, 16\), found \(16, 16\)"),
        ("head: false", "head: true", r"lm_head.lora_A: expected \(8, 16\), found none"),
        ("base_hash:", "hash:", "missing base_hash"),
        ("stored_as: float32", "stored_as: save", "expected computed and stored_as, each a dtype of torch"),
        ("method:", "method: [", "expected YAML"),
    ):
        (adapters / "adapters.yaml").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            base_folder(adapters)
    assert not (adapters / "merged").exists()
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match="missing adapters.safetensors"):
        read_adapters(adapters)


def test_adapters_that_cannot_be_written_to_are_merged_in_the_cache(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = copied(run, tmp_path)

    def refuse(out_dir: Path, *rest: Any) -> Any:
        if out_dir.parent == adapters:
            raise PermissionError(13, "Permission denied", str(out_dir))
        return new_folder(out_dir, *rest)

    monkeypatch.setattr("lit_consistency.methods.adapters.new_folder", refuse)
    monkeypatch.setattr(module, "default_cache_dir", lambda: tmp_path / "cache" / "tokens")
    made = base_folder(adapters)
    assert made.parent == tmp_path / "cache" / "models"
    assert base_folder(adapters) == made
    assert equal(weights(made), weights(base_folder(run.adapters)))


def test_adapters_alone_need_lora_and_a_base(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_model = adapters with the method full and a base: expected LoRA"):
        fit(tmp_path, ONLY, base=base)
    with pytest.raises(ValueError, match="save_model = adapters with the method lora and no base: expected LoRA"):
        fit(tmp_path, ONLY, *LORA)


def test_final_dir_takes_adapters_where_these_alone_are_saved(base: Path, tmp_path: Path) -> None:
    fit(tmp_path, *LORA, ONLY, f"--run.final_dir={tmp_path}/mine", base=base)
    assert read_adapters(tmp_path / "mine").base == base
    assert not (tmp_path / "run" / "adapters").exists()
