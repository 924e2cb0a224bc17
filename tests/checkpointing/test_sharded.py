"""Checkpoint folders of sharded runs: whole or not at all, hashed, read by one process, and never executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_consistency.checkpointing.io import AtomicCheckpointIO, config_of, newest_valid
from lit_consistency.checkpointing.manifest import CheckpointError, manifest_of
from lit_consistency.checkpointing.sharded import (
    fill,
    named_state,
    numbered_state,
    read_folder,
    read_meta,
    save_folder,
    stored_tensors,
)


@pytest.fixture(autouse=True)
def _group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def checkpoint(step: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    torch.manual_seed(step)
    model = nn.Linear(3, 5)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(list(model.named_parameters()), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer_states": [named_state(optimizer)]}
    return model, optimizer, {**state, "global_step": step, "config": "a: 1", "betas": (0.9, 0.95)}


def saved(folder: Path, step: int = 3) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    save_folder(checkpoint(step)[2], path)
    return path


def test_what_is_saved_is_read_by_one_process(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model, optimizer, _ = checkpoint()
    dist.destroy_process_group()
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert found["global_step"] == 3
    assert found["betas"] == (0.9, 0.95)
    single = nn.Linear(3, 5)
    single.load_state_dict(found["state_dict"])
    assert torch.equal(single.weight, model.weight.to_local())  # type: ignore[operator]
    other = torch.optim.AdamW(list(single.named_parameters()), lr=0.5)
    other.load_state_dict(found["optimizer_states"][0])
    assert other.param_groups[0]["lr"] == 0.1
    for mine, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert mine["step"] == 1
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"].to_local())


def test_the_configuration_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert config_of(path) == "a: 1"
    assert "state_dict" not in read_meta(path)
    shapes = {name: tuple(size) for name, (size, _) in stored_tensors(path).items()}
    assert shapes["model/weight"] == shapes["optimizer0/weight/exp_avg_sq"] == (5, 3)
    assert shapes["optimizer0/bias/step"] == ()


def test_names_and_numbers_are_the_same_state() -> None:
    _, optimizer, _ = checkpoint()
    expected, found = optimizer.state_dict(), numbered_state(named_state(optimizer))
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys() == {0, 1}
    assert all(
        found["state"][i][key] is value for i, entry in expected["state"].items() for key, value in entry.items()
    )


def test_parameters_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected groups of named parameters"):
        named_state(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "meta.pt"])
def test_a_damaged_file_of_the_newest_falls_back_to_the_one_before(file: str, tmp_path: Path) -> None:
    before, newest = saved(tmp_path, 3), saved(tmp_path, 6)
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    found, (reason,) = newest_valid(tmp_path)
    assert found == before
    assert f"{file}: sha256" in reason


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(CheckpointError, match=rf"could not save the checkpoint {path}: .*No space left"):
            save_folder(checkpoint(4)[2], path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    AtomicCheckpointIO().load_checkpoint(path)
    save_folder(checkpoint(4)[2], path)  # what the failed save has left is in nobody's way
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 4
    assert not list(tmp_path.glob(".*"))


def test_a_save_that_was_killed_before_its_manifest_does_not_count(tmp_path: Path) -> None:
    before, newest = saved(tmp_path, 3), saved(tmp_path, 6)
    manifest_of(newest).unlink()
    assert newest_valid(tmp_path)[0] == before


def test_a_removed_folder_is_gone_with_its_manifest(tmp_path: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(saved(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_index_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for reduced in ((os.mkdir, (str(tmp_path / "canary"),)), (eval, ("1",)), (getattr, ("text", "upper"))):

        class Poison:
            def __reduce__(self, to: Any = reduced) -> Any:
                return to

        (path / ".metadata").write_bytes(pickle.dumps(Poison()))
        with pytest.raises(CheckpointError, match="not expected in the index"):
            read_folder(path)
    assert not (tmp_path / "canary").exists()


def test_an_index_cannot_change_a_class(tmp_path: Path) -> None:
    """The instruction BUILD with a pair as its state sets attributes, of whatever lies on the stack."""
    path = saved(tmp_path)
    before = Metadata.__init__
    for name in (b"torch.distributed.checkpoint.metadata\nMetadata\n", b"torch\nSize\n"):
        state = b"(N}" + b"\x8c\x08__init__" + b"K\x01" + b"s" + b"t"
        (path / ".metadata").write_bytes(b"\x80\x04c" + name + state + b"b.")
        with pytest.raises(CheckpointError, match="an index sets values, not classes"):
            read_folder(path)
    assert Metadata.__init__ is before


def test_an_index_imports_no_module_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    (path / ".metadata").write_bytes(b"cplanted\nname\n.")
    with pytest.raises(CheckpointError, match=r"planted\.name: not expected in the index"):
        read_folder(path)


def test_a_name_that_leads_out_of_the_index_module_is_refused(tmp_path: Path) -> None:
    """Protocol 4 follows dots, and modules hold what they import."""
    path = saved(tmp_path)
    for name in ("os.getcwd", "ThreadPoolExecutor", "FileSystemReader.read_metadata"):
        module = b"torch.distributed.checkpoint.filesystem"
        strings = [b"\x8c" + bytes([len(text)]) + text for text in (module, name.encode())]
        (path / ".metadata").write_bytes(b"\x80\x04" + b"".join(strings) + b"\x93.")
        with pytest.raises(CheckpointError, match="not expected in the index|Can't get attribute"):
            read_folder(path)


def test_a_tensor_that_is_not_in_the_folder_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"model/other: expected \(2,\), found nothing"):
        fill({"model/other": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"model/weight: expected \(2, 2\), found \(5, 3\)"):
        fill({"model/weight": torch.zeros(2, 2)}, path)
