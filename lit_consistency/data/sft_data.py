"""Supervised finetuning on conversations: prompts, answers, and the loss on the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.base_style import taken_style
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

WITH_ROLES = ("messages", "conversations")
"""Formats of rows that say who speaks."""


class SFTData(TokenData):
    """Rows of instructions or conversations.

    Args:
        rows: Conversations to train on.
        validation: Held-out conversations, such as the same rows with `part: validation`; None validates on nothing.
        replay: Text of pretraining or conversations of earlier tasks that are mixed in, or None.
        prompt_style: `default` (the bare text of prompt and completion), a prompt style of LitGPT such as `alpaca` or
            `llama3`, or `chat_template`, the tokenizer's own. None takes what the base has: its chat template, else
            the style of its prompt_style.yaml, else `default`; rows of a task or a world are taken as they are asked.
        loss_on: `completion` learns every answer and its end-of-turn token, `all` the prompt too.
        packing: Several conversations in a row; attention and positions stay within each.
        group_by_length: Where nothing is packed, rows of about one length share a micro-batch, so that less of it is
            padding. Which rows a step takes stays as it is, so results change by rounding alone.
        too_long: `truncate` cuts a conversation of more than `block_size + 1` tokens at its end and counts it,
            `refuse` stops with its file and row.
        **kwargs: See ``TokenData``: batch sizes, block size, workers, seed, folders.
    """

    def __init__(
        self,
        rows: Rows,
        validation: Rows | None = None,
        replay: Replay | None = None,
        prompt_style: str | None = None,
        loss_on: LossOn = "completion",
        packing: bool = True,
        too_long: TooLong = "truncate",
        group_by_length: bool = False,
        **kwargs: Any,
    ) -> None:
        if prompt_style is not None:
            check_style(prompt_style)
        for key, value, allowed in (
            ("loss_on", loss_on, ("completion", "all")),
            ("too_long", too_long, ("truncate", "refuse")),
        ):
            if value not in allowed:
                raise ValueError(f"{key} = {value!r}: expected {' or '.join(allowed)}")
        if group_by_length and packing:
            raise ValueError("group_by_length = true with packing = true, whose rows are full: expected one of them")
        super().__init__(rows, validation, replay, **kwargs)
        self.group_by_length = group_by_length
        self._prompt_style = prompt_style
        self.loss_on: LossOn = loss_on
        self.packing = packing
        self.too_long: TooLong = too_long

    def taken_style(self) -> tuple[str, str]:
        """The prompt style, and why: what was given, else that of the rows, else that of the tokenizer's folder."""
        if self._prompt_style is not None:
            return self._prompt_style, "as given"
        of_rows = self.train.prompt_style if isinstance(self.train, Rows) else None
        return taken_style(of_rows, self.tokenizer_folder)

    @property
    def prompt_style(self) -> str:
        """The style in which rows are written."""
        return self.taken_style()[0]

    def setup(self, stage: str | None = None) -> None:
        """As of ``TokenData``; says which style was taken, and when rows with roles are trained on without them."""
        super().setup(stage)
        style, why = self.taken_style()
        if self._prompt_style is None:
            rank_zero_info(style_line(style, why))
        if stage not in ("fit", None) or style != "default":
            return
        row = next(iter(self.train.rows()), None) if isinstance(self.train, Rows) else None
        if row is None:
            return
        if self.tokenizer.chat_template is not None:
            has_roles = row.format in WITH_ROLES or len(row.messages) > 2 or row.messages[0]["role"] == "system"
            instead = "the base has a chat template: --data.init_args.prompt_style null trains it as it is used"
        else:  # a question and its answer are told apart by their order
            has_roles = len(row.messages) > 2 and not row.plain
            instead = "--data.init_args.prompt_style phi-2 tells them apart by plain words"
        if has_roles:
            rank_zero_warn(
                f"data: {row.place} has turns with roles, of which prompt_style = default writes none; {instead}"
            )

    def fingerprint(self) -> dict[str, Any]:
        """What the batches depend on, packing included."""
        return {**super().fingerprint(), "packing": self.packing}

    def _fingerprint(self, part: Source | Rows) -> dict[str, Any]:
        if isinstance(part, Source):
            return document_fingerprint(part, self.tokenizer, self.parse_special_tokens)
        return conversation_fingerprint(part, self.encoder(), self.tokenizer, self.block_size, self.too_long)

    def _build(self, folder: Path, part: Source | Rows, label: str) -> None:
        if isinstance(part, Source):
            write_documents(folder, part, self.tokenizer, label, self.parse_special_tokens)
            return
        write_conversations(folder, part, self.encoder(), self.tokenizer, self.block_size, self.too_long, label)

    def _token_rows(self, shard: Shard) -> TokenRows:
        if shard.supervised is None:
            return StreamRows(shard, self.block_size)
        return ConversationRows(shard, self.block_size, self.packing, self._order_seed())

    def encoder(self) -> PromptEncoder:
        """What turns rows into tokens and masks."""
        return PromptEncoder(self.tokenizer, self.prompt_style, self.loss_on, self.parse_special_tokens)


def style_line(style: str, why: str) -> str:
    """The line that says which style was taken, where none was given."""
    return f"data: prompt_style = {style}: {why}"
