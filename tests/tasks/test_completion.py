"""Right answers: behind a prompt, or as the turns of a conversation that is trained on."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.sources.rows import RowFiles
from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic, World
from lit_consistency.inference.load import Loaded, load_model
from tests.reference.scores import continuation
from tests.tasks.measuring import measure
from tests.tasks.tiny import built, task_of, tiny_model, tiny_tokenizer

KNOWN: dict[str, Any] = {"kind": "completion", "fields": {"Q": "{prompt}"}, "completion": "{completion}"}
SPOKEN: dict[str, Any] = {"kind": "completion", "prompt_style": "default"}
ROWS = [{"prompt": f"the day {i}:", "completion": f" die Wälder {i}"} for i in range(5)]
TURNS = [{"role": role, "content": text} for role, text in (("user", "1"), ("assistant", "uno"))]
TURNS += [{"role": role, "content": text} for role, text in (("user", "2"), ("assistant", "due"))]


@pytest.mark.parametrize("fixture", ["loaded", "loaded_bos"])
def test_numbers_of_answers_are_those_of_a_plain_loop(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded: Loaded = request.getfixturevalue(fixture)
    encode = loaded.tokenizer.processor.encode
    bos = [loaded.tokenizer.bos_id] if fixture == "loaded_bos" else []
    measured = measure(loaded, built(task_of(tmp_path, **KNOWN, data=ROWS), loaded.tokenizer))
    nats, n_tokens, n_bytes, first = 0.0, 0, 0, 0
    for row in ROWS:
        answer = row["completion"].strip()
        ids = encode(f" {answer}").ids
        more, greedy = continuation(loaded.model, [*bos, *encode(f"Q: {row['prompt']}\nAnswer:").ids], ids)
        nats, n_tokens, n_bytes = nats + more, n_tokens + len(ids), n_bytes + len(answer.encode())
        first += greedy
    expected = {"nats_per_token": nats / n_tokens, "bits_per_byte": nats / math.log(2) / n_bytes, "exact": first / 5}
    assert measured.values() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fixture", ["loaded", "loaded_bos"])
def test_the_end_of_a_row_is_learned_and_has_no_bytes(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """EOS counts in the nats per token, as in the loss of training, and not in the bits per byte of the text."""
    loaded: Loaded = request.getfixturevalue(fixture)
    encode, eos = loaded.tokenizer.processor.encode, loaded.tokenizer.eos_id
    bos = [loaded.tokenizer.bos_id] if fixture == "loaded_bos" else []
    measured = measure(loaded, built(task_of(tmp_path, **SPOKEN, data=ROWS), loaded.tokenizer))
    own, ends, n_tokens, n_bytes = 0.0, 0.0, 0, 0
    for row in ROWS:
        prompt, answer = [*bos, *encode(row["prompt"]).ids], encode(row["completion"]).ids
        own += continuation(loaded.model, prompt, answer)[0]
        ends += continuation(loaded.model, [*prompt, *answer], [eos])[0]
        n_tokens, n_bytes = n_tokens + len(answer) + 1, n_bytes + len(row["completion"].encode())
    values = measured.values()
    assert values["nats_per_token"] == pytest.approx((own + ends) / n_tokens, rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(own / math.log(2) / n_bytes, rel=1e-6)
    assert ends / n_tokens > 0.01 * values["nats_per_token"], "otherwise nothing is told apart here"


def test_every_turn_of_a_chat_is_scored_and_its_end_has_no_bytes(tmp_path: Path) -> None:
    """``<|im_end|>`` is special in the tokenizer's files, so it is no text, wherever it stands in the conversation."""
    tiny_tokenizer(tmp_path / "chat", chat=True)
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text((tmp_path / "chat" / "chat_template.jinja").read_text())
    loaded = load_model(folder, "cpu")
    task = task_of(tmp_path, kind="completion", prompt_style="chat_template", data=[{"messages": TURNS}])
    encoded = built(task, loaded.tokenizer)
    (question,) = encoded.questions
    assert question.item is not None
    learned, own = question.item.candidates
    decode = loaded.tokenizer.processor.decode
    assert (
        decode(learned.tokens[learned.supervised].tolist(), skip_special_tokens=False) == "uno<|im_end|>due<|im_end|>"
    )
    assert decode(own.tokens[own.supervised].tolist(), skip_special_tokens=False) == "unodue"
    assert own.n_bytes == 6
    tokens = learned.tokens.tolist()
    nats = {True: 0.0, False: 0.0}
    for i in learned.supervised.nonzero()[0]:
        nats[bool(own.supervised[i])] += continuation(loaded.model, tokens[:i], [tokens[i]])[0]
    values = measure(loaded, encoded).values()
    assert values["bits_per_byte"] == pytest.approx(nats[True] / math.log(2) / 6, rel=1e-6)
    n_tokens = int(learned.supervised.sum())
    assert values["nats_per_token"] == pytest.approx((nats[True] + nats[False]) / n_tokens, rel=1e-6)


def test_what_is_scored_is_what_is_trained_on(tiny: Tokenizer, tmp_path: Path) -> None:
    for style in ("default", "alpaca", "phi-2"):
        task = task_of(tmp_path, kind="completion", prompt_style=style, data=ROWS)
        encoder = PromptEncoder(tiny, style)
        rows = RowFiles(str(task.data.path)).rows()
        for question, row in zip(built(task, tiny, block=1024).questions, rows, strict=True):
            assert question.item is not None
            example = encoder.encode(row)
            assert question.item.candidates[0].tokens.tolist() == example.tokens.tolist()
            assert question.item.candidates[0].supervised.tolist() == example.supervised.tolist()


def test_a_row_that_is_cut_counts_the_bytes_that_are_left(tiny: Tokenizer, tmp_path: Path) -> None:
    """A token is a byte here: x y X Y Z and two of Ä, and the end, which has no bytes; block + 1 tokens are left."""
    task = task_of(tmp_path, **SPOKEN, data=[{"prompt": "xy", "completion": "XYZÄ"}])
    for block, n_bytes, n_cut in ((2, 1, 5), (4, 3, 3), (6, 5, 1), (7, 5, 0)):
        (question,) = built(task, tiny, block=block).questions
        assert question.item is not None
        assert {candidate.n_bytes for candidate in question.item.candidates} == {n_bytes}
        assert question.n_truncated == n_cut
    with pytest.raises(ValueError, match="no answer within 1 tokens; task task is empty"):
        built(task, tiny, block=1)


def test_a_limit_draws_conversations(tiny: Tokenizer, tmp_path: Path) -> None:
    task = task_of(tmp_path, **SPOKEN, data=ROWS)
    ids = [question.id for question in built(task, tiny, limit=3, seed=1).questions]
    assert len(ids) == 3
    assert ids == sorted(ids)
    assert {*ids} <= {question.id for question in built(task, tiny).questions}
    with pytest.raises(ValueError, match=r"shots = 1: task task has a prompt_style; expected 0"):
        built(task, tiny, shots=1)


@pytest.mark.parametrize(
    "world",
    [Biographies(n_people=4, n_new=2), ModularArithmetic(p=5), MarkovChains(n_symbols=5, n_chains=2, length=8)],
    ids=lambda world: type(world).__name__,
)
def test_a_question_of_a_world_scores_the_one_token_of_its_answer(world: World, tmp_path: Path) -> None:
    write_tokenizer(world.tokenizer(), tmp_path / "tokenizer")
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    origin = {"class_path": f"lit_consistency.data.worlds.{type(world).__name__}", "init_args": asdict(world)}  # type: ignore[call-overload]
    keys = {"kind": "completion", "fields": {"": "{prompt}"}, "answer_heading": "", "completion": "{answer}"}
    for name in world.probe_names:
        task = task_of(tmp_path, **keys, data={"world": origin, "probes": name})
        texts = {probe.prompt + probe.answer for probe in world.probes(name)}
        for question in built(task, tokenizer, block=128, limit=7).questions:
            assert question.item is not None
            (candidate,) = question.item.candidates
            assert candidate.supervised.tolist() == [False] * (len(candidate.tokens) - 1) + [True]
            assert tokenizer.processor.decode(candidate.tokens.tolist()) in texts
