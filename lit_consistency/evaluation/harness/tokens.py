"""The tokens that lm-evaluation-harness's Hugging Face path would feed.

Source: the boundary of context and continuation, special tokens, truncation and windows follow ``HFLM`` and
``TemplateLM`` of lm-eval 0.4.13, lm_eval/models/huggingface.py and lm_eval/api/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_consistency.data.tokens.tokenizer import Tokenizer

Sequenced = tuple[np.ndarray, np.ndarray]  # tokens (T,) int64 and which of them are scored (T,) bool


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
        self.prefix_id: int = tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else tokenizer.eos_id
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
        found: list[list[int]] = [[]] * len(texts)
        for bare in {*plain}:
            members = [i for i, is_bare in enumerate(plain) if is_bare == bare]
            encodings = self.tokenizer.processor.encode_batch_fast(
                [texts[i] for i in members], add_special_tokens=not bare
            )
            for i, encoding in zip(members, encodings, strict=True):
                found[i] = encoding.ids
        return found

    def pair_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[Sequenced]:
        """Tokens of context and continuation, the continuation's supervised, cut on the left to the model's length.

        Spaces at the context's end belong to the continuation. The whole text is encoded, and so is the context;
        where the context's tokens end, the continuation begins. An empty context is the prefix token.

        Raises:
            ValueError: a continuation without a token, or of more than the model takes.
        """
        split = [_move_spaces(context, continuation) for context, continuation in pairs]
        wholes = self.encode([context + continuation for context, continuation in split if context])
        contexts = {context for context, _ in split if context}
        n_context = {context: len(ids) for context, ids in zip(contexts, self.encode([*contexts]), strict=True)}
        alone = self.encode([continuation for context, continuation in split if not context], special=False)
        whole_ids, alone_ids = iter(wholes), iter(alone)
        found = []
        for context, continuation in split:
            if context:
                tokens, n = next(whole_ids), n_context[context]
            else:
                tokens, n = next(alone_ids), 1
                tokens = tokens if tokens[:1] == [self.prefix_id] else [self.prefix_id, *tokens]
            if not 0 < len(tokens) - n <= self.max_length:
                raise ValueError(
                    f"continuation {continuation[:80]!r} has {max(len(tokens) - n, 0)} tokens after its context: "
                    f"expected 1 to {self.max_length}"
                )
            found.append(self._sequence(tokens, len(tokens) - n))
        return found

    def windows(self, tokens: list[int]) -> list[Sequenced]:
        """Windows of at most ``max_length`` predictions; all but the first see as much context as there is room for."""
        tokens = [self.prefix_id, *tokens]
        found = []
        for start in range(1, len(tokens), self.max_length):
            end = min(start + self.max_length, len(tokens))
            found.append(self._sequence(tokens[:end], end - start))
        return found

    def _sequence(self, tokens: list[int], n_scored: int) -> Sequenced:
        kept = np.asarray(tokens[-(self.max_length + 1) :], dtype=np.int64)
        return kept, np.arange(len(kept)) >= len(kept) - n_scored


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """White space at the context's end goes to the continuation; a context of nothing else is an empty one."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
