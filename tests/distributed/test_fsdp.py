"""Shards on a mesh of one process: building, gathering, other weights for a while, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_consistency.distributed.dtensors import KeptShards, full_tensor, local_shard, shard_like, zeros_sharded_as
from lit_consistency.distributed.fsdp import data_mesh, gathered, mixed_precision, reshard, shard, weights_of
from lit_consistency.distributed.gradients import clip_gradients, norm_of, norm_parts
from lit_consistency.methods import Full, LoRA
from lit_consistency.methods.build import build_model
from lit_consistency.model import GPT, blocks
from lit_consistency.optimizers import AdamW, parameter_groups
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_model

TOKENS = torch.arange(12).view(2, 6)


@pytest.fixture
def mesh() -> DeviceMesh:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))


def sharded(mesh: DeviceMesh, precision: str = "32-true") -> tuple[GPT, GPT]:
    """A model, and the same in shards."""
    model, other = tiny_model("pythia-14m"), tiny_model("pythia-14m")
    shard(other, mesh, precision)
    return model, other


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_every_parameter_is_a_shard_of_its_shape(mesh: DeviceMesh) -> None:
    model, other = sharded(mesh)
    for (name, parameter), (also, expected) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        assert isinstance(parameter, DTensor)
        assert name == also
        assert parameter.shape == expected.shape
    assert torch.equal(other(TOKENS), model(TOKENS))
    assert same(gathered(other.state_dict(), keep=True), model.state_dict())
    assert gathered(other.state_dict(), keep=False) == {}


def test_one_mesh_for_our_strategy_and_for_lightnings(mesh: DeviceMesh) -> None:
    both = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    ours = data_mesh(both)
    assert ours is not None
    assert ours.mesh_dim_names == ("data_parallel",)
    assert data_mesh(mesh) is mesh
    assert data_mesh(None) is None


@pytest.mark.parametrize(
    ("precision", "param", "reduce"),
    [
        ("32-true", None, None),
        ("64-true", None, None),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("bf16-true", None, torch.float32),
    ],
)
def test_gradients_are_reduced_at_least_in_float32(
    precision: str, param: torch.dtype | None, reduce: torch.dtype | None
) -> None:
    policy = mixed_precision(precision)
    assert (policy.param_dtype, policy.reduce_dtype) == (param, reduce)


def test_mixed_precision_keeps_float32_shards_and_rotary_angles(mesh: DeviceMesh) -> None:
    model, other = sharded(mesh, "bf16-mixed")
    logits = other(TOKENS)
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert other.cos.dtype == torch.float32
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in other.parameters() if p.grad is not None} == {torch.float32}
    expected = model(TOKENS)
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("in_shards", [True, False])
def test_other_weights_for_a_while_leave_no_trace(in_shards: bool, mesh: DeviceMesh) -> None:
    """Also after a forward without backward, which leaves a sharded root gathered."""
    model, other = sharded(mesh)
    tested = other if in_shards else tiny_model("pythia-14m")
    start = KeptShards(dict(tested.named_parameters()))
    with torch.no_grad():
        for parameter in tested.parameters():
            local_shard(parameter).mul_(1.5)
        changed = tested(TOKENS)
        with weights_of(tested, start.shards):
            assert torch.equal(tested(TOKENS), model(TOKENS))
        assert torch.equal(tested(TOKENS), changed)
        reshard(tested)
    for name, parameter in tested.named_parameters():
        assert torch.equal(full_tensor(parameter), 1.5 * model.get_parameter(name))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch reads when it traces a block
@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_and_recomputed_blocks_have_the_same_gradients(
    compiled: bool, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BACKEND", "eager")
    torch._dynamo.reset()
    model, other = tiny_model("pythia-14m"), tiny_model("pythia-14m")
    how = blocks.Blocks(other.config, compile=compiled, activation_checkpointing="blocks")
    how.prepare(other, "cpu", TOKENS.size(1), 1)
    shard(other, mesh, "32-true")
    assert other.state_dict().keys() == model.state_dict().keys()
    for one in (model, other):
        one(TOKENS).square().sum().backward()
    for name, parameter in other.named_parameters():
        assert torch.equal(full_tensor(parameter.grad), model.get_parameter(name).grad)


def test_kept_shards_are_gathered_on_demand(mesh: DeviceMesh) -> None:
    model, other = sharded(mesh)
    kept = KeptShards(dict(other.named_parameters()))
    assert same({name: kept.full_tensor(name) for name in kept.names}, dict(model.state_dict()))
    assert not any(isinstance(tensor, DTensor) for tensor in kept.shards.values())


def test_changes_are_full_tensors(mesh: DeviceMesh) -> None:
    for method in (Full(), LoRA(r=2), LoRA(r=2, dora=True, key=False)):
        model = method.build(tiny_config("pythia-14m"))
        method.prepare(model)
        shard(model, mesh, "32-true")
        start = KeptShards({name: p for name, p in model.named_parameters() if p.requires_grad})
        with torch.no_grad():
            for parameter in model.parameters():
                local_shard(parameter).add_(0.5 if parameter.requires_grad else 0.0)
        changes = list(method.changes(model, start))
        assert changes
        for _, change, before in changes:
            assert not isinstance(change, DTensor)
            assert not isinstance(before, DTensor)
            assert change.abs().max() > 0


def test_a_checkpoint_is_read_into_shards_without_a_full_model(
    mesh: DeviceMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tiny_checkpoint(tmp_path / "base", "pythia-14m")
    devices = []

    def build(self: Full, config: object) -> GPT:
        model = GPT(config)  # type: ignore[arg-type]
        devices.append(model.lm_head.weight.device.type)
        return model

    monkeypatch.setattr(Full, "build", build)
    before = torch.get_rng_state()
    model = build_model(Full(), saved.config, tmp_path / "base", mesh, "32-true")
    assert devices == ["meta"]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(isinstance(p, DTensor) and p.requires_grad for p in model.parameters())
    assert torch.equal(model(TOKENS), saved(TOKENS))


def test_adapters_are_the_same_in_shards(mesh: DeviceMesh, tmp_path: Path) -> None:
    saved = tiny_checkpoint(tmp_path / "base", "pythia-14m")
    for method in (LoRA(r=2), LoRA(r=2, dora=True)):
        one, many = (
            build_model(method, saved.config, tmp_path / "base", where, "32-true").state_dict()
            for where in (None, mesh)
        )
        assert same(gathered(dict(many), keep=True), dict(one))


def test_weights_that_do_not_fit_are_refused_in_shards_too(mesh: DeviceMesh, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "base", "pythia-14m")
    with pytest.raises(ValueError, match=r"weights do not fit the model: .*expected \(.*, 16\), found \(.*, 32\)"):
        build_model(Full(), tiny_config("pythia-14m", n_embd=16, n_head=1), tmp_path / "base", mesh, "32-true")


def test_a_full_tensor_is_sharded_as_another(mesh: DeviceMesh) -> None:
    _, other = sharded(mesh)
    like = other.lm_head.weight
    tensor = torch.randn(like.shape)
    result = shard_like(tensor, like)
    assert isinstance(result, DTensor)
    assert result.placements == like.placements
    assert torch.equal(full_tensor(result), tensor)
    assert shard_like(tensor, tensor) is tensor


@pytest.mark.parametrize("by_value", [True, False])
def test_clipping_and_norm_are_those_of_one_device(by_value: bool, mesh: DeviceMesh) -> None:
    norms, gradients = [], []
    for model in sharded(mesh):
        optimizer = AdamW(parameter_groups(model))
        optimizer.param_groups[0]["orthogonalized"] = True  # left alone
        assert norm_parts(optimizer, 1) == {}
        model(TOKENS).square().sum().backward()
        norm = norm_of(norm_parts(optimizer, 1))
        assert not isinstance(norm, DTensor)
        norms.append(norm)
        clip_gradients(optimizer, 1e-3, by_value)
        gradients.append({n: full_tensor(p.grad) for n, p in model.named_parameters() if p.grad is not None})
        left, clipped = (
            [full_tensor(p.grad) for group in groups for p in group["params"] if p.grad is not None]
            for groups in (optimizer.param_groups[:1], optimizer.param_groups[1:])
        )
        greatest = max(float(g.abs().max()) for g in clipped) if by_value else float(nn.utils.get_total_norm(clipped))
        assert greatest == pytest.approx(1e-3, rel=1e-4)
        assert max(float(g.abs().max()) for g in left) > 1
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_takes_its_own_rows_of_a_tensor_and_no_more_memory(rank: int) -> None:
    """Five rows on four ranks, in chunks of two: 2, 2, 1, and none."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    tensor = torch.arange(15.0).view(5, 3)
    for mesh, placements, rows in (
        (line, [Shard(0)], [[0, 1], [2, 3], [4], []][rank]),
        (square, [Replicate(), Shard(0)], [[0, 1, 2], [3, 4]][rank % 2]),
    ):
        like = distribute_tensor(torch.zeros(5, 3), mesh, placements, src_data_rank=None)
        result = shard_like(tensor, like)
        assert torch.equal(local_shard(result), tensor[rows])
        assert local_shard(result).untyped_storage().nbytes() == 4 * 3 * len(rows)
        assert (result.shape, result.stride()) == (like.shape, like.stride())
        assert local_shard(result).shape == local_shard(like).shape


def test_state_with_a_number_for_each_row_is_sharded_as_its_parameter() -> None:
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=1, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    parameter = distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)], src_data_rank=None)
    for shape, rows in (((5, 3), 2), ((5, 1), 2), ((), None), ((16,), None)):
        result = zeros_sharded_as(parameter, torch.Size(shape), torch.float32)
        assert result.shape == shape
        assert isinstance(result, DTensor) == (rows is not None)
        assert rows is None or len(local_shard(result)) == rows
    assert not isinstance(zeros_sharded_as(torch.zeros(5, 3), torch.Size((5, 1)), torch.float32), DTensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_gradients_of_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """float16 overflows above 65,504, and bfloat16 has three digits."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (300, 20_000)]
    for parameter in parameters:
        parameter.grad = (2000 * torch.randn(len(parameter), generator=generator)).to(dtype)
    expected = torch.cat([p.grad.double() for p in parameters if p.grad is not None]).norm()
    norm = norm_of(norm_parts(torch.optim.SGD(parameters), 1))
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 65_504
