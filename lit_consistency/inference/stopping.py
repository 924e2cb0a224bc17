"""When a generation ends: at a stop string, at the end of sequence, or at its length.

A stop string is looked for in the decoded text, not among the tokens, which cut text in other places. The last few
tokens are decoded at every step; only where they hold a stop string is the whole generation decoded and cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from litgpt.tokenizer import Tokenizer


class StopStrings:
    """Finds the first stop string in what was generated.

    Args:
        tokenizer: of the model.
        stop: strings; an empty one is not allowed.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self._tokenizer = tokenizer
        self._silent = silent_tokens(tokenizer)
        # a token that shows holds a byte at least, and one more may lose its leading space by standing first
        self._window = max((len(text.encode()) for text in self.stop), default=0) + 1

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, without special ones."""
        return self._tokenizer.decode(torch.tensor(tokens, dtype=torch.int64)) if tokens else ""

    def cut(self, tokens: Sequence[int]) -> str | None:
        """The text before the first stop string, or None: none has come up with the last token."""
        if not self.stop:
            return None
        tail: list[int] = []
        for token in reversed(tokens):
            if token not in self._silent:
                tail.append(token)
                if len(tail) == self._window:
                    break
        near = self.decode(tail[::-1])
        if not any(text in near for text in self.stop):
            return None
        whole = self.decode(tokens)
        places = [place for text in self.stop if (place := whole.find(text)) >= 0]
        return whole[: min(places)] if places else None


def silent_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens, which show nothing in decoded text."""
    if tokenizer.backend == "huggingface":
        added = tokenizer.processor.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)
    return frozenset(token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None)
