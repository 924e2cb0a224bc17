"""What is scored: a question as tokens, with its candidate answers (a text has one candidate, itself)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from litgpt.tokenizer import Tokenizer


class Candidate(NamedTuple):
    """One possible answer: ``tokens`` with its prompt (T,), ``supervised`` (T,) bool, bytes of the supervised text."""

    tokens: np.ndarray
    supervised: np.ndarray
    n_bytes: int


class Item(NamedTuple):
    """A question: its candidates and the index of the right one."""

    candidates: list[Candidate]
    gold: int


def text_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """UTF-8 bytes of the text that tokens (T,) stand for, without EOS.

    An approximation: tokens are decoded apart from their neighbours, so one that puts a space before a text may drop
    a leading space, and a part of a character, which decodes to U+FFFD, counts as one byte.
    """
    text = tokenizer.decode(torch.as_tensor(tokens[tokens != tokenizer.eos_id], dtype=torch.int64))
    return len(text.replace("\ufffd", "?").encode())
