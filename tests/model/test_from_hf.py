"""Models of transformers in LitGPT's format: equal logits, tied embeddings, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_consistency.__main__ import main
from lit_consistency.inference.load import load_model
from lit_consistency.model import GPT, export_hf, load_weights, model_config
from lit_consistency.model.from_hf import Imported, import_model
from lit_consistency.model.from_hf.config import litgpt_config
from lit_consistency.model.from_hf.families import FAMILIES
from lit_consistency.model.tying import EMBEDDING, HEAD, is_tied
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.provenance import read_provenance
from tests.model.tiny_models import tiny_checkpoint, tiny_tokenizer
from tests.runs import equal

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# (model_type, what differs from the family's defaults): windows of 8 tokens are crossed by rows of 40
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 16}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "head_dim": 16}),
    ("mistral", {"sliding_window": 8}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("qwen3", {"head_dim": 16}),
    ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    ("gemma", {"head_dim": 8}),
    ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}),
    ("phi", {"num_key_value_heads": 4}),
    ("phi3", {"sliding_window": 8}),
    ("phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    ("olmo", {}),
    ("olmo2", {}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.5, "hidden_act": "gelu_new"}),
    ("falcon", {}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("stablelm", {}),
]


def hf_model(folder: Path, kind: str = "llama", safe: bool = True, shards: str = "5GB", **options: Any) -> Any:
    """A small model of transformers with random weights, saved into a folder."""
    sizes = {**SIZES, **options}
    if kind == "gpt_neox":
        del sizes["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    # its other attention leaves the soft-capping of Gemma 2 out
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, max_shard_size=shards)
    if not safe:
        torch.save(
            {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()},
            folder / "pytorch_model.bin",
        )
        (folder / "model.safetensors").unlink()
    return model


def imported(folder: Path, out: Path, name: str = "tiny", **options: Any) -> tuple[Imported, GPT]:
    result = import_model(folder, out, name=name, **options)
    model = GPT(model_config(None, out, {}, None))
    model.load_state_dict(load_weights(out))
    return result, model.eval()


def logits(model: Any, length: int = 40) -> Tensor:
    tokens = torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(tokens)
    return getattr(result, "logits", result)


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
@pytest.mark.parametrize(("kind", "options"), MODELS, ids=str)
def test_logits_equal_those_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf", kind, **options)
    result, ours = imported(tmp_path / "hf", tmp_path / "lit")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    assert result.n_parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert is_tied(result.config) == theirs.config.tie_word_embeddings
    weights = load_weights(tmp_path / "lit")
    assert (weights[HEAD].data_ptr() == weights[EMBEDDING].data_ptr()) == is_tied(result.config)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in MODELS}))
def test_a_key_that_config_json_leaves_out_has_the_value_of_transformers(kind: str) -> None:
    """A release writes what differs; transformers 5 fills in the rest."""
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = {**{key: SIZES[key] for key in needed}, "hidden_size": 64, "num_attention_heads": 32}
    short = {"model_type": kind, **sizes}
    complete = transformers.AutoConfig.for_model(kind, **sizes).to_dict()
    if kind == "qwen3_moe":  # its default is not what LitGPT computes
        short["norm_topk_prob"] = complete["norm_topk_prob"] = True
    assert litgpt_config(short, "tiny")[0] == litgpt_config(complete, "tiny")[0]


def test_every_family_is_tried() -> None:
    assert {kind for kind, _ in MODELS} == {*FAMILIES, "falcon"}


def test_files_of_older_transformers_mean_the_same() -> None:
    """Version 4 wrote rotary settings flat."""
    common = {"model_type": "gemma3_text", **SIZES, "head_dim": 8, "num_hidden_layers": 7}
    old = {"rope_theta": 5000.0, "rope_local_base_freq": 300.0, "rope_scaling": {"type": "linear", "factor": 8.0}}
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    assert litgpt_config({**common, **old}, "x")[0] == litgpt_config({**common, "rope_parameters": new}, "x")[0]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("gemma2", "gemma-2-2b-it", "Gemma-2-2b-it"),  # LitGPT's name of the release: its classes look for "Gemma"
        ("gemma", "mine", "Gemma-mine"),
        ("llama", "Llama-3.2-1B-Instruct", "Llama-3.2-1B-Instruct"),
        ("llama", "like-Gemma", "Llama"),  # would multiply by 1 + weight
        ("qwen2", "mine", "Qwen2.5-mine"),
        ("falcon", "falcon-7b-instruct", "falcon-7b-instruct"),
        ("gpt_neox", "pythia-14m", "pythia-14m"),
    ],
)
def test_a_name_fits_the_family(kind: str, name: str, expected: str) -> None:
    assert litgpt_config({"model_type": kind, "rms_norm_eps": 1e-6, **SIZES}, name)[0].name == expected


# -------------------- files


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
def test_pickled_and_sharded_files_give_the_same_model(tmp_path: Path) -> None:
    hf_model(tmp_path / "hf")
    whole, _ = imported(tmp_path / "hf", tmp_path / "whole")
    for name, options in (("pickled", {"safe": False}), ("shards", {"shards": "20KB"})):
        hf_model(tmp_path / name, **options)
        imported(tmp_path / name, tmp_path / f"{name}-lit")
        assert sha256(tmp_path / f"{name}-lit" / "lit_model.pth") == sha256(tmp_path / "whole" / "lit_model.pth")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert whole.dtype == "float32"


def test_what_the_import_leaves_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokenizer, licence, hashes, where it comes from; the next run takes the folder as it is."""
    theirs = hf_model(tmp_path / "hf", "qwen2", tie_word_embeddings=True, vocab_size=320)
    tiny_tokenizer(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# A model\n")
    (tmp_path / "hf" / "LICENSE").write_text("as is")
    (tmp_path / "hf" / "modeling_tiny.py").write_text("raise SystemExit(3)")
    main(["import", str(tmp_path / "hf"), "--to", str(tmp_path / "lit")])
    assert "embedding and head are one weight" in capsys.readouterr().err
    provenance = read_provenance(tmp_path / "lit")
    assert provenance is not None
    assert provenance.source is not None
    assert provenance.source["licence"] == {"license": "other", "license_name": "mine"}
    assert provenance.source["sha256"]["model.safetensors"] == sha256(tmp_path / "hf" / "model.safetensors")
    assert provenance.pretraining_optimizer is None
    assert (tmp_path / "lit" / "LICENSE").read_text() == "as is"
    assert not list((tmp_path / "lit").glob("*.py"))
    loaded = load_model(tmp_path / "lit")
    torch.testing.assert_close(logits(loaded.model), logits(theirs), rtol=0, atol=1e-5)
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
def test_a_head_that_differs_is_not_tied_whatever_the_configuration_says(tmp_path: Path) -> None:
    hf_model(tmp_path / "hf", tie_word_embeddings=False)
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**content, "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="are imported as two"):
        result, _ = imported(tmp_path / "hf", tmp_path / "lit")
    assert not is_tied(result.config)


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
def test_the_part_of_gemma_3_that_sees_pictures_is_left_out_with_a_word(tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf", "gemma3_text", **MODELS[11][1])
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    outer = {"model_type": "gemma3", "text_config": content}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(outer))
    renamed = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    save_file({**renamed, "vision_tower.patch.weight": torch.ones(2, 2)}, tmp_path / "hf" / "model.safetensors")
    with pytest.warns(UserWarning, match="sees pictures is left out, 1 weights"):
        _, ours = imported(tmp_path / "hf", tmp_path / "lit")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
@pytest.mark.parametrize("name", ["pythia-14m", "Llama-3.2-1B", "Qwen3-0.6B", "Gemma-2-2b", "phi-1_5", "falcon-7b"])
def test_what_was_exported_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    before = tiny_checkpoint(tmp_path / "lit", name, tie_embeddings=name.startswith("Gemma"))
    export_hf(tmp_path / "lit", tmp_path / "hf")
    result = import_model(tmp_path / "hf", tmp_path / "back", name=name)
    assert equal(load_weights(tmp_path / "back"), dict(before.state_dict()))
    assert is_tied(result.config) == is_tied(before.config)
    provenance = read_provenance(tmp_path / "back")
    assert provenance is not None
    assert provenance.pretraining_optimizer == "AdamW"  # its history goes on


# -------------------- refused


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def change_config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **changes}))

    return change


def change_weights(change: Any) -> Any:
    def changed(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return changed


def poison(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(folder.parent / "canary")}, folder / "pytorch_model.bin")


def lead_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


NORM = "model.norm.weight"
REFUSED: dict[str, tuple[Any, list[str]]] = {
    "family": (change_config(model_type="mamba"), ["model_type = 'mamba'", "llama"]),
    "activation": (change_config(hidden_act="relu"), ["hidden_act = 'relu'", "silu"]),
    "rotary angles": (change_config(rope_scaling={"type": "yarn"}, rope_parameters=None), ["yarn", "linear or llama3"]),
    "quantized": (change_config(quantization_config={"bits": 4}), ["quantization_config"]),
    "no size": (change_config(hidden_size=None), ["hidden_size = None"]),
    "missing": (change_weights(lambda w: w.pop(NORM)), ["1 of LitGPT's", "transformer.ln_f.weight"]),
    "a third of a matrix": (change_weights(lambda w: w.pop("model.layers.1.self_attn.k_proj.weight")), ["layers.1"]),
    "unknown": (change_weights(lambda w: w.update({"model.extra.weight": torch.ones(2)})), ["model.extra.weight"]),
    "shape": (change_weights(lambda w: w.update({NORM: torch.ones(7)})), ["[7]", "[32]"]),
    "not finite": (change_weights(lambda w: w[NORM].fill_(torch.nan)), [NORM, "NaN"]),
    "integers": (change_weights(lambda w: w.update({NORM: torch.ones(32, dtype=torch.int8)})), ["torch.int8", NORM]),
    "code": (poison, ["pytorch_model.bin", "weights_only"]),
    "out of the folder": (lead_out, ["index.json", "weight_map"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no weights"]),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(20)), ["cannot be read"]),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "JSON"]),
    "adapters": (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), ["adapters"]),
    "in LitGPT's format": (lambda folder: (folder / "model_config.yaml").touch(), ["LitGPT's format already"]),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    hf_model(folder)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(
    case: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = REFUSED[case]
    shutil.copytree(llama, tmp_path / "hf")
    change(tmp_path / "hf")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "hf"), "--to", str(tmp_path / "lit")])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert not [word for word in words if word not in message], message
    assert not (tmp_path / "lit").exists()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["EleutherAI/pythia-14m"], ["HF_HUB_OFFLINE is set", "hf download EleutherAI/pythia-14m", "--to checkpoints"]),
        (["nowhere"], ["source = nowhere", "ORG/MODEL"]),
        (["../model"], ["ORG/MODEL"]),
        (["{folder}", "--revision", "main"], ["revision = main"]),
        (["{folder}", "--to", "{folder}", "--overwrite"], ["another folder"]),
    ],
)
def test_calls_that_cannot_be_carried_out(
    argv: list[str],
    words: list[str],
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["import", *(argument.format(folder=llama) for argument in argv)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert not [word for word in words if word not in message], message


@pytest.mark.filterwarnings("ignore:.*no tokenizer yet")
def test_a_model_of_the_hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, as it lies there after a download; the commit is kept."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--tiny-llama"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(llama, cached / "snapshots" / commit)

    def download(*args: Any, **options: Any) -> str:
        return snapshot_download(*args, **options, cache_dir=tmp_path, local_files_only=True)

    monkeypatch.setattr("lit_consistency.model.from_hf.hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    main(["import", "org/tiny-llama"])
    provenance = read_provenance(Path("checkpoints/org/tiny-llama"))
    assert provenance is not None
    assert provenance.source is not None
    assert provenance.base == "org/tiny-llama"
    assert {key: provenance.source[key] for key in ("kind", "name", "revision")} == {
        "kind": "hub",
        "name": "org/tiny-llama",
        "revision": commit,
    }


@pytest.mark.parametrize(
    "argv", [["evaluate", "--tasks", "biographies/old_people", "--model"], ["export", "--checkpoint_dir"]]
)
def test_a_folder_of_transformers_names_the_command(
    argv: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output" if argv[0] == "evaluate" else "--out_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*argv, str(llama), *out])
    assert stop.value.code == 2
    assert f"python -m lit_consistency import {llama} --to DIR" in capsys.readouterr().err
