"""Embedding and head as one weight, from the file to the optimizer and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jsonargparse import set_config_read_mode, set_docstring_parse_options
from litgpt.__main__ import main as litgpt
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from lit_consistency.distributed.dtensors import full_tensor
from lit_consistency.distributed.fsdp import gathered
from lit_consistency.methods import HFT, Full, LoRA, Method
from lit_consistency.methods.build import build_model
from lit_consistency.model import GPT, init_weights, load_weights, model_config, save_model, token_nll
from lit_consistency.model.interpolation import export_interpolated
from lit_consistency.model.tying import EMBEDDING, HEAD, is_tied
from lit_consistency.optimizers import group_table, parameter_groups
from tests.model.tiny_models import tiny_config, tiny_model, tiny_provenance, tiny_tokenizer
from tests.runs import SCRATCH, equal, finish, fit, largest_difference, start, weights

TIED = "--model.overrides.tie_embeddings=true"
TOKENS = torch.arange(24).view(2, 12)


def tied_checkpoint(folder: Path, **overrides: Any) -> Path:
    model = tiny_model("Llama-3.2-1B", tie_embeddings=True, **overrides)
    tokenizer = tiny_tokenizer(folder.parent / "tokenizer") if "vocab_size" in overrides else None
    save_model(folder, model.state_dict(), model.config, tokenizer, tiny_provenance())
    return folder


def build(folder: Path, method: Method | None = None, **overrides: Any) -> GPT:
    return build_model(method or Full(), model_config(None, folder, overrides, None), folder, None, "32-true")


def one_weight(folder: Path) -> bool:
    state = weights(folder)
    return state[HEAD].untyped_storage().data_ptr() == state[EMBEDDING].untyped_storage().data_ptr()


def test_a_tied_model_trains_one_parameter_in_one_group(tmp_path: Path) -> None:
    model = build(tied_checkpoint(tmp_path / "base"))
    assert model.lm_head.weight is model.transformer.wte.weight
    rows = [row for row in group_table(parameter_groups(model)) if row["role"] in ("embedding", "head")]
    assert [(row["role"], row["tensors"], row["parameters"]) for row in rows] == [("embedding", 1, 96 * 32)]


def test_its_gradient_is_the_sum_of_those_of_embedding_and_head() -> None:
    tied, apart = tiny_model("Llama-3.2-1B", tie_embeddings=True), GPT(tiny_config("Llama-3.2-1B"))
    apart.load_state_dict(tied.state_dict())
    for model in (tied, apart):
        token_nll(model(TOKENS), TOKENS.roll(-1, 1)).sum().backward()
    expected = apart.lm_head.weight.grad + apart.transformer.wte.weight.grad
    torch.testing.assert_close(tied.lm_head.weight.grad, expected)


def test_untying_is_said_with_the_counts(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "base")
    n = sum(parameter.numel() for parameter in build(folder).parameters())
    with pytest.warns(UserWarning, match=f"{n:,} parameters become {n + 96 * 32:,}; overrides.tie_embeddings = true"):
        model = build(folder, tie_embeddings=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == n + 96 * 32
    build(folder, LoRA(), tie_embeddings=False)  # neither is trained, so they stay equal, and nothing is to be said


def test_a_base_of_litgpt_whose_configuration_does_not_say(tmp_path: Path) -> None:
    """LitGPT's conversion writes one weight under both names, and its configuration knows nothing of it."""
    config = tiny_config("Llama-3.2-1B")
    state = tiny_model("Llama-3.2-1B", tie_embeddings=True).state_dict()
    save_model(tmp_path / "base", state, config, None, tiny_provenance())
    assert one_weight(tmp_path / "base")
    with pytest.warns(UserWarning, match="are trained apart"):
        build(tmp_path / "base")
    model = build(tmp_path / "base", tie_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("method", [LoRA(head=True), HFT(embedding=False), HFT(head=False)], ids=lambda m: m.name)
def test_a_method_that_would_tear_it_apart_is_refused(method: Method, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head = .*one weight.*tie_embeddings = false"):
        build(tied_checkpoint(tmp_path / "base"), method)


def test_two_weights_that_the_configuration_calls_one_are_refused(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "base")
    state = load_weights(folder)
    save_file({name: t.clone() + (name == HEAD) for name, t in state.items()}, folder / "lit_model.safetensors")
    (folder / "lit_model.pth").unlink()
    with pytest.raises(ValueError, match=r"lm_head.weight and transformer.wte.weight differ"):
        build(folder)
    with pytest.raises(ValueError, match="overrides.tie_embeddings = 'yes': expected bool"):
        model_config(None, folder, {"tie_embeddings": "yes"}, None)


@pytest.mark.filterwarnings("ignore:.*was not trained from")
def test_a_model_between_two_tied_ones_is_tied(tmp_path: Path) -> None:
    a, b = tied_checkpoint(tmp_path / "a"), tied_checkpoint(tmp_path / "b")
    state = {name: 2 * tensor for name, tensor in load_weights(b).items()}
    save_model(b, state, model_config(None, b, {}, None), None, tiny_provenance(), overwrite=True)
    export_interpolated(a, b, [0.5], tmp_path / "out")
    assert one_weight(tmp_path / "out")
    torch.testing.assert_close(weights(tmp_path / "out")[HEAD], 1.5 * weights(a)[HEAD])


@pytest.mark.slow
def test_a_run_stays_tied_to_its_end_and_into_the_next(tmp_path: Path) -> None:
    """Final model, step checkpoint as a base, resumed, adapters merged: one weight in each."""
    fit(tmp_path, TIED, "--checkpoint.every_n_steps=2", "--checkpoint.keep=3", "--run.name=base")
    base = tmp_path / "base" / "model"
    assert one_weight(base)
    assert is_tied(model_config(None, base, {}, None))
    fit(tmp_path, "--run.name=lora", "--model.method=lit_consistency.methods.LoRA", base=base)
    assert one_weight(tmp_path / "lora" / "model")
    fit(tmp_path, "--run.name=step", base=tmp_path / "base" / "checkpoints" / "step-2")
    assert one_weight(tmp_path / "step" / "model")
    before = weights(base)
    fit(
        tmp_path,
        TIED,
        "--run.name=base",
        "--run.overwrite=true",
        f"--ckpt_path={tmp_path}/base/checkpoints/step-00000002.ckpt",
    )
    assert equal(before, weights(base))


def test_shards_of_one_process_stay_tied(tmp_path: Path) -> None:
    """Memory for the shards is given to each name; afterwards both are one parameter again."""
    folder = tied_checkpoint(tmp_path / "base")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
    config = model_config(None, folder, {}, None)
    alone, sharded = build(folder), build_model(Full(), config, folder, mesh, "32-true")
    for model in (alone, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            token_nll(model(TOKENS), TOKENS.roll(-1, 1)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(list(sharded.parameters())) == len(list(alone.parameters()))
    assert full_tensor(sharded.lm_head.weight).data_ptr() == full_tensor(sharded.transformer.wte.weight).data_ptr()
    assert equal(gathered(sharded.state_dict(), keep=True), dict(alone.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_two_processes_equal_one(strategy: str, tmp_path: Path) -> None:
    double = ["--trainer.precision=64-true"]
    process = start(tmp_path / "two", *SCRATCH, TIED, *double, devices=2, strategy=strategy)
    fit(tmp_path / "one", TIED, *double)
    finish(process)
    one, two = (tmp_path / name / "run" / "model" for name in ("one", "two"))
    assert one_weight(two)
    assert largest_difference(weights(one), weights(two)) < 1e-9


def test_a_new_model_is_tied_where_it_is_asked_for() -> None:
    model = GPT(tiny_config("pythia-14m", tie_embeddings=True))
    init_weights(model, model.config)
    assert len(list(model.named_parameters())) == len(model.state_dict()) - 1


def test_litgpt_generates_from_our_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LitGPT's own command, which needs packages that it does not ask for, takes a tied model's configuration."""
    folder = tied_checkpoint(tmp_path / "base", vocab_size=320)
    monkeypatch.setattr(
        sys, "argv", ["litgpt", "generate", str(folder), "--prompt", "the llama", "--max_new_tokens", "3"]
    )
    precision = torch.get_float32_matmul_precision()
    try:
        litgpt()
    finally:
        set_config_read_mode(urls_enabled=False)
        set_docstring_parse_options(attribute_docstrings=False)
        torch.set_float32_matmul_precision(precision)
    assert "the llama" in capsys.readouterr().out
