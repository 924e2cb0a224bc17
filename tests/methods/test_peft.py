"""Adapters in PEFT, on the base in transformers, compute what the run's own model does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_consistency.__main__ import main
from lit_consistency.methods import LoRA, LoRAGPT
from lit_consistency.methods.adapters import write_adapters
from lit_consistency.methods.peft import export_peft
from lit_consistency.model import export_hf, weights_hash, write_model_files
from lit_consistency.records.provenance import read_provenance
from tests.methods.test_dora import as_if_trained
from tests.model.tiny_models import tiny_checkpoint, tiny_tokenizer

EVERYTHING = {"query": True, "key": True, "value": True, "projection": True, "mlp": True, "head": True}
SOME = {**EVERYTHING, "key": False, "mlp": False, "head": False}
# of the logits: both sides normalize and rotate in float32 whatever the model is
ROUNDING = 4e-6
CASES = {
    "llama": ("Llama-3.2-1B", {"n_query_groups": 2}, {**EVERYTHING, "r": 3}),
    "llama-dora-some": ("Llama-3.2-1B", {"n_query_groups": 2}, {**SOME, "dora": True}),
    "llama-rslora": ("Llama-3.2-1B", {"n_query_groups": 2}, {**EVERYTHING, "rslora": True}),
    # one matrix for query, key and value in transformers too, of rows in another order
    "pythia": ("pythia-14m", {}, {**EVERYTHING, "r": 3}),
    "pythia-some": ("pythia-14m", {}, SOME),
    "pythia-dora-some": ("pythia-14m", {}, {**SOME, "dora": True, "alpha": 5}),
    "pythia-rsdora": ("pythia-14m", {}, {**EVERYTHING, "dora": True, "rslora": True}),
}
# fused matrices of other orders, norms of queries and keys, one key for all heads
OTHERS = {
    "phi-3": ("Phi-3-mini-4k-instruct", {}, SOME),
    "qwen-2.5": ("Qwen2.5-0.5B", {}, {**EVERYTHING, "dora": True}),
    "qwen-3": ("Qwen3-0.6B", {}, EVERYTHING),
    "olmo-2": ("OLMo-2-1124-7B", {}, SOME),
    "falcon": ("falcon-7b", {}, SOME),
}


def trained(root: Path, name: str, overrides: dict[str, int], options: dict[str, object]) -> LoRAGPT:
    """A base in ``root/base`` and adapters in ``root/adapters``, as a run writes them; the model of both."""
    tokenizer = tiny_tokenizer(root / "tokenizer")
    base = tiny_checkpoint(root / "base", name, tokenizer, vocab_size=300, **overrides)
    method = LoRA(**options)  # type: ignore[arg-type]
    model = method.build(base.config)
    method.load(model, base.state_dict())
    method.prepare(model)
    torch.manual_seed(7)
    as_if_trained(model)
    factors = {key: value.detach() for key, value in model.named_parameters() if "lora_" in key}
    (root / "adapters").mkdir()
    write_adapters(root / "adapters", method, factors, root / "base", weights_hash(root / "base"))
    write_model_files(root / "adapters", base.config, tokenizer)
    provenance = read_provenance(root / "base")
    assert provenance is not None
    provenance.write(root / "adapters")
    return model


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_peft_computes_equal_logits(case: str, tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft", reason="needs the extra peft")
    model = trained(tmp_path, *{**CASES, **OTHERS}[case])
    export_hf(tmp_path / "base", tmp_path / "hf")
    arguments = ["export", f"--checkpoint_dir={tmp_path}/adapters", "--to=peft", f"--out_dir={tmp_path}/peft"]
    main([*arguments, f"--base_model={tmp_path}/hf"])
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    tokens = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, others, before = (m.double()(tokens) for m in (model, adapted, base))
        close = ROUNDING * float(ours.abs().max())
        torch.testing.assert_close(others.logits, ours, rtol=0, atol=close)
        torch.testing.assert_close(adapted.merge_and_unload()(tokens).logits, ours, rtol=0, atol=close)
    assert (before.logits - ours).abs().max() > 0.1
    exported, own = (read_provenance(tmp_path / name) for name in ("peft", "adapters"))
    assert exported is not None
    assert own is not None
    assert list(exported.weights_sha256) == ["adapter_model.safetensors"]
    assert replace(exported, weights_sha256=own.weights_sha256) == own
    assert len({path.stat().st_mode for path in (tmp_path / "peft").iterdir()}) == 1, "readable as the others"


def test_names_are_short_and_the_base_is_named_where_it_is_known(tmp_path: Path) -> None:
    trained(tmp_path, "pythia-14m", {}, SOME)
    assert export_peft(tmp_path / "adapters", tmp_path / "one") is None
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["dense", "query_key_value"]
    assert (config["r"], config["rank_pattern"]) == (8, {"query_key_value": 16})
    assert config["base_model_name_or_path"] is None
    (tmp_path / "base" / "provenance.yaml").unlink()  # as LitGPT downloads it
    assert export_peft(tmp_path / "adapters", tmp_path / "two") == "EleutherAI/pythia-14m"


def test_what_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, "Mixtral-8x7B-v0.1", {}, {})
    for where, more, message in (
        ("adapters", [], "to = peft: n_expert = 4: expected a model without experts"),
        ("base", [], "expected adapters of LoRA, as RUN/adapters"),
        ("base", ["--to=hf", "--base_model=a"], "base_model with --to hf: expected --to peft"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["export", f"--checkpoint_dir={tmp_path}/{where}", "--to=peft", f"--out_dir={tmp_path}/out", *more])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
