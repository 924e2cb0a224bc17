"""Stop strings: where a generation is cut before the end of sequence or its length ends it.

A stop string is looked for in the decoded text, not among the tokens, which cut text in other places. The last few
tokens are decoded at every step; only where they hold a stop string is the whole generation decoded and cut. A stop
string with a special token in it never shows in decoded text: it is looked for among the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_consistency.data.tokens.tokenizer import BROKEN, Tokenizer


class StopStrings:
    """Finds the first stop string in what was generated.

    Args:
        tokenizer: of the model.
        stop: strings; an empty one is not allowed.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        tokens_of = {text: _tokens(tokenizer, text) for text in stop}
        special = {text for text, tokens in tokens_of.items() if not tokenizer.special_ids.isdisjoint(tokens)}
        self.special = [tokens_of[text] for text in stop if text in special]
        self.plain = [text for text in stop if text not in special]
        # a token that shows holds a byte at least, and one more may lose its leading space by standing first
        self._window = max((len(text.encode()) for text in self.plain), default=0) + 1

    def cut(self, tokens: Sequence[int], anchor: Sequence[int]) -> str | None:
        """The text before the first stop string, or None: none has come up with the last token.

        Args:
            tokens: as generated, the last one new.
            anchor: the end of the prompt, see ``Tokenizer.anchor``.
        """
        for ids in self.special:
            if list(tokens[-len(ids) :]) == ids:
                return self.tokenizer.decode_after(anchor, tokens[: -len(ids)])
        if not self.plain:
            return None
        end = self._end(tokens, anchor)
        if not any(stop in end for stop in self.plain):
            return None
        text = self.tokenizer.decode_after(anchor, tokens)
        starts = [start for stop in self.plain if (start := text.find(stop)) >= 0]
        return text[: min(starts)] if starts else None

    def _end(self, tokens: Sequence[int], anchor: Sequence[int]) -> str:
        """Text of the last tokens that show, as many as a stop string may have, from the beginning of a character on.

        Where fewer were generated it begins in the prompt.
        """
        shown: list[int] = []
        for token in reversed(tokens):
            if len(shown) == self._window + 3:  # a character has up to 4 bytes, each perhaps a token
                break
            if token not in self.tokenizer.special_ids:
                shown.append(token)
        shown.reverse()
        if len(shown) <= self._window:
            return self.tokenizer.decode_tokens([*anchor, *shown])
        for start in range(len(shown) - self._window, -1, -1):
            text = self.tokenizer.decode_tokens(shown[start:])
            if not text.startswith(BROKEN):
                break
        return text


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a stop string; SentencePiece encodes the name of a control token as text."""
    if tokenizer.backend == "sentencepiece" and tokenizer.processor.piece_to_id(text) in tokenizer.special_ids:
        return [tokenizer.processor.piece_to_id(text)]
    return tokenizer.encode_batch([text], bos=False)[0]
