"""The adapter without lm-eval: which tokens are fed, and what is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import tokenizers.processors
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.model import HarnessModel, run_harness
from lit_consistency.inference.sampling import GenerationOptions
from tests.model.tiny_models import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


def adapter(folder: Path, block_size: int = 64, new: bool = True, **config: Any) -> HarnessModel:
    file = (tiny_tokenizer(folder) if new else folder) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    model = tiny_model("pythia-14m", vocab_size=320, block_size=block_size).eval()
    return HarnessModel(model, Tokenizer(folder), batch_tokens=500, device=CPU)


def split(lm: HarnessModel, context: str, continuation: str) -> tuple[list[int], list[int]]:
    tokens, scored = lm.tokens.pair_tokens([(context, continuation)])[0]
    return tokens[~scored].tolist(), tokens[scored].tolist()


def test_spaces_at_the_end_of_the_context_belong_to_the_continuation(tmp_path: Path) -> None:
    lm = adapter(tmp_path)
    assert split(lm, "the llama ", "eats") == split(lm, "the llama", " eats")
    assert split(lm, "the llama", " eats") == (lm.tokens.encode(["the llama"])[0], lm.tokens.encode([" eats"])[0])


def test_the_whole_is_encoded_and_the_context_gives_the_boundary(tmp_path: Path) -> None:
    lm = adapter(tmp_path)
    context, whole = lm.tokens.encode(["the ll", "the llama eats"])
    assert whole[: len(context)] != context
    assert split(lm, "the ll", "ama eats") == (context, whole[len(context) :])


def test_an_empty_context_is_the_prefix_token(tmp_path: Path) -> None:
    lm = adapter(tmp_path)
    assert split(lm, "", "the sea") == ([lm.tokenizer.eos_id], lm.tokens.encode(["the sea"])[0])
    # a continuation that opens with that token lends it
    assert split(lm, "", "<|end|>the sea") == ([lm.tokenizer.eos_id], lm.tokens.encode(["the sea"])[0])


@pytest.mark.parametrize("post_processor", [False, True])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_tokens_are_those_of_transformers(tmp_path: Path, config: dict[str, bool], post_processor: bool) -> None:
    transformers = pytest.importorskip("transformers")
    if post_processor:
        tokenizer = tokenizers.Tokenizer.from_file(str(tiny_tokenizer(tmp_path) / "tokenizer.json"))
        tokenizer.add_special_tokens(["<|begin|>"])
        template = {"single": "<|begin|> $A", "special_tokens": [("<|begin|>", tokenizer.token_to_id("<|begin|>"))]}
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**template)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    lm = adapter(tmp_path, new=not post_processor, bos_token="<|begin|>" if post_processor else "<|end|>", **config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["the sea", "", "<|end|> the hill", " salt\n\nof é"]
    theirs_of = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert lm.tokens.encode(texts, special=False) == theirs_of
    texts = [text for text in texts if not text.startswith(lm.tokens.prefix_text)]
    assert lm.tokens.encode(texts) == [theirs.encode(text) for text in texts]
    assert (lm.tokens.encode(["the sea"])[0][0] == lm.tokens.prefix_id) == post_processor
    assert lm.tokens.encode([f"{lm.tokens.prefix_text}the sea"])[0].count(lm.tokens.prefix_id) == 1


def test_contexts_lose_their_beginning(tmp_path: Path) -> None:
    lm = adapter(tmp_path, block_size=16)
    tokens, scored = lm.tokens.pair_tokens([("the llama eats the grass of " * 5, "the hill")])[0]
    assert len(tokens) == 17
    assert tokens.tolist() == lm.tokens.encode(["the llama eats the grass of " * 5 + "the hill"])[0][-17:]
    assert scored.sum() == len(lm.tokens.encode([" the hill"])[0])


def test_windows_predict_every_token_once(tmp_path: Path) -> None:
    lm = adapter(tmp_path, block_size=8)
    ids = list(range(1, 22))
    windows = lm.tokens.windows(ids)
    assert np.concatenate([tokens[scored] for tokens, scored in windows]).tolist() == ids
    assert [len(tokens) for tokens, _ in windows] == [9, 9, 9]
    assert windows[0][0][0] == lm.tokens.prefix_id
    assert lm.rolling_log_likelihoods([""]) == [0]


def test_likelihoods_add_up_to_the_rolling_one(tmp_path: Path) -> None:
    lm = adapter(tmp_path)
    whole = lm.rolling_log_likelihoods(["the llama eats"])[0]
    parts = [lm.log_likelihoods([("", "the")])[0][0], lm.log_likelihoods([("the", " llama eats")])[0][0]]
    # the second has no prefix token in front of its context, the whole has
    assert lm.log_likelihoods([("", "the llama eats")])[0][0] == pytest.approx(whole)
    assert sum(parts) != pytest.approx(whole)


@pytest.mark.parametrize("continuation", ["", "the hill and the salt of the sea and the hill"])
def test_a_continuation_of_no_or_too_many_tokens_is_refused(tmp_path: Path, continuation: str) -> None:
    lm = adapter(tmp_path, block_size=8)
    with pytest.raises(ValueError, match="tokens after its context: expected 1 to 8"):
        lm.log_likelihoods([("the", continuation)])


def test_generation_settings_are_translated(tmp_path: Path) -> None:
    lm = adapter(tmp_path)
    greedy = lm.generation_options({"until": "\n", "max_gen_toks": 7, "do_sample": False, "temperature": 0.0})
    assert greedy == GenerationOptions(max_new_tokens=7, stop=("\n",), temperature=0.0, top_p=1.0, n_samples=1, seed=0)
    sampled = lm.generation_options({"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (sampled.stop, sampled.temperature, sampled.top_p, sampled.max_new_tokens) == (("a",), 0.7, 0.9, 256)
    with pytest.raises(ValueError, match=r"generation_kwargs: num_beams: expected only do_sample"):
        lm.generation_options({"num_beams": 4})


def test_more_new_tokens_than_the_model_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_gen_toks = 64: expected less than the block_size, 64"):
        adapter(tmp_path).texts([("the", {"max_gen_toks": 64})])


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model = Linear: expected a LitGPT model"):
        HarnessModel(torch.nn.Linear(2, 2), Tokenizer(tiny_tokenizer(tmp_path)), batch_tokens=10, device=CPU)


def test_without_lm_eval_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    lm = adapter(tmp_path)
    with pytest.raises(
        ValueError, match=r"harness = arc_easy: lm-eval cannot be imported .* 'lit_consistency\[eval\]'"
    ):
        run_harness(lm.model, lm.tokenizer, ["arc_easy"], batch_tokens=10, device=CPU)
