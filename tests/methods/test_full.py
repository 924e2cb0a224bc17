import pytest
import torch
from litgpt.config import Config

from lit_consistency.distributed.dtensors import KeptShards
from lit_consistency.methods import Full
from lit_consistency.model import GPT, model_config


def small_config() -> Config:
    return model_config("pythia-14m", None, {"n_layer": 1, "n_embd": 32, "vocab_size": 64, "block_size": 32}, None)


def test_all_weights_are_trained() -> None:
    method = Full()
    model = method.build(small_config())
    model.requires_grad_(False)
    method.prepare(model)
    assert type(model) is GPT
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (method.name, type(model.config)) == ("full", Config)


def test_loaded_weights_come_out_again() -> None:
    method = Full()
    base, model = method.build(small_config()), method.build(small_config())
    method.load(model, base.state_dict())
    merged = method.merged_state(model)
    assert all(torch.equal(merged[name], value) for name, value in base.state_dict().items())
    assert merged["lm_head.weight"].data_ptr() == model.lm_head.weight.data_ptr()


def test_gathered_weights_are_taken_as_they_are() -> None:
    weights = {"a": torch.zeros(1)}
    assert Full().merged_state(GPT(small_config()), weights) == weights


def test_changes_are_the_difference_to_the_start() -> None:
    model = Full().build(small_config())
    start = KeptShards({"lm_head.weight": model.lm_head.weight})
    with torch.no_grad():
        model.lm_head.weight += 0.5
    ((name, change, before),) = Full().changes(model, start)
    assert name == "lm_head.weight"
    torch.testing.assert_close(change, torch.full((64, 32), 0.5))
    assert torch.equal(before, start.full_tensor("lm_head.weight"))


def test_changes_are_computed_one_weight_at_a_time() -> None:
    model = Full().build(small_config())
    changes = Full().changes(model, KeptShards(dict(model.named_parameters())))
    next(changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    # had they been computed at once, the others would not know of it
    assert all((change == 1.0).float().mean() > 0.5 and not change.requires_grad for _, change, _ in changes)


def test_weights_are_cast_to_the_model() -> None:
    model = Full().build(small_config())
    Full().load(model, {name: value.bfloat16() for name, value in model.state_dict().items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_legacy_names_of_litgpt_are_taken() -> None:
    base = GPT(small_config())
    old_name = "transformer.h.0.attn.attn.bias"
    weights = dict(base.state_dict())
    weights[old_name] = torch.arange(96.0)
    del weights["transformer.h.0.attn.qkv.bias"]
    model = Full().build(small_config())
    Full().load(model, weights)
    # the old layout interleaves query, key and value of every head of 8
    assert model.transformer.h[0].attn.qkv.bias[:16].tolist() == [*range(8), *range(24, 32)]


def test_what_does_not_fit_is_named() -> None:
    model = Full().build(small_config())
    weights = dict(model.state_dict())
    with pytest.raises(ValueError, match=r"lm_head.weight: expected \(64, 32\), found \(64, 16\)"):
        Full().load(model, {**weights, "lm_head.weight": torch.zeros(64, 16)})
    with pytest.raises(ValueError, match="unexpected transformer.h.1.norm_1.weight"):
        Full().load(model, {**weights, "transformer.h.1.norm_1.weight": torch.zeros(32)})
    del weights["lm_head.weight"]
    with pytest.raises(ValueError, match="weights do not fit the model: missing lm_head.weight$"):
        Full().load(model, weights)
    with pytest.raises(ValueError, match="missing .*; and 10 more$"):
        Full().load(model, {"lm_head.weight": model.lm_head.weight})


def test_adapters_are_no_weights_of_a_plain_model() -> None:
    model = Full().build(small_config())
    with pytest.raises(ValueError, match="unexpected lm_head.lora_A"):
        Full().load(model, {**model.state_dict(), "lm_head.lora_A": torch.zeros(2, 32)})
