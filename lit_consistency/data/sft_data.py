"""Supervised finetuning on conversations: prompts, answers, and the loss on the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.prompts import LossOn, PromptEncoder, check_style
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.data.tokens.token_rows import ConversationRows, StreamRows, TokenRows
from lit_consistency.data.tokens.tokenize import (
    TooLong,
    conversation_fingerprint,
    document_fingerprint,
    write_conversations,
    write_documents,
)


class SFTData(TokenData):
    """Rows of instructions or conversations.

    Args:
        rows: Conversations to train on.
        validation: Held-out conversations, such as the same rows with `part: validation`; None validates on nothing.
        replay: Text of pretraining or conversations of earlier tasks that are mixed in, or None.
        prompt_style: `default` (the bare text of prompt and completion), a prompt style of LitGPT such as `alpaca` or
            `llama3`, or `chat_template`, the tokenizer's own.
        loss_on: `completion` learns every answer and its end-of-turn token, `all` the prompt too.
        packing: Several conversations in a row; attention and positions stay within each.
        too_long: `truncate` cuts a conversation of more than `block_size + 1` tokens at its end and counts it,
            `refuse` stops with its file and row.
        global_batch_size: Rows of one optimizer step, over all devices.
        micro_batch_size: Rows a device takes at once; divides the global batch.
        block_size: Tokens of a row, at most the model's block_size.
        num_workers: Processes that prepare batches.
        seed: Seed of the order of rows and of packing; None takes the run's seed.
        tokenizer_dir: Folder of the tokenizer; None takes the model's checkpoint, else the rows' own tokenizer.
        cache_dir: Folder for tokens; None is ~/.cache/lit_consistency/tokens.
    """

    def __init__(
        self,
        rows: Rows,
        validation: Rows | None = None,
        replay: Replay | None = None,
        prompt_style: str = "default",
        loss_on: LossOn = "completion",
        packing: bool = True,
        too_long: TooLong = "truncate",
        global_batch_size: int = 32,
        micro_batch_size: int = 8,
        block_size: int = 512,
        num_workers: int = 0,
        seed: int | None = None,
        tokenizer_dir: Path | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        check_style(prompt_style)
        for key, value, allowed in (
            ("loss_on", loss_on, ("completion", "all")),
            ("too_long", too_long, ("truncate", "refuse")),
        ):
            if value not in allowed:
                raise ValueError(f"{key} = {value!r}: expected {' or '.join(allowed)}")
        super().__init__(
            rows,
            validation,
            replay,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            block_size=block_size,
            num_workers=num_workers,
            seed=seed,
            tokenizer_dir=tokenizer_dir,
            cache_dir=cache_dir,
        )
        self.prompt_style = prompt_style
        self.loss_on: LossOn = loss_on
        self.packing = packing
        self.too_long: TooLong = too_long

    def fingerprint(self) -> dict[str, Any]:
        """What the batches depend on, packing included."""
        return {**super().fingerprint(), "packing": self.packing}

    def _fingerprint(self, part: Source | Rows) -> dict[str, Any]:
        if isinstance(part, Source):
            return document_fingerprint(part, self.tokenizer)
        return conversation_fingerprint(part, self._encoder(), self.tokenizer, self.block_size, self.too_long)

    def _build(self, folder: Path, part: Source | Rows, label: str) -> None:
        if isinstance(part, Source):
            write_documents(folder, part, self.tokenizer, label)
            return
        write_conversations(folder, part, self._encoder(), self.tokenizer, self.block_size, self.too_long, label)

    def _token_rows(self, shard: Shard) -> TokenRows:
        if shard.supervised is None:
            return StreamRows(shard, self.block_size)
        return ConversationRows(shard, self.block_size, self.packing, self._order_seed())

    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self.tokenizer, self.prompt_style, self.loss_on)
