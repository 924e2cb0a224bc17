from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.stopping import StopStrings
from tests.data.tokens.families import llama2_like, llama3_like, metaspace
from tests.model.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def first_cut(stopping: StopStrings, tokens: list[int], anchor: Sequence[int] = ()) -> tuple[int, str] | None:
    """Token by token, as in generation: when it stops, and with which text."""
    for n in range(1, len(tokens) + 1):
        text = stopping.cut(tokens[:n], anchor)
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
            whole = tokenizer.decode_tokens(tokens[:n])
            starts = [whole.index(s) for s in stop if s in whole]
            if starts:
                expected = n, whole[: min(starts)]
                break
        assert first_cut(stopping, tokens) == expected


@pytest.mark.parametrize("family", [llama2_like, metaspace])
@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("  return x", ("  r",), ""),  # begins with the first token, whose space a lone decoding drops
        ("    return x\n  x", ("\n  x",), "    return x"),
        (" 日é日é→", ("é→",), " 日é日"),  # bytes in a row, of which a part is no text
        (" x日", ("\n",), None),  # stands in the prompt only
    ],
)
def test_text_is_cut_behind_its_prompt(
    family: Callable[[Path], Path], text: str, stop: tuple[str, ...], left: str | None, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(family(tmp_path))
    prompt = tokenizer.encode("def f(x):\n").tolist()
    tokens = tokenizer.encode("def f(x):\n" + text).tolist()[len(prompt) :]
    cut = first_cut(StopStrings(tokenizer, stop), tokens, tokenizer.anchor(prompt))
    assert (cut[1] if cut else None) == left


@pytest.mark.parametrize("stop", ["<|eot_id|>", "<|eot_id|>\n"])
def test_a_stop_string_with_a_special_token_is_found_though_it_does_not_show(stop: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(llama3_like(tmp_path))
    tokens = tokenizer.encode("the day<|eot_id|>\nand", bos=False).tolist()
    n = tokens.index(tokenizer.token_to_id("<|eot_id|>")) + 1
    assert first_cut(StopStrings(tokenizer, ("the user", stop)), tokens) == (n + stop.endswith("\n"), "the day")


def test_without_stop_strings_nothing_is_cut(tokenizer: Tokenizer) -> None:
    assert StopStrings(tokenizer, ()).cut([1, 2, 3], []) is None
