"""A sharded model has the numbers of a whole one, and no rank has held more of it than its shards and one tensor."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_consistency.methods import Full, LoRA, Method, build
from lit_consistency.methods.draws import Draws
from lit_consistency.model import GPT, model_config

SIZES = {"n_layer": 6, "n_embd": 32, "n_head": 4, "block_size": 16, "padded_vocab_size": 96}


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """A process group without processes; the test's own process is the second rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    dist.destroy_process_group()


class Held(TorchDispatchMode):
    """Most bytes that tensors made on the CPU within have had together at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, weakref.ref[Tensor]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and not isinstance(tensor, DTensor):
                self.made[id(tensor)] = weakref.ref(tensor)
        alive = [tensor for made in self.made.values() if (tensor := made()) is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        self.most = max(self.most, sum(storages.values()))
        return result


def config(name: str = "pythia-14m") -> Any:
    return model_config(name, None, SIZES, None)


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.to_local() if isinstance(p, DTensor) else p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "name", "dtype"),
    [
        ("new", "pythia-14m", torch.float32),
        ("new", "Llama-3.2-1B", torch.bfloat16),
        ("new with adapters", "pythia-14m", torch.float32),
        ("adapters", "pythia-14m", torch.float32),
        ("adapters", "Llama-3.2-1B", torch.bfloat16),
        ("weights", "Llama-3.2-1B", torch.float32),
    ],
)
def test_shards_are_those_of_the_whole_model(
    kind: str, name: str, dtype: torch.dtype, four_ranks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Method = LoRA(r=4) if "adapters" in kind else Full()
    before = torch.get_default_dtype()
    base = None
    if not kind.startswith("new"):  # the file is mapped, and its pages are nobody's memory
        torch.manual_seed(3)
        torch.save(GPT(config(name)).state_dict(), tmp_path / "lit_model.pth")
        base, mapped = tmp_path, build.load_weights(tmp_path)
        monkeypatch.setattr(build, "load_weights", lambda folder: mapped)
    torch.set_default_dtype(dtype)  # as Lightning does for bf16-true
    try:
        whole = build.build_model(method, config(name), base, None, "32-true")
        mesh = init_device_mesh("cpu", (4,))
        with Held() as held:
            model = build.build_model(method, config(name), base, mesh, "32-true")
    finally:
        torch.set_default_dtype(before)
    expected, found = numbers(whole), numbers(model)
    assert found.keys() == expected.keys()
    for key, shard in found.items():
        chunks = expected[key].chunk(4)
        assert torch.equal(shard, chunks[1] if len(chunks) > 1 else chunks[0][:0]), key
    bytes_of_all = sum(p.nbytes for p in whole.parameters())
    # a quarter is this rank's; those of a checkpoint are cut out of it, in float32, before they are loaded
    most = 0.5 if kind.startswith("new") else 0.35 + 0.25 * 4 / dtype.itemsize
    assert 0.2 * bytes_of_all < held.most < most * bytes_of_all
    trained = {n: p.requires_grad for n, p in whole.named_parameters()}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trained
    torch.testing.assert_close((model.cos, model.sin), (whole.cos, whole.sin), rtol=0, atol=0)


def test_the_generator_ends_where_a_cpu_would_leave_it() -> None:
    def build_layers(device: str) -> Tensor:
        torch.manual_seed(0)
        with torch.device(device), Draws():
            nn.Linear(7, 33)
            nn.Embedding(19, 5)
        return torch.rand(3)

    assert torch.equal(build_layers("meta"), build_layers("cpu"))
