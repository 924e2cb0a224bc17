"""What suits rows, by their kind, number and lengths: prompt style, block size, batches, epochs, what is held out.

Rules of thumb to begin with, each with its reason or source beside it. No weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from litgpt import Config

from lit_consistency.data.inspection import Inspection
from lit_consistency.data.sources.hold_out import is_held_out
from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.data.tokens.base_style import style_of_base
from lit_consistency.data.tokens.packing import pack

SEVERAL_TURNS = "phi-2"
"""Style of plain words (``Instruct: ...``, ``Output: ...``) for several turns, where the base has no form for them."""

# https://cookbook.openai.com/examples/chat_finetuning_data_prep: 3 epochs, as far as that is 100 to 25,000 examples
EPOCHS, FEWEST_EXAMPLES, MOST_EXAMPLES, MOST_EPOCHS = 3, 100, 25_000, 25
STEPS_PER_EPOCH = 50
"""A global batch grows with the rows so long as an epoch keeps so many steps, up to ``LARGEST_BATCH``."""
LARGEST_BATCH = 32
ACTIVATION_BYTES = 4 << 30
"""What a micro-batch may take beside the model."""
HELD_OUT_SHARE, HELD_OUT_ROWS, HELD_OUT_PROMPTS = 0.1, 500, 5
"""Share that is held out; rows above which less of them tells as much; prompts below which it tells nothing."""


class Suggestion(NamedTuple):
    """Options of ``SFTData`` and of the Trainer that suit the rows.

    Attributes:
        block_size: Places of a training row: 99 of 100 rows fit.
        n_cut: Rows that are longer, of those that were looked at.
        validation_share: Share of the prompts that is held out; None: there are too few.
        global_batch_size: Packed rows of an optimizer step.
        micro_batch_size: Of those, how many are likely to fit into memory at once.
        max_epochs: Passes over the rows.
        n_steps: Optimizer steps of all of them, about.
    """

    block_size: int
    n_cut: int
    validation_share: float | None
    global_batch_size: int
    micro_batch_size: int
    max_epochs: int
    n_steps: int


class EveryNth(Rows):
    """Every n-th of some rows, so that all files of a folder are among them.

    Args:
        rows: The rows.
        step: n.
    """

    def __init__(self, rows: Rows, step: int) -> None:
        self.whole = rows
        self.prompt_style = rows.prompt_style
        self.step = step

    def rows(self) -> Iterator[Conversation]:
        """Yields the first row, and every n-th after it."""
        return islice(self.whole.rows(), 0, None, self.step)

    def fingerprint(self) -> dict[str, Any]:
        """The step, and what the rows depend on."""
        return {"kind": "EveryNth", "step": self.step, "rows": self.whole.fingerprint()}


def suggested_style(folder: Path, turns: bool) -> tuple[str, str]:
    """A prompt style, and why: the base's (``style_of_base``), and where it has none, one that tells turns apart.

    Args:
        folder: The model's.
        turns: Whether any row has more than a question and its answer: a system's turn, or several questions.
    """
    style, why = style_of_base(folder)
    if style == "default" and turns:
        return (
            SEVERAL_TURNS,
            "the base has no chat template, and the rows have turns, which default would not tell apart",
        )
    return style, why


def has_turns(row: Conversation) -> bool:
    """Whether a row is more than a question and its answer."""
    return not row.plain and [message["role"] for message in row.messages] != ["user", "assistant"]


def suggest(looked_at: Inspection, n_rows: int, config: Config) -> Suggestion:
    """Options that suit rows.

    Args:
        looked_at: Some of the rows, or all, in the style in which they will be trained on.
        n_rows: How many rows there are.
        config: The model's.
    """
    lengths = np.array(looked_at.lengths) - 1  # the last token of a row is only a target
    block_size = _block_size(lengths, config.block_size)
    scale = n_rows / len(lengths)
    share = _validation_share(looked_at, n_rows)
    packed = pack(np.minimum(lengths, block_size), block_size, seed=0).n_rows
    n_packed = max(1, round(packed * scale * (1 - (share or 0))))
    global_batch_size = _power_of_two(min(n_packed / STEPS_PER_EPOCH, LARGEST_BATCH))
    at_once = ACTIVATION_BYTES / (block_size * _bytes_per_token(config))
    max_epochs = _epochs(n_rows)
    return Suggestion(
        block_size,
        int((lengths > block_size).sum()),
        share,
        global_batch_size,
        min(global_batch_size, _power_of_two(at_once)),
        max_epochs,
        max_epochs * ceil(n_packed / global_batch_size),
    )


def _block_size(lengths: np.ndarray, longest: int) -> int:
    """The 99th percentile, rounded up to a multiple of 64, as far as the model's context goes."""
    return min(longest, -(-int(np.percentile(lengths, 99, method="inverted_cdf")) // 64) * 64)


def _validation_share(looked_at: Inspection, n_rows: int) -> float | None:
    """The least of some shares that holds enough prompts out: which ones follows from their texts (``HoldOut``)."""
    least = max(0.01, round(min(HELD_OUT_SHARE, HELD_OUT_ROWS / n_rows), 2))
    for share in sorted({least, HELD_OUT_SHARE, 0.2, 0.3}):
        held_out = sum(is_held_out(prompt, share) for prompt in looked_at.prompts)
        if share >= least and held_out >= HELD_OUT_PROMPTS:
            return share
    return None


def _epochs(n_rows: int) -> int:
    if n_rows * EPOCHS < FEWEST_EXAMPLES:
        return min(MOST_EPOCHS, FEWEST_EXAMPLES // n_rows)
    return min(EPOCHS, max(1, MOST_EXAMPLES // n_rows))


def _bytes_per_token(config: Config) -> int:
    """Of activations in float32: 17 numbers a layer and width, and three times the logits.

    The 17 are those of Korthikanti et al. 2022 (arXiv 2205.05198) without the scores of attention; the three are the
    logits, their gradient, and what the loss makes of them.
    """
    return 4 * (17 * config.n_layer * config.n_embd + 3 * config.padded_vocab_size)


def _power_of_two(most: float) -> int:
    """The largest power of two that is no more, at least 1."""
    return 2 ** int(log2(max(most, 1)))
