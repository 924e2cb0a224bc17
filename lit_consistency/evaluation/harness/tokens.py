"""The tokens that lm-evaluation-harness's Hugging Face path would feed.

Source: the boundary of context and continuation, special tokens, truncation and windows follow ``HFLM`` and
``TemplateLM`` of lm-eval 0.4.13, lm_eval/models/huggingface.py and lm_eval/api/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_consistency.data.tokens.pairs import encode_pairs, opening_token
from lit_consistency.data.tokens.tokenizer import Tokenizer

ScoredTokens = tuple[np.ndarray, np.ndarray]  # tokens (T,) int64 and which of them are scored (T,) bool


class HarnessTokens:
    """Contexts, continuations and texts as token sequences.

    Args:
        tokenizer: of the model.
        max_length: most tokens that are fed, the model's block_size.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        named = tokenizer.special_texts
        self.prefix_id = opening_token(tokenizer)
        self.prefix_text = named.get("bos_token", named.get("eos_token"))

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids as transformers' generic tokenizer of the same folder gives them.

        Special tokens are those of the post-processor in tokenizer.json, whatever ``add_bos_token`` says; a text that
        opens with the BOS text gets none.
        """
        if self.tokenizer.backend != "huggingface":
            return [self.tokenizer.encode(text, bos=None if special else False).tolist() for text in texts]
        opening = self.prefix_text
        plain = [not special or (opening is not None and text.startswith(opening)) for text in texts]
        ids: list[list[int]] = [[]] * len(texts)
        for bare in {*plain}:
            members = [i for i, is_bare in enumerate(plain) if is_bare == bare]
            encodings = self.tokenizer.processor.encode_batch_fast(
                [texts[i] for i in members], add_special_tokens=not bare
            )
            for i, encoding in zip(members, encodings, strict=True):
                ids[i] = encoding.ids
        return ids

    def pair_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[ScoredTokens]:
        """Tokens of context and continuation, the continuation's scored, cut on the left to the model's length.

        Raises:
            ValueError: a continuation without a token, or of more than the model takes.
        """
        encoded = encode_pairs(self.tokenizer, pairs, encode=lambda texts, special: self.encode(texts, special=special))
        for (_, continuation), (_, tokens) in zip(pairs, encoded, strict=True):
            if not 0 < len(tokens) <= self.max_length:
                raise ValueError(
                    f"continuation {continuation[:80]!r} has {len(tokens)} tokens after its context: "
                    f"expected 1 to {self.max_length}"
                )
        return [self._scored([*context, *tokens], len(tokens)) for context, tokens in encoded]

    def windows(self, tokens: list[int]) -> list[ScoredTokens]:
        """Windows of at most ``max_length`` predictions; all but the first see as much context as there is room for."""
        tokens = [self.prefix_id, *tokens]
        windows = []
        for start in range(1, len(tokens), self.max_length):
            end = min(start + self.max_length, len(tokens))
            windows.append(self._scored(tokens[:end], end - start))
        return windows

    def _scored(self, tokens: list[int], n_scored: int) -> ScoredTokens:
        kept = np.asarray(tokens[-(self.max_length + 1) :], dtype=np.int64)
        return kept, np.arange(len(kept)) >= len(kept) - n_scored
