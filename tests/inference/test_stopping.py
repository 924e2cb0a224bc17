from __future__ import annotations

import random
from pathlib import Path

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.stopping import StopStrings
from tests.model.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def first_cut(stopping: StopStrings, tokens: list[int]) -> tuple[int, str] | None:
    """Token by token, as in generation: when it stops, and with which text."""
    for n in range(1, len(tokens) + 1):
        text = stopping.cut(tokens[:n])
        if text is not None:
            return n, text
    return None


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("the sea\n\nQuestion: two", ("Question:",), "the sea\n\n"),
        ("the sea\n\nQuestion: two", ("Question:", "\n\n"), "the sea"),
        ("the grass of the hill", ("f the h",), "the grass o"),
        ("the grass", ("the",), ""),
        ("größer → klein", ("→",), "größer "),
        ("the grass", ("Question:",), None),
    ],
)
def test_text_is_cut_exactly_at_the_stop_string(
    text: str, stop: tuple[str, ...], left: str | None, tokenizer: Tokenizer
) -> None:
    found = first_cut(StopStrings(tokenizer, stop), tokenizer.encode(text).tolist())
    assert (found[1] if found else None) == left


def test_looking_at_the_tail_finds_what_looking_at_the_whole_text_finds(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    eos = tokenizer.eos_id
    for _ in range(200):
        stop = tuple("".join(generator.choices("ab →\n", k=generator.randrange(1, 5))) for _ in range(2))
        text = "".join(generator.choices("ab →\n", k=30))
        tokens = [t for token in tokenizer.encode(text).tolist() for t in (token, *[eos] * generator.randrange(3))]
        stopping = StopStrings(tokenizer, stop)
        expected = None
        for n in range(1, len(tokens) + 1):
            whole = stopping.decode(tokens[:n])
            places = [whole.index(s) for s in stop if s in whole]
            if places:
                expected = n, whole[: min(places)]
                break
        assert first_cut(stopping, tokens) == expected


def test_without_stop_strings_nothing_is_cut(tokenizer: Tokenizer) -> None:
    assert StopStrings(tokenizer, ()).cut([1, 2, 3]) is None


def test_sentencepiece_has_its_ends_for_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from lit_consistency.inference.stopping import silent_tokens

    assert silent_tokens(tokenizer) == {tokenizer.eos_id}
    tokenizer_like = type("Like", (), {"backend": "sentencepiece", "bos_id": 1, "eos_id": 2})()
    assert silent_tokens(tokenizer_like) == {1, 2}
