import json
import re
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.config import Config, configs
from litgpt.eval.evaluate import convert_and_evaluate
from safetensors.torch import load_file

from lit_consistency.cli.export import main
from lit_consistency.model import export_hf, save_model
from lit_consistency.model.to_hf import family_of, hf_config
from lit_consistency.records.provenance import Provenance, read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.model.families import CASES, logits_of_both, read_back, tiny_family
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_model, tiny_provenance, tiny_tokenizer

YARN = {"factor": 2.0, "beta_fast": 32, "beta_slow": 1, "original_max_seq_len": 32}


def chat_tokenizer(folder: Path) -> Path:
    """The tiny tokenizer with a template that ends a turn with a token of its own."""
    tiny_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    turn = {"id": 298, "content": "<|turn|>", "special": True, "single_word": False, "normalized": False}
    tokenizer["added_tokens"].append({**turn, "lstrip": False, "rstrip": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<|turn|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_equal_logits_and_litgpt_reads_the_weights_back(tmp_path: Path, case: str) -> None:
    pytest.importorskip("transformers")
    name, overrides = CASES[case]
    model = tiny_family(tmp_path / "lit", name, **overrides)
    export_hf(tmp_path / "lit", tmp_path / "hf", max_shard_size="20KB")
    ours, theirs = logits_of_both(model, tmp_path / "hf")
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert ours.std() > 0.15
    back, expected = read_back(tmp_path / "hf", model.config), model.state_dict()
    assert back.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(back[key], expected[key])] == []
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (settings["vocab_size"], settings["tie_word_embeddings"]) == (96, overrides.get("tied", False))


def test_every_configuration_of_litgpt_belongs_to_a_family() -> None:
    by_type = Counter(family_of(Config(**settings)).model_type for settings in configs)
    assert by_type.total() == len(configs)
    assert len(by_type) == 16


def test_a_head_that_training_has_moved_from_the_embedding_is_kept_and_gemma_says_so(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tiny_family(tmp_path / "lit", "Gemma-2-2b", n_query_groups=2, sliding_window_size=8)
    with pytest.warns(UserWarning, match="vLLM takes no Gemma"):
        export_hf(tmp_path / "lit", tmp_path / "hf")
    torch.testing.assert_close(*reversed(logits_of_both(model, tmp_path / "hf")), rtol=0, atol=1e-5)


def test_shards_hold_at_most_what_is_asked_and_the_index_finds_every_weight(tmp_path: Path) -> None:
    tiny_family(tmp_path / "lit", "Llama-3.2-1B", n_query_groups=2)
    export_hf(tmp_path / "lit", tmp_path / "one")
    export_hf(tmp_path / "lit", tmp_path / "many", max_shard_size="0.02MB")
    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert len({path.stat().st_mode for path in (tmp_path / "many").iterdir()}) == 1, "readable as the others"
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    shards = {file: load_file(tmp_path / "many" / file) for file in files}
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert all(len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= 20_000 for shard in shards.values())
    assert all(torch.equal(shards[index["weight_map"][name]][name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("size", ["5 apples", "GB", "-1GB", "0.1B"])
def test_a_size_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, size: str) -> None:
    tiny_checkpoint(tmp_path / "lit", "pythia-14m")
    with pytest.raises(ValueError, match=re.escape(f"max_shard_size = '{size}': expected a size in B, KB, MB or GB")):
        export_hf(tmp_path / "lit", tmp_path / "hf", max_shard_size=size)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.attn.qkv.weight", "lm_head.weight"])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_the_weights_name(
    tmp_path: Path, name: str, value: float
) -> None:
    model = tiny_model("pythia-14m")
    model.state_dict()[name].view(-1)[5] = value
    save_model(tmp_path / "lit", model.state_dict(), model.config, None, tiny_provenance())
    with pytest.raises(ValueError, match=f"^{re.escape(name)}: 1 of .* numbers are not finite"):
        export_hf(tmp_path / "lit", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["lit"]


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


def test_every_id_that_ends_an_answer_is_told_and_the_rest_of_the_settings_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer_dir = chat_tokenizer(tmp_path / "tokenizer")
    (tokenizer_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0], "top_k": 5}))
    tiny_checkpoint(tmp_path / "lit", "pythia-14m", tokenizer_dir, vocab_size=300)
    main(["--checkpoint_dir", str(tmp_path / "lit"), "--out_dir", str(tmp_path / "hf")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    turn_end, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|turn|>", "<|end|>"))
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (settings.eos_token_id, settings.top_k) == ([end, 7, turn_end], 5)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == end
    turns = [{"role": "user", "content": "sea"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "user: sea<|turn|>"


@pytest.mark.parametrize(
    ("name", "overrides", "nearest", "reasons"),
    [
        ("pythia-14m", {"n_query_groups": 2}, "gpt_neox", ["queries = grouped"]),
        ("falcon-7b", {"n_query_groups": 2}, "falcon", ["queries = grouped"]),
        ("pythia-14m", {"bias": False}, "gpt_neox", ["bias = False"]),
        ("Llama-3.2-1B", {"attention_scores_scalar": 3}, "llama", ["attention_scores_scalar = 3"]),
        ("Llama-3.2-1B", {"rope_adjustments": YARN}, "llama", ["rope = adjusted by ['beta_fast', 'beta_slow', "]),
        ("Mistral-7B-v0.1", {"sliding_window_indices": [1, 0]}, "llama", ["sliding_window = some layers"]),
        ("Qwen3-30B-A3B", {"n_shared_expert": 1}, "qwen3_moe", ["experts = grouped or shared"]),
        ("Qwen3-0.6B", {"attn_bias": True}, "qwen3", ["attn_bias = True"]),
        ("OLMo-1B-hf", {"norm_eps": 1e-6}, "olmo", ["norm_eps = 1e-06"]),
        ("Phi-3.5-mini-instruct", {"rope_condense_ratio": 4}, "phi3", ["rope = linear"]),
    ],
)
def test_what_no_family_computes_is_refused_with_reasons(
    name: str, overrides: dict, nearest: str, reasons: list[str]
) -> None:
    experts = {"n_expert": 4, "n_expert_per_token": 2} if name == "Qwen3-30B-A3B" else {}
    with pytest.raises(ValueError, match=rf"to = hf: {name} is .* against {nearest}: ") as refusal:
        hf_config(tiny_config(name, **experts, **overrides))
    assert [reason for reason in reasons if reason not in str(refusal.value)] == []


def test_the_card_tells_what_was_learned_and_forgotten_and_the_licence_of_the_base_goes_along(tmp_path: Path) -> None:
    model = tiny_model("Llama-3.2-1B", n_query_groups=2)
    licence = {"license": "other", "license_name": "llama3.2"}
    source = {"kind": "hub", "name": "meta-llama/Llama-3.2-1B", "revision": "4e20de", "licence": licence}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "LICENSE.txt").write_text("terms")
    base = tiny_provenance(optimizer="unknown", stage="import", base="meta-llama/Llama-3.2-1B", source=source)
    numbers = {"learn/grade_school": 0.5, "retain/books": 1.25, "forget/books": 0.25, "kl_to_base": 0.03}
    stage = {"model": "Llama-3.2-1B", "optimizer": "Muon", "method": "full", "stage": "sft", "steps": 7, "tokens": 900}
    made = {"base": str(tmp_path / "base"), "command": "python -m lit_consistency fit --x", "final_metrics": numbers}
    provenance = base.next_stage(**stage, **made)
    save_model(tmp_path / "run" / "model", model.state_dict(), model.config, None, provenance)
    judges = {"learn/grade_school": {"metric": "exact_match"}, "retain/books": {"metric": "bits_per_byte"}}
    record = {"base_metrics": {"learn/grade_school": 0.125, "retain/books": 1.0}, "judged_by": judges}
    RunFolder(tmp_path / "run").write_record({**record, "data": {"rows": "GSM8K", "sha256": "ab12"}})
    export_hf(tmp_path / "run" / "model", tmp_path / "hf")
    header, card = re.fullmatch(r"---\n(.*?)---\n(.*)", (tmp_path / "hf" / "README.md").read_text(), re.DOTALL).groups()
    expected = {"library_name": "transformers", "pipeline_tag": "text-generation", **licence}
    expected |= {"base_model": "meta-llama/Llama-3.2-1B", "tags": ["lit_consistency", "litgpt"]}
    assert yaml.safe_load(header) == expected
    for line in (
        "| learn | grade_school | exact_match | 0.125 | 0.5 |  |",
        "| retain | books | bits_per_byte | 1 | 1.25 | 0.25 |",
        "- KL to the base (nats per token): 0.03",
        "A Llama-3.2-1B, `sft` with Muon (method: full): 7 steps, 900 tokens, seed None.",
        "  rows: GSM8K",
        "python -m lit_consistency fit --x",
        "That of the base: other, llama3.2.",
    ):
        assert f"\n{line}\n" in card
    assert (tmp_path / "hf" / "LICENSE.txt").read_text() == "terms"


def test_a_model_of_which_nothing_is_recorded_has_a_card_that_says_so(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "lit", "pythia-14m")
    (tmp_path / "lit" / "provenance.yaml").unlink()
    export_hf(tmp_path / "lit", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Nothing is recorded of how it was made." in card
    assert "license" not in card


def test_an_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "lit", "pythia-14m")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("old")
    with pytest.raises(ValueError, match="--overwrite to replace its model"):
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


@pytest.mark.filterwarnings("ignore")  # it leaves a file open
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pythia-14m", {}),
        pytest.param("Llama-3.2-1B", {"n_query_groups": 2}, marks=pytest.mark.slow),
        pytest.param("Qwen2.5-0.5B", {"n_query_groups": 2}, marks=pytest.mark.slow),
        ("Gemma-2-2b", {"n_query_groups": 2, "sliding_window_size": 8, "tied": True}),
        pytest.param("Phi-4-mini-instruct", {"n_query_groups": 2, "tied": True}, marks=pytest.mark.slow),
    ],
)
def test_litgpt_evaluate_loads_our_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overrides: dict
) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = []

    class HFLM:
        """What lm-eval's does of its model first; lm-eval itself is not needed to see whether it is found."""

        def __init__(self, pretrained: str, **_: object) -> None:
            transformers.AutoTokenizer.from_pretrained(pretrained)
            loaded.append(transformers.AutoModelForCausalLM.from_pretrained(pretrained))

    evaluator = types.SimpleNamespace(simple_evaluate=lambda **_: {})
    modules = {"lm_eval": types.SimpleNamespace(evaluator=evaluator), "lm_eval.models": types.SimpleNamespace()}
    modules["lm_eval.models.huggingface"] = types.SimpleNamespace(HFLM=HFLM)
    modules["lm_eval.utils"] = types.SimpleNamespace(make_table=str)
    for module, stand_in in modules.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which it sets
    model = tiny_family(tmp_path, name, vocab_size=300, **overrides)
    tiny_tokenizer(tmp_path)
    convert_and_evaluate(tmp_path, tasks="any", device="cpu")
    tokens = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded[0](tokens).logits, model(tokens), rtol=0, atol=1e-5)


def test_litgpt_evaluate_finds_no_model_where_it_would_drop_a_trained_head(tmp_path: Path) -> None:
    tiny_family(tmp_path, "Gemma-2-2b", n_query_groups=2)
    assert not (tmp_path / "config.json").exists()
