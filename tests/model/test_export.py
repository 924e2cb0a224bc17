import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox, copy_weights_hf_llama
from safetensors.torch import load_file

from lit_consistency.cli.export import main
from lit_consistency.model import export_hf, load_weights
from lit_consistency.model.export import hf_config
from lit_consistency.records.provenance import Provenance, read_provenance
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_tokenizer

LLAMA3_ROPE = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 32}
# of the logits: both sides normalize and rotate in float32 whatever the model is
ROUNDING = 2e-6

CASES = {
    "pythia": ("pythia-14m", {}),
    "pythia-sequential-tanh": ("pythia-14m", {"parallel_residual": False, "gelu_approximate": "tanh"}),
    # a quarter of a head of 8 is one frequency, base to the power of 0: only half of it shows the base
    "pythia-own-rotation": ("pythia-14m", {"rotary_percentage": 0.5, "rope_base": 500}),
    "llama-2": ("Llama-2-7b-hf", {}),
    "llama-2-condensed": ("Llama-2-7b-hf", {"rope_condense_ratio": 4}),
    "llama-3.2": ("Llama-3.2-1B", {"n_query_groups": 2}),
    "llama-3.2-short": ("Llama-3.2-1B", {"n_query_groups": 2, "rope_adjustments": LLAMA3_ROPE}),
    "smollm2-own-head-size": ("SmolLM2-135M", {"head_size": 16}),
    "linear-rope": ("Llama-3.2-1B", {"rope_adjustments": {"factor": 4.0}}),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_equal_logits(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    name, overrides = CASES[case]
    model = tiny_checkpoint(tmp_path / "lit", name, **overrides)
    export_hf(tmp_path / "lit", tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == torch.float32
    tokens = torch.randint(0, 96, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, others = model.double()(tokens), theirs.double()(tokens).logits
        torch.testing.assert_close(others, ours, rtol=0, atol=ROUNDING * float(ours.abs().max()))
    assert ours.std() > 0.5


def test_the_tokenizer_and_its_ends_go_along(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer_dir = tiny_tokenizer(tmp_path / "tokenizer")
    tiny_checkpoint(tmp_path / "lit", "pythia-14m", tokenizer_dir, vocab_size=300)
    export_hf(tmp_path / "lit", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("the llama eats")["input_ids"]) == "the llama eats"
    for file in ("config.json", "generation_config.json"):
        ends = json.loads((tmp_path / "hf" / file).read_text())
        assert (ends["bos_token_id"], ends["eos_token_id"]) == (None, tokenizer.eos_token_id)
    exported, own = (read_provenance(tmp_path / name) for name in ("hf", "lit"))
    assert exported is not None
    assert own is not None
    assert list(exported.weights_sha256) == ["model.safetensors"]
    assert replace(exported, weights_sha256=own.weights_sha256) == own


@pytest.mark.parametrize("name", ["pythia-14m", "Llama-3.2-1B"])
def test_litgpt_reads_the_exported_weights_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = tiny_checkpoint(tmp_path / "lit", name)
    export_hf(tmp_path / "lit", tmp_path / "hf")
    back: dict[str, torch.Tensor] = {}
    read = functools.partial(copy_weights_hf_llama, qkv_weights={}) if "Llama" in name else copy_weights_gpt_neox
    read(config=model.config, state_dict=back, hf_weights=load_file(tmp_path / "hf" / "model.safetensors"))
    expected = load_weights(tmp_path / "lit")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "overrides", "reasons"),
    [
        ("Gemma-2-2b", {}, ["scale_embeddings = True", "norm of Gemma", "attention_logit_softcapping = 50.0"]),
        ("Qwen3-0.6B", {}, ["norm_qk = True"]),
        ("OLMo-2-1124-7B", {}, ["norm_qk = True", "post_mlp_norm = True"]),
        ("Mixtral-8x7B-v0.1", {}, ["n_expert = 4"]),
        ("phi-2", {"n_embd": 64}, ["shared_attention_norm = True", "lm_head_bias = True"]),
        ("pythia-14m", {"n_query_groups": 2}, ["grouped queries"]),
        ("pythia-14m", {"bias": False}, ["bias = False"]),
        ("Llama-3.2-1B", {"attention_scores_scalar": 3}, ["attention_scores_scalar = 3"]),
        ("Mistral-7B-v0.1", {}, ["sliding_window_size = 4096"]),
    ],
)
def test_other_families_are_refused_with_reasons(name: str, overrides: dict, reasons: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"to = hf: {name} is of neither supported family: not llama") as refusal:
        hf_config(tiny_config(name, **overrides))
    assert [reason for reason in reasons if reason not in str(refusal.value)] == []


def test_rotary_scalings_that_are_not_exported_are_refused() -> None:
    yarn = {"factor": 2.0, "beta_fast": 32, "beta_slow": 1, "original_max_seq_len": 32}
    with pytest.raises(ValueError, match="expected llama3 or linear scaling"):
        hf_config(tiny_config("Llama-3.2-1B", rope_adjustments=yarn))


@pytest.mark.parametrize(
    "name", ["pythia-160m", "Llama-3.2-1B", "Llama-2-7b-hf", "SmolLM2-135M", "Llama-3.1-8B-Instruct"]
)
def test_full_sizes_of_supported_families_have_a_configuration(name: str) -> None:
    config = Config.from_name(name)
    assert hf_config(config)["vocab_size"] == config.padded_vocab_size


def test_an_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "lit", "pythia-14m")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("old")
    with pytest.raises(ValueError, match="overwrite: true"):
        export_hf(tmp_path / "lit", tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").read_text() == "old"
    export_hf(tmp_path / "lit", tmp_path / "hf", overwrite=True)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "gpt_neox"


def test_the_command_writes_the_folder(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "lit", "pythia-14m")
    arguments = ["--checkpoint_dir", str(tmp_path / "lit"), "--to", "hf", "--out_dir", str(tmp_path / "hf")]
    main(arguments)
    with pytest.raises(SystemExit):
        main(arguments)
    main([*arguments, "--overwrite"])
    assert isinstance(read_provenance(tmp_path / "hf"), Provenance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--checkpoint_dir", "nowhere", "--out_dir", "out"],
            "error: checkpoint_dir = nowhere: there is no such folder",
        ),
        (["--checkpoint_dir", "nowhere"], "out_dir"),
        (["--checkpoint_dir", "a", "--out_dir", "b", "--to", "onnx"], "onnx"),
        (["--checkpoint_dirs", "a"], "did you mean checkpoint_dir"),
    ],
)
def test_a_mistake_on_the_command_line_exits_with_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_transformers_is_not_needed_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    tiny_checkpoint(tmp_path / "lit", "Llama-3.2-1B")
    export_hf(tmp_path / "lit", tmp_path / "hf")
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() >= {"model.embed_tokens.weight", "lm_head.weight"}
