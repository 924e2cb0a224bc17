"""A tokenizer built from a world itself: one token for every word the world uses, and 256 bytes for anything else.

It is a byte-level BPE without merges: ``ignore_merges`` makes a piece of text that is in the vocabulary one token, as
Llama 3's tokenizer does, and every other piece falls apart into bytes, so any text round-trips. It gives up compression
of foreign text. The first word of a text gets the space that the others have before them, hence a name is the same
token wherever it stands, and prompt and answer may be encoded apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|endoftext|>"


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Builds the tokenizer whose words are those of the texts, in the order of first appearance.

    Args:
        texts: Text in which every word appears at least once, in the surroundings it will have.

    Returns:
        A tokenizer with ``<|pad|>`` as id 0, ``<|endoftext|>`` as id 1, the bytes from id 2 and the words from id
        258. It adds no special tokens by itself.
    """
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    vocabulary = {PAD_TOKEN: 0, EOS_TOKEN: 1}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    for text in texts:
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    # the strip takes back the space that the pre-tokenizer puts before the first word
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(PAD_TOKEN, special=True), AddedToken(EOS_TOKEN, special=True)])
    return tokenizer
