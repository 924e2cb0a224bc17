"""A finetuning that begins with the moments of its base: the first step by hand, on one process and on two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_consistency.cli.fit import ConsistencyCLI
from lit_consistency.distributed.optimizer_state import FILE, check_class
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import changed_on_purpose, equal, finish, fit, largest_difference, start, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is now trained with SGD, of another family")
DOUBLE = ["--trainer.precision=64-true"]
CARRY = ["--model.carry_optimizer_state=true"]
KEEP = ["--run.save_optimizer_state=true"]
ONE = ["--trainer.max_steps=1"]
PLAIN_SGD = [*ONE, *DOUBLE, "--model.optimizer.init_args.momentum=0", "--model.optimizer.init_args.lr=1"]
CHECKPOINTS = ["--checkpoint.every_n_steps=2", "--checkpoint.keep=4"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roots of bases by optimizer; made when first asked for."""
    return tmp_path_factory.mktemp("bases")


def base_of(bases: Path, optimizer: str) -> Path:
    if not (bases / optimizer).exists():
        fit(bases / optimizer, *DOUBLE, *KEEP, *CHECKPOINTS, optimizer=optimizer)
    return bases / optimizer / "run" / "model"


def gradient(root: Path, base: Path) -> dict[str, torch.Tensor]:
    """Of the first step of a finetuning from the base: what SGD at rate 1 takes away from the weights."""
    before = weights(base)
    if not root.exists():
        fit(root, *PLAIN_SGD, base=base, data="SFTData", optimizer="sgd")
    return {name: before[name] - after for name, after in weights(root / "run" / "model").items()}


def finetune(root: Path, base: Path, optimizer: str, *more: str) -> ConsistencyCLI:
    return fit(root, *DOUBLE, *more, base=base, data="SFTData", optimizer=optimizer)


def test_the_first_step_of_adamw_is_that_of_the_saved_moments(bases: Path, tmp_path: Path) -> None:
    base = base_of(bases, "adamw")
    finetune(tmp_path, base, "adamw", *CARRY, *ONE)
    saved, after, grads = load_file(base / FILE), weights(tmp_path / "run" / "model"), gradient(tmp_path / "g", base)
    for name, before in weights(base).items():
        m = 0.9 * saved[f"{name}/exp_avg"] + 0.1 * grads[name]
        v = 0.999 * saved[f"{name}/exp_avg_sq"] + 0.001 * grads[name] ** 2
        t = 5  # the base has made four steps, and the correction goes on
        assert saved[f"{name}/step"] == 4
        step = 3e-4 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(after[name], before - step, rtol=0, atol=1e-12)
    finetune(tmp_path / "fresh", base, "adamw", *ONE)
    assert largest_difference(after, weights(tmp_path / "fresh" / "run" / "model")) > 1e-5
    record, provenance = RunFolder(tmp_path / "run").read_record(), read_provenance(tmp_path / "run" / "model")
    assert provenance is not None
    assert record["carried_optimizer_state"] == provenance.carried_optimizer_state == sha256(base / FILE)
    assert RunFolder(tmp_path / "fresh" / "run").read_record()["carried_optimizer_state"] is None


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "muon", "mofo"])
@pytest.mark.slow
def test_the_momentum_of_others_goes_on(optimizer: str, bases: Path, tmp_path: Path) -> None:
    base = base_of(bases, optimizer)
    finetune(tmp_path, base, optimizer, *CARRY, *KEEP, *ONE)
    before, after = load_file(base / FILE), load_file(tmp_path / "run" / "model" / FILE)
    grads = gradient(tmp_path / "g", base)
    assert before.keys() == after.keys()
    kinds = set()
    for key, value in before.items():
        name, _, kind = key.rpartition("/")
        kinds.add(kind)
        expected = {
            "momentum_buffer": {"sgd": 0.9, "muon": 0.95}.get(optimizer, 0) * value + grads[name],
            "exp_avg": 0.9 * value + 0.1 * grads[name],
            "exp_avg_sq": 0.999 * value + 0.001 * grads[name] ** 2,
            "step": value + 1,
        }[kind]
        torch.testing.assert_close(after[key], expected, rtol=1e-9, atol=1e-12)
    moments = {"exp_avg", "exp_avg_sq", "step"}
    assert kinds == {"sgd": {"momentum_buffer"}, "mofo": moments, "muon": {"momentum_buffer", *moments}}[optimizer]


@pytest.mark.slow
def test_a_step_checkpoint_has_the_state_and_the_counts_of_groups(bases: Path, tmp_path: Path) -> None:
    """Of two steps of Muon, and taken up by a run that is broken off: both parts of it equal a straight one."""
    checkpoints = base_of(bases, "muon").parent / "checkpoints"
    shutil.copytree(checkpoints.parent, tmp_path / "copy")
    named = tmp_path / "copy" / "checkpoints" / "step-2"
    each = "--checkpoint.every_n_steps=1"
    cli = finetune(tmp_path / "a", named, "muon", *CARRY, *KEEP, each)
    counted = {group["steps_taken"] for group in cli.trainer.optimizers[0].param_groups if "steps_taken" in group}
    assert counted == {2 + 4}
    model = RunFolder(tmp_path / "copy").series_model(2)
    assert cli.model.checkpoint_dir == model
    saved = torch.load(checkpoints / "step-00000002.ckpt", weights_only=True)["optimizer_states"][0]
    (group,) = [g for g in saved["param_groups"] if "lm_head.weight" in g["param_names"]]
    number = group["params"][group["param_names"].index("lm_head.weight")]
    assert len({path.stat().st_mode for path in model.iterdir()}) == 1, "readable as the others"
    assert torch.equal(load_file(model / FILE)["lm_head.weight/exp_avg"], saved["state"][number]["exp_avg"])
    before = weights(tmp_path / "a" / "run" / "model")
    resume = f"--ckpt_path={tmp_path}/a/run/checkpoints/step-00000003.ckpt"
    finetune(tmp_path / "a", named, "muon", *CARRY, *KEEP, each, resume)
    assert equal(before, weights(tmp_path / "a" / "run" / "model"))


@pytest.mark.slow
def test_what_cannot_be_carried_is_refused_before_anything_is_written(bases: Path, tmp_path: Path) -> None:
    base = base_of(bases, "adamw")
    with pytest.raises(ValueError, match=r"holds the state of AdamW; expected model\.optimizer = AdamW, got Muon"):
        finetune(tmp_path, base, "muon", *CARRY)
    with pytest.raises(ValueError, match="with the method lora: expected full or a pull"):
        finetune(tmp_path, base, "adamw", *CARRY, "--model.method=lit_consistency.methods.LoRA")
    with pytest.raises(ValueError, match="save_optimizer_state = true with the method hft"):
        finetune(tmp_path, base, "adamw", *KEEP, "--model.method=lit_consistency.methods.HFT")
    with pytest.raises(ValueError, match="carry_optimizer_state = true: expected checkpoint_dir too"):
        fit(tmp_path, *CARRY)
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    state = load_file(base / FILE)
    (copy / FILE).write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="cannot be read, expected a file of this package"):
        check_class(copy, "AdamW")
    (copy / FILE).unlink()
    with pytest.raises(ValueError, match="holds no optimizer_state.safetensors; expected a base of a run with"):
        finetune(tmp_path, copy, "adamw", *CARRY)
    for name, message in (("shape", "exp_avg of lm_head.weight has shape"), ("missing", r"no state of \['lm_head.w")):
        write_altered(base, copy, state, name)
        changed_on_purpose(copy)
        with pytest.raises(ValueError, match=message):
            finetune(tmp_path, copy, "adamw", *CARRY)
    assert not (tmp_path / "run").exists()


def write_altered(base: Path, folder: Path, state: dict[str, torch.Tensor], how: str) -> None:
    """The state with the head's first moment of another shape, or without the head."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(base / FILE, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["lit_consistency"])
    altered = {key: value for key, value in state.items() if how == "shape" or not key.startswith("lm_head.weight/")}
    if how == "shape":
        altered["lm_head.weight/exp_avg"] = torch.zeros(3, 5, dtype=torch.float64)
    else:
        del header["values"]["lm_head.weight"]
    save_file(altered, folder / FILE, metadata={"lit_consistency": json.dumps(header)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "optimizer"), [("ddp", "adamw"), ("ddp", "muon"), ("fsdp2", "adamw"), ("fsdp2", "muon")]
)
def test_two_processes_carry_and_save_what_one_does(strategy: str, optimizer: str, bases: Path, tmp_path: Path) -> None:
    base = base_of(bases, optimizer)
    options = [f"--model.checkpoint_dir={base}", *DOUBLE, *CARRY, *KEEP]
    process = start(tmp_path / "two", *options, devices=2, strategy=strategy, optimizer=optimizer, data="SFTData")
    finetune(tmp_path / "one", base, optimizer, *CARRY, *KEEP)
    finish(process)
    one, two = (tmp_path / name / "run" / "model" for name in ("one", "two"))
    assert largest_difference(weights(one), weights(two)) < 1e-9
    assert largest_difference(load_file(one / FILE), load_file(two / FILE)) < 1e-9
