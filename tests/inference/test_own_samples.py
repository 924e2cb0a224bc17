"""The base's own samples are drawn as ``generate`` draws, once, and kept; and what the base predicts along them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_consistency.data import OwnSamples
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.inference import own_samples
from lit_consistency.inference.generate import generate
from lit_consistency.inference.load import load_model
from lit_consistency.inference.own_samples import open_anchor_texts, open_own_samples
from lit_consistency.inference.sampling import GenerationOptions
from tests.model.tiny_models import tiny_checkpoint, tiny_provenance, tiny_tokenizer

CPU = torch.device("cpu")
SAMPLES: dict[str, Any] = {"n_texts": 12, "max_tokens": 24, "batch_tokens": 100}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint(folder / "model", "pythia-14m", tiny_tokenizer(folder / "tokenizer"), vocab_size=300)
    return folder / "model"


def drawn(base: Path, cache: Path, **options: Any) -> list[list[int]]:
    return documents(open_own_samples(base, OwnSamples(**{**SAMPLES, **options}), 32, cache, CPU))


def documents(shard: Shard) -> list[list[int]]:
    return [shard.tokens[a:b].tolist() for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)]


def test_texts_are_those_of_generate_and_end_only_where_the_base_ended_them(base: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(base, "cpu")
    options = GenerationOptions(max_new_tokens=24, temperature=0.7, n_samples=12, seed=3)
    prompt = np.asarray([tokenizer.eos_id])
    [expected] = generate(model, [prompt], options, tokenizer, batch_tokens=10_000, device=CPU)
    texts = drawn(base, tmp_path, temperature=0.7, seed=3)
    for text, written in zip(texts, expected, strict=True):
        end = [tokenizer.eos_id] if written.finished == "eos" else []
        assert text == [tokenizer.eos_id, *written.tokens, *end]
        assert len(text) <= 25
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    lines = [json.loads(line) for line in (folder / own_samples.TEXTS).read_text().splitlines()]
    assert lines == [{"text": written.text} for written in expected]


def test_they_are_drawn_once_and_the_same_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    first = drawn(base, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # a run that draws is the run that finds them drawn
    shutil.rmtree(tmp_path)
    assert drawn(base, tmp_path) == first
    assert drawn(base, tmp_path, seed=1) != first
    monkeypatch.setattr(own_samples, "load_model", None)  # nothing is loaded any more
    assert drawn(base, tmp_path) == first
    with pytest.raises(TypeError):
        drawn(base, tmp_path, temperature=0.5)


def test_what_the_base_predicts_is_kept_position_by_position(base: Path, tmp_path: Path) -> None:
    samples = OwnSamples(**SAMPLES)
    texts, kept = open_anchor_texts(base, samples, 5, 32, tmp_path, CPU, "float32")
    again = open_anchor_texts(base, samples, 5, 32, tmp_path, CPU, "float32")
    assert documents(again.texts) == documents(texts) == drawn(base, tmp_path)
    assert kept is not None
    model = load_model(base, "cpu").model
    at = 0
    for text in documents(texts):
        with torch.no_grad():
            log_probs = model(torch.tensor([text[:-1]]))[0].log_softmax(-1)
        for row in log_probs:
            expected = row.sort(descending=True)
            assert kept.ids[at].tolist() == expected.indices[:5].tolist()
            np.testing.assert_allclose(kept.log_probs[at], expected.values[:5], atol=1e-5)
            np.testing.assert_allclose(np.exp(kept.log_rest[at]), float(expected.values[5:].exp().sum()), atol=1e-6)
            at += 1
    assert at == len(kept.log_rest)


def test_a_base_that_writes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(base, folder)
    weights = torch.load(folder / "lit_model.pth", weights_only=True)
    weights["lm_head.weight"].zero_()
    weights["lm_head.weight"][0] = 100 * torch.sign(load_model(base, "cpu").model.transformer.ln_f.bias)
    weights["transformer.ln_f.weight"].zero_()  # every position says the same: the text has ended
    torch.save(weights, folder / "lit_model.pth")
    tiny_provenance(model="pythia-14m").write(folder)
    with pytest.raises(ValueError, match=r"mute ends every text before its first token; expected a base that writes"):
        drawn(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_texts": 0}, "n_texts = 0: expected at least 1"),
        ({"temperature": 0.0}, "temperature = 0.0: expected above 0"),
        ({"max_tokens": 0}, "max_tokens = 0: expected at least 1, or null"),
        ({"max_tokens": 33}, "max_tokens = 33: expected at most 32, the block_size of the rows"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_own_samples(tmp_path, OwnSamples(**options), 32, tmp_path, CPU)
