"""Pretraining on documents: the stream of their tokens, cut into rows of `block_size`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.sources.documents import Source
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.data.tokens.token_rows import StreamRows, TokenRows
from lit_consistency.data.tokens.tokenize import document_fingerprint, write_documents


class PretrainData(TokenData):
    """Documents of a source, packed without gaps into rows; attention and positions stay within a document.

    Args:
        source: Documents to train on.
        validation: Held-out documents, such as the same source with `part: validation`; None validates on nothing.
        replay: Documents of an earlier pretraining that are mixed in, or None.
        **kwargs: See ``TokenData``: batch sizes, block size, workers, seed, folders.
    """

    packing = True  # rows hold several documents, so the model must be able to mask

    def __init__(
        self,
        source: Source,
        validation: Source | None = None,
        replay: Replay | None = None,
        **kwargs: Any,
    ) -> None:
        for name, part in replay.parts.items() if replay is not None else ():
            if not isinstance(part, Source):
                raise ValueError(f"replay.parts.{name} = {type(part).__name__}: expected documents, such as TextFiles")
        super().__init__(source, validation, replay, **kwargs)

    def _fingerprint(self, part: Source) -> dict[str, Any]:
        return document_fingerprint(part, self.tokenizer, self.parse_special_tokens)

    def _build(self, folder: Path, part: Source, label: str) -> None:
        write_documents(folder, part, self.tokenizer, label, self.parse_special_tokens)

    def _token_rows(self, shard: Shard) -> TokenRows:
        return StreamRows(shard, self.block_size)
