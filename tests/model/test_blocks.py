"""Blocks compiled and recomputed in training: the same gradients, less memory, few programs, no other names.

Programs are traced and run as they are (backend ``eager``), which takes a second; the slow tests compile them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from litgpt.model import Block
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from lit_consistency.checkpointing.io import checkpoints
from lit_consistency.methods import HFT, LoRA
from lit_consistency.model import DocumentMask, blocks
from lit_consistency.model.blocks import WORTH_COMPILING, Blocks, missing_compiler
from tests.model.tiny_models import tiny_config, tiny_model
from tests.runs import equal, fit, weights

# torch asks for the gradient of a block's input when it traces one
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
LENGTH = 64
DROPOUT = LoRA(dropout=0.3)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """What has been compiled since the test began, from an empty cache; code is not generated."""
    monkeypatch.setattr(blocks, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


def model_of(method: Any = None) -> DocumentMask:
    """Three layers, of which a method is trained; adapters that change something from the first step on."""
    plain = tiny_model("pythia-14m", n_layer=3)
    if method is None:
        return plain
    torch.manual_seed(0)
    model = method.build(plain.config)
    method.load(model, plain.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.arange(parameter.numel()).view_as(parameter).cos())
    method.prepare(model)
    return model


def run_as(model: DocumentMask, micro_batches: int = 1, device: str = "cpu", **options: Any) -> Blocks:
    """Change the model's blocks, and say how they run then."""
    how = Blocks(model.config, **options)
    how.prepare(model, device, LENGTH, micro_batches)
    return how


def gradients(model: DocumentMask, length: int, packed: bool = False) -> dict[str, Tensor]:
    """Of a loss of two rows of tokens, and the loss itself."""
    model.zero_grad()
    torch.manual_seed(length)
    tokens = torch.randint(0, 96, (2, length))
    place = torch.arange(length).expand(2, -1)
    states = model.document_states(tokens, *((place % 20, place // 20) if packed else ()))
    loss = states.square().sum()
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


def kept_bytes(model: DocumentMask) -> int:
    """Bytes that the forward keeps for the backward, beside the parameters."""
    storages = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.document_states(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert states.requires_grad
    return sum(kept.values())


# -------------------- recomputed


@pytest.mark.parametrize("method", [None, DROPOUT], ids=["full", "lora"])
@pytest.mark.parametrize("what", ["blocks", "attention", "mlp", 2])
def test_recomputing_changes_no_gradient_and_keeps_less(what: Any, method: Any) -> None:
    """With dropout too, whose random numbers are drawn again; the first input of an adapted model has no gradient."""
    plain, model = model_of(method), model_of(method)
    run_as(model, activation_checkpointing=what)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert equal(gradients(model, LENGTH, packed=True), gradients(plain, LENGTH, packed=True))
    share = kept_bytes(model) / kept_bytes(plain)
    assert share < {"blocks": 0.1, "attention": 0.7, "mlp": 0.7, 2: 0.4}[what]


def test_all_blocks_keep_their_inputs_alone() -> None:
    """By hand: n_embd numbers at each token and layer, one more for the norm behind, and its own two."""
    model = model_of()
    run_as(model, activation_checkpointing="blocks")
    a_tensor = 2 * LENGTH * 32 * 4
    # tokens, int64; mean and standard deviation of the last norm
    beside = 2 * LENGTH * 8 + 2 * 2 * LENGTH * 4
    assert kept_bytes(model) == 4 * a_tensor + beside


# -------------------- compiled


def test_rows_of_any_length_share_two_programs(graphs: dict[str, int]) -> None:
    """Those as long as ``block_size`` have the first, all others the second; three layers share both."""
    plain, model = model_of(), model_of()
    assert run_as(model, compile=True).is_compiled
    assert model.state_dict().keys() == plain.state_dict().keys()
    for length, n_programs in ((LENGTH, 1), (24, 2), (40, 2), (LENGTH, 2)):
        assert equal(gradients(model, length), gradients(plain, length))
        assert graphs["unique_graphs"] == n_programs
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_usual_length_is_no_width_of_a_model() -> None:
    assert [blocks.largest_prime(n) for n in (1, 2, 3, 16, 64, 1024)] == [2, 2, 3, 13, 61, 1021]


def test_what_measures_runs_plain_blocks(graphs: dict[str, int]) -> None:
    plain, model = model_of(), model_of()
    run_as(model, compile=True, activation_checkpointing="blocks")
    tokens = torch.arange(LENGTH)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))
    model.eval()
    assert torch.equal(model(tokens), plain(tokens))
    assert not graphs["unique_graphs"]


def test_documents_and_frozen_matrices_are_compiled(graphs: dict[str, int]) -> None:
    """Even and odd layers have other matrices frozen, and a program each."""
    plain, model = model_of(HFT()), model_of(HFT())
    run_as(model, compile=True, activation_checkpointing="attention")
    assert equal(gradients(model, LENGTH, packed=True), gradients(plain, LENGTH, packed=True))
    assert graphs["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_copy_has_weights_of_its_own(graphs: dict[str, int]) -> None:
    model = model_of()
    run_as(model, compile=True, activation_checkpointing=2)
    copied, before = deepcopy(model), gradients(model_of(), LENGTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert equal(gradients(copied, LENGTH), before)


def test_a_compiler_that_fails_is_told_once_and_done_without(
    graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(blocks, "BACKEND", fail)
    monkeypatch.setattr(blocks, "missing_compiler", lambda device: None)
    model = model_of()
    assert run_as(model, device="cuda", micro_batches=WORTH_COMPILING).is_compiled
    with pytest.warns(UserWarning, match="do not compile and run slower.*no space left") as caught:
        assert equal(gradients(model, LENGTH), gradients(model_of(), LENGTH))
    assert len(caught) == 1
    required = model_of()
    run_as(required, compile=True)
    with pytest.raises(RuntimeError, match="compile = true: the blocks do not compile"):
        gradients(required, LENGTH)


def test_rows_whose_length_cannot_be_left_open_run_plainly(graphs: dict[str, int]) -> None:
    """As with LoRA on a CPU; those of the full length are compiled all the same."""

    def fixed(*_: Any) -> Any:
        raise ConstraintViolationError("the code specialized it to be a constant")

    model = model_of()
    run_as(model, compile=True)
    program = model.transformer.h[0].program
    expected = [gradients(model_of(), length) for length in (24, 40)]
    with mock.patch.object(program, "compiled", fixed):
        with pytest.warns(UserWarning, match="packing: true"):
            assert equal(gradients(model, 24), expected[0])
        assert equal(gradients(model, 40), expected[1])  # a warning would be an error
    gradients(model, LENGTH)
    assert graphs["unique_graphs"] == 1


def test_blocks_are_compiled_by_themselves_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiles(device: str, micro_batches: int, family: str = "pythia-14m") -> bool:
        model = tiny_model(family)
        found = run_as(model, device=device, micro_batches=micro_batches).is_compiled
        assert (type(model.transformer.h[0]) is Block) != found
        return found

    monkeypatch.setattr(blocks, "missing_compiler", lambda device: None)
    long = WORTH_COMPILING // 2  # of two layers
    assert compiles("cuda", long)
    assert not compiles("cuda", long - 1)
    assert not compiles("cpu", long)
    assert not compiles("cuda", long, "Gemma-2-2b")
    assert not compiles("cuda", long, "Mixtral-8x7B-v0.1")
    monkeypatch.setattr(blocks, "missing_compiler", lambda device: "no Triton")
    assert not compiles("cuda", long)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("pythia-14m", {"activation_checkpointing": 0}, "activation_checkpointing = 0: expected blocks, attention"),
        ("pythia-14m", {"activation_checkpointing": True}, "activation_checkpointing = True: expected blocks"),
        ("pythia-14m", {"activation_checkpointing": "all"}, "activation_checkpointing = all: expected blocks"),
        ("pythia-14m", {"activation_checkpointing": 3}, "expected at most n_layer = 2"),
        ("Gemma-2-2b", {"compile": True}, "compile = true with .*sliding_window_size = "),
        ("Mixtral-8x7B-v0.1", {"compile": True}, "compile = true with .*n_expert = 4"),
    ],
)
def test_what_cannot_be_is_refused(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blocks(tiny_config(family), **options)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: _raise())
    with pytest.raises(ValueError, match=r"compile = true: no C\+\+ compiler"):
        Blocks(tiny_config("pythia-14m"), compile=True)


def _raise() -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler


# -------------------- runs

SHORT_ROWS = ["--data.init_args.packing=false", "--data.init_args.micro_batch_size=2", "--trainer.max_steps=6"]
COMPILED = ["--model.compile=true", "--model.activation_checkpointing=1", *SHORT_ROWS]


def test_a_run_says_how_its_blocks_ran(graphs: dict[str, int], tmp_path: Path) -> None:
    cli = fit(tmp_path, *COMPILED, "--trainer.max_steps=1", data="SFTData")
    assert type(cli.model.gpt.transformer.h[0]).__name__ == "CompiledRecomputedBlock"
    assert graphs["unique_graphs"] == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["blocks"] == {"compiled": True, "activation_checkpointing": 1}


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_the_one_that_was_not(graphs: dict[str, int], tmp_path: Path) -> None:
    """Rows of many lengths: after the stop, others come first than did at the start."""
    half = ["--checkpoint.every_n_steps=3", "--trainer.max_epochs=3"]
    fit(tmp_path / "plain", *SHORT_ROWS, data="SFTData")
    assert not graphs["unique_graphs"]
    fit(tmp_path / "straight", *COMPILED, *half, data="SFTData")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("plain", "straight")))
    assert graphs["unique_graphs"] == 1
    path = checkpoints(tmp_path / "straight" / "run" / "checkpoints")[0]
    torch._dynamo.reset()
    fit(tmp_path / "rest", *COMPILED, *half, f"--ckpt_path={path}", data="SFTData")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("straight", "rest")))


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler("cpu") is not None, reason=f"{missing_compiler('cpu')}")
@pytest.mark.filterwarnings("ignore:rows shorter than block_size")  # of LoRA
@pytest.mark.parametrize(("method", "what"), [(None, "mlp"), (LoRA(), "blocks"), (HFT(), None)])
def test_generated_code_computes_the_same(what: Any, method: Any) -> None:
    """In float64, where another order of sums shows in the last digits alone."""
    plain, model = model_of(method).double(), model_of(method).double()
    run_as(model, compile=True, activation_checkpointing=what)
    for length, packed in ((24, False), (40, False), (LENGTH, True)):
        found, expected = gradients(model, length, packed), gradients(plain, length, packed)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-12 * (1 + value.abs().max()), name


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler("cpu") is not None, reason=f"{missing_compiler('cpu')}")
def test_a_run_of_generated_code_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    half = ["--checkpoint.every_n_steps=3", "--trainer.max_epochs=3", "--trainer.precision=bf16-mixed"]
    fit(tmp_path / "straight", *COMPILED, *half, data="SFTData")
    path = checkpoints(tmp_path / "straight" / "run" / "checkpoints")[0]
    torch._dynamo.reset()
    fit(tmp_path / "rest", *COMPILED, *half, f"--ckpt_path={path}", data="SFTData")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("straight", "rest")))
