"""Context and continuation as tokens, where a token may cross the join.

Source: ``TemplateLM._encode_pair`` and ``loglikelihood`` of lm-evaluation-harness 0.4.13, lm_eval/api/model.py. White
space at the context's end goes to the continuation; the whole text is encoded, and so is the context, and the
continuation is what the whole has behind as many tokens as the context has. Where a token of the whole crosses the
join, the model is fed the context's own tokens, and what the crossing token says of the continuation is not scored.

Where it differs: a context of white space alone counts as an empty one, and a continuation that has no token of its
own behind the context (the context's last token swallows it) is encoded apart; lm-eval stops with an assertion in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lit_consistency.data.tokens.tokenizer import Tokenizer

Encode = Callable[[Sequence[str], bool], list[list[int]]]


class EncodedPair(NamedTuple):
    """Token ids of a context, at least one, and of its continuation."""

    context: list[int]
    continuation: list[int]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, *, special: bool = True) -> EncodedPair:
    """A single pair, as ``encode_pairs``."""
    return encode_pairs(tokenizer, [(context, continuation)], special=special)[0]


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, special: bool = True, encode: Encode | None = None
) -> list[EncodedPair]:
    """Tokens of contexts and continuations.

    Args:
        tokenizer: Of the model.
        pairs: Texts of contexts and continuations. An empty context is the prefix token (``opening_token``), unless the
            continuation begins with it and lends it.
        special: Whether a context is given BOS where the tokenizer adds it; off for the text of a chat template, which
            holds all that belongs to it.
        encode: Takes texts, and whether they are given special tokens; None takes the tokenizer's own.

    Returns:
        As many pairs. A continuation without text has no tokens.
    """
    if encode is None:

        def encode(texts: Sequence[str], special: bool) -> list[list[int]]:
            return tokenizer.encode_batch(texts, bos=None if special else False)

    split = [_move_spaces(context, continuation) for context, continuation in pairs]
    behind = [(context, continuation) for context, continuation in split if context]
    contexts = list(dict.fromkeys(context for context, _ in behind))
    # one call for all: the tokenizer works in as many threads as there are cores
    encoded = encode([*contexts, *(context + continuation for context, continuation in behind)], special)
    tokens_of = dict(zip(contexts, encoded, strict=False))
    wholes = iter(encoded[len(contexts) :])
    openings = iter(encode([continuation for context, continuation in split if not context], False))
    result = []
    for context, continuation in split:
        if not context:
            tokens, prefix = next(openings), opening_token(tokenizer)
            result.append(EncodedPair([prefix], tokens[1:] if tokens[:1] == [prefix] else tokens))
            continue
        head, whole = tokens_of[context], next(wholes)
        tail = whole[len(head) :]
        if continuation and not tail:
            tail = encode([continuation], False)[0]
        result.append(EncodedPair(head, tail))
    return result


def opening_token(tokenizer: Tokenizer) -> int:
    """What stands before a text that has no context: BOS, or EOS where there is none (``HFLM.prefix_token_id``)."""
    return int(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """White space at the context's end goes to the continuation."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
