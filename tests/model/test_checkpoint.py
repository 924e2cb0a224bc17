import dataclasses
import hashlib
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.generate.base import main as generate
from litgpt.lora import Config as LoRAConfig
from safetensors.torch import save_file

from lit_consistency.model import (
    check_checkpoint_dir,
    check_finite,
    copy_tokenizer,
    load_weights,
    model_config,
    save_model,
    weights_hash,
)
from lit_consistency.records.provenance import read_provenance
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_model, tiny_provenance, tiny_tokenizer


class Poison:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    return tiny_tokenizer(tmp_path / "tokenizer")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_saved_model_is_read_back_bit_for_bit(tmp_path: Path, tokenizer_dir: Path) -> None:
    model = tiny_checkpoint(tmp_path / "a", "Llama-3.2-1B", tokenizer_dir)
    check_checkpoint_dir(tmp_path / "a")
    weights = load_weights(tmp_path / "a")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert model_config(None, tmp_path / "a", {}, None) == model.config
    written = hashlib.sha256((tmp_path / "a" / "lit_model.pth").read_bytes()).hexdigest()
    expected = tiny_provenance(model="Llama-3.2-1B", weights_sha256={"lit_model.pth": written})
    assert read_provenance(tmp_path / "a") == expected


@pytest.mark.parametrize("name", ["lit_model.pth", "lit_model.safetensors"])
def test_a_flipped_bit_is_found_before_a_weight_is_used(tmp_path: Path, tokenizer_dir: Path, name: str) -> None:
    folder = tmp_path / "a"
    tiny_checkpoint(folder, "pythia-14m", tokenizer_dir)
    if name == "lit_model.safetensors":
        save_file(load_weights(folder), folder / name)
        (folder / "lit_model.pth").unlink()
        tiny_provenance().write(folder)
    whole = (folder / name).read_bytes()
    for place in range(8):
        damaged = bytearray(whole)
        damaged[place * len(whole) // 8] ^= 1 << place
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{folder / name}: sha256 \w+, expected \w+ .*damaged, or changed"):
            load_weights(folder)
    (folder / name).write_bytes(whole)
    load_weights(folder)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, tokenizer_dir: Path) -> None:
    tiny_checkpoint(tmp_path / "a", "pythia-14m", tokenizer_dir)
    weights = load_weights(tmp_path / "a")
    check_finite(weights, tmp_path / "a")
    for value, word in ((math.nan, "NaN"), (-math.inf, "infinity")):
        damaged = {**weights, "lm_head.weight": weights["lm_head.weight"].clone().to(torch.bfloat16)}
        damaged["lm_head.weight"][3, 1] = value
        with pytest.raises(ValueError, match=rf"lit_model.pth: lm_head.weight holds {word}; .*has diverged"):
            check_finite(damaged, tmp_path / "a")


def test_litgpt_generates_from_a_saved_model(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_checkpoint(tmp_path / "a", "pythia-14m", tokenizer_dir, vocab_size=300)
    generate(tmp_path / "a", prompt="the llama eats", max_new_tokens=6, precision="32-true", top_k=1)
    assert "the llama eats" in capsys.readouterr().out


def test_a_configuration_of_lora_is_saved_as_the_base_one(tmp_path: Path) -> None:
    base = model_config("pythia-14m", None, {"n_layer": 1, "n_embd": 32, "vocab_size": 96}, None)
    config = LoRAConfig(**dataclasses.asdict(base))
    save_model(tmp_path / "a", {"x": torch.zeros(1)}, config, None, tiny_provenance())
    stored = yaml.safe_load((tmp_path / "a" / "model_config.yaml").read_text())
    assert not [key for key in stored if key.startswith("lora_")]


def test_a_view_is_saved_without_what_it_views(tmp_path: Path) -> None:
    view = torch.zeros(1_000_000)[:10]
    save_model(tmp_path / "a", {"x": view}, tiny_config("pythia-14m"), None, tiny_provenance())
    assert (tmp_path / "a" / "lit_model.pth").stat().st_size < 10_000


def test_the_prompt_style_is_saved_or_taken_over(tmp_path: Path, tokenizer_dir: Path) -> None:
    rest = ({"x": torch.zeros(1)}, tiny_config("pythia-14m"))
    save_model(tmp_path / "a", *rest, tokenizer_dir, tiny_provenance(), prompt_style="alpaca")
    save_model(tmp_path / "b", *rest, tmp_path / "a", tiny_provenance())
    save_model(tmp_path / "c", *rest, tokenizer_dir, tiny_provenance())
    assert "Alpaca" in (tmp_path / "a" / "prompt_style.yaml").read_text()
    assert (tmp_path / "b" / "prompt_style.yaml").read_text() == (tmp_path / "a" / "prompt_style.yaml").read_text()
    assert not (tmp_path / "c" / "prompt_style.yaml").exists()


@pytest.mark.parametrize("step", ["torch.save", "save_config", "copy_tokenizer"])
def test_a_failed_save_keeps_the_old_model(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tiny_checkpoint(tmp_path / "a", "pythia-14m", tokenizer_dir)
    before = contents(tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(f"lit_consistency.model.checkpoint.{step}", fail)
    model = tiny_model("pythia-14m")
    with pytest.raises(OSError, match="no space left"):
        save_model(tmp_path / "a", model.state_dict(), model.config, tokenizer_dir, tiny_provenance(), overwrite=True)
    assert contents(tmp_path / "a") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "tokenizer"]


def test_an_existing_model_is_replaced_only_on_request(tmp_path: Path, tokenizer_dir: Path) -> None:
    model = tiny_checkpoint(tmp_path / "a", "pythia-14m", tokenizer_dir)
    weights = {name: value + 1 for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="--overwrite to replace its model"):
        save_model(tmp_path / "a", weights, model.config, None, tiny_provenance())
    save_model(tmp_path / "a", weights, model.config, None, tiny_provenance(), overwrite=True)
    assert torch.equal(load_weights(tmp_path / "a")["lm_head.weight"], weights["lm_head.weight"])
    assert not (tmp_path / "a" / "tokenizer.json").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    canary = tmp_path / "canary"
    torch.save(
        {"x": torch.zeros(2), "y": Poison(canary)},
        tmp_path / "lit_model.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(ValueError, match=r"lit_model.pth: refused, expected tensors only"):
        load_weights(tmp_path)
    assert not canary.exists()


def test_the_poison_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Poison(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["lit_model.pth", "lit_model.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    weights = {"a": torch.randn(40, 40), "b": torch.randn(40)}
    path = tmp_path / name
    torch.save(weights, path) if path.suffix == ".pth" else save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=rf"{name}: (cannot be read|refused), expected"):
        load_weights(tmp_path)


def test_all_forms_of_weights_files_are_read(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 2), "b": torch.arange(3.0).bfloat16()}
    forms = {"plain": weights, "wrapped": {"model": weights}}
    for name, content in forms.items():
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "lit_model.pth")
    (tmp_path / "legacy").mkdir()
    torch.save(weights, tmp_path / "legacy" / "lit_model.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "safe").mkdir()
    save_file(weights, tmp_path / "safe" / "lit_model.safetensors")
    for folder in tmp_path.iterdir():
        found = load_weights(folder)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in weights.items())


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"a": 3}, torch.zeros(2), {"model": {"a": "b"}}])
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "lit_model.pth")
    with pytest.raises(ValueError, match=r"lit_model.pth: expected a mapping of names to tensors"):
        load_weights(tmp_path)


def test_missing_files_are_all_named(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such: there is no such folder"):
        check_checkpoint_dir(tmp_path / "no-such")
    with pytest.raises(FileNotFoundError, match=r"lit_model.pth or lit_model.safetensors, model_config.yaml$"):
        check_checkpoint_dir(tokenizer_dir)
    tiny_checkpoint(tmp_path / "a", "pythia-14m")
    check_checkpoint_dir(tmp_path / "a", needs_tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"missing tokenizer.json or tokenizer.model$"):
        check_checkpoint_dir(tmp_path / "a")
    (tmp_path / "a" / "lit_model.pth").rename(tmp_path / "a" / "lit_model.pth.lora")
    with pytest.raises(FileNotFoundError, match="litgpt merge_lora"):
        check_checkpoint_dir(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"missing lit_model.pth or lit_model.safetensors"):
        load_weights(tmp_path / "a")


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "lit_model.pth").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert weights_hash(tmp_path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_without_a_vocabulary_is_no_tokenizer(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "out").mkdir()
    copy_tokenizer(tokenizer_dir, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tokenizer_dir)
    (tokenizer_dir / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_dir = .*missing tokenizer.json or tokenizer.model"):
        copy_tokenizer(tokenizer_dir, tmp_path / "out")
