"""Context and continuation as tokens: lm-eval's rule, and the rule written another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lit_consistency.data.tokens.pairs import encode_pair, encode_pairs
from lit_consistency.data.tokens.tokenizer import Tokenizer
from tests.data.tokens.families import llama2_like, llama3_like, metaspace

FAMILIES = [llama3_like, llama2_like, metaspace]
# "re" and "return" are tokens, and so is "=+" of the second family: these cross the join
PAIRS = [
    ("the question", " the answer"),
    ("the question  ", "the answer"),
    ("def f(x): r", "eturn x and x"),
    ("x =", "+1"),
    ("the us", "er and the question"),
    ("x\n", "    return x"),
    ("é日", "日"),
]


def with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    """As transformers encodes it: the post-processor's BOS is there."""
    return tokenizer.processor.encode(text).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_is_encoded_and_cut_where_the_context_ends(family: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(family(tmp_path))
    crossed = 0
    for (context, continuation), (head, tail) in zip(PAIRS, encode_pairs(tokenizer, PAIRS), strict=True):
        whole = with_bos(tokenizer, context + continuation)
        before = with_bos(tokenizer, context.rstrip(" \n"))
        assert (head, tail) == (before, whole[len(before) :])
        crossed += head != whole[: len(head)]
    assert crossed == 2
    assert encode_pairs(tokenizer, PAIRS) == [encode_pair(tokenizer, *pair) for pair in PAIRS]


@pytest.mark.parametrize("family", FAMILIES)
def test_lm_eval_gives_the_same_tokens(family: Callable[[Path], Path], tmp_path: Path) -> None:
    api = pytest.importorskip("lm_eval.api.model", reason="the extra `eval` is not installed")
    tokenizer = Tokenizer(family(tmp_path))

    class Theirs:
        """What ``TemplateLM`` asks of a model."""

        backend = "causal"
        prefix_token_id = tokenizer.bos_id

        def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
            return tokenizer.processor.encode(text, add_special_tokens=add_special_tokens is not False).ids

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            return api.TemplateLM._encode_pair(self, context, continuation)

        def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool) -> list[tuple[list[int], list[int]]]:
            return [(head, tail) for _, head, tail in requests]

    class Request:
        def __init__(self, *args: str) -> None:
            self.args = args

    pairs = [*PAIRS, ("", "the day"), ("", "<s>the day"), ("", "<|begin_of_text|>the day")]
    theirs = api.TemplateLM.loglikelihood(Theirs(), [Request(*pair) for pair in pairs], disable_tqdm=True)
    assert [tuple(pair) for pair in encode_pairs(tokenizer, pairs)] == theirs


def test_an_empty_context_is_the_prefix_token(tmp_path: Path) -> None:
    for family in FAMILIES:
        tokenizer = Tokenizer(family(tmp_path / family.__name__))
        bare = tokenizer.encode("the day", bos=False).tolist()
        assert encode_pair(tokenizer, "", "the day") == ([tokenizer.bos_id], bare)
        bos = tokenizer.special_texts["bos_token"]
        lent = tokenizer.encode(f"{bos}the day", bos=False).tolist()
        assert encode_pair(tokenizer, "", f"{bos}the day") == ([tokenizer.bos_id], lent[1:])
        spaced = tokenizer.encode(" \nthe day", bos=False).tolist()
        assert encode_pair(tokenizer, " \n", "the day") == ([tokenizer.bos_id], spaced)


def test_the_text_of_a_chat_template_is_given_no_bos(tmp_path: Path) -> None:
    tokenizer = Tokenizer(llama3_like(tmp_path))
    plain, chat = (encode_pair(tokenizer, "<|user|>the day", " and", special=special) for special in (True, False))
    assert plain.context == [tokenizer.bos_id, *chat.context]
    own = encode_pair(tokenizer, "<|begin_of_text|><|user|>the day", " and")
    assert own.context == plain.context


def test_a_continuation_that_the_context_swallows_is_encoded_apart(tmp_path: Path) -> None:
    tokenizer = Tokenizer(llama2_like(tmp_path))
    assert len(with_bos(tokenizer, "x =+")) == len(with_bos(tokenizer, "x ="))
    assert encode_pair(tokenizer, "x =", "+") == (
        with_bos(tokenizer, "x ="),
        tokenizer.processor.encode("+", add_special_tokens=False).ids,
    )
    assert encode_pair(tokenizer, "x =", "").continuation == []
