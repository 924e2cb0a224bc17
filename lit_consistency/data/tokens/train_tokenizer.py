"""A tokenizer of one's own text: byte-level BPE, as GPT-2's, trained by Hugging Face's ``tokenizers``.

Every byte is a token, so no text is unknown, and decoding gives the text back exactly. The merges are a function of the
text and the size alone: ties are decided by the pair, whatever the threads.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lit_consistency.data.tokens.tokenizer import EOS

SMALLEST = 257
"""The bytes, and the end of a document."""


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a tokenizer, whose token 0 is ``<|endoftext|>``.

    Args:
        documents: Text; read once.
        vocab_size: Tokens at most; a text too short for so many merges gives fewer.

    Raises:
        ValueError: ``vocab_size`` is smaller than all bytes need.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size = {vocab_size}: expected at least {SMALLEST}, every byte and {EOS}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # what occurs once tells nothing about other text
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer
