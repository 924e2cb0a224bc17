"""Data sets of the Hugging Face hub, or local folders in its layout; needs the extra ``hf``.

The library ``datasets`` downloads and caches. The fingerprint is the library's own for the loaded split: it changes
when the data set changes. Loading waits for the first use, so that a configuration can be parsed without a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.files import take_text
from lit_consistency.data.sources.hold_out import HoldOut, Part
from lit_consistency.data.sources.rows import ReadRows
from lit_consistency.records.extras import require


class _Hub:
    """A split of a data set, loaded at first use."""

    def __init__(
        self, name: str, split: str, config_name: str | None, revision: str | None, data_dir: str | None = None
    ) -> None:
        require("datasets", type(self).__name__)
        self.data_dir = data_dir
        self.name = name
        self.split = split
        self.config_name = config_name
        self.revision = revision

    @cached_property
    def table(self) -> Any:
        """The rows of the split.

        Raises:
            ValueError: The hub does not give it; names data set and split.
        """
        import datasets

        try:
            return datasets.load_dataset(
                self.name, self.config_name, data_dir=self.data_dir, split=self.split, revision=self.revision
            )
        except Exception as error:  # the library raises a dozen kinds for: no such name, configuration, split, network
            raise ValueError(f"name = {self.name}, split = {self.split}: could not be loaded ({error})") from error

    def read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row as (``name/split:row``, values), rows counted from 1."""
        for number, row in enumerate(self.table, start=1):
            yield f"{self.name}/{self.split}:{number}", row

    def identity(self) -> dict[str, Any]:
        """The options, the number of rows and the library's fingerprint of them, as JSON."""
        options = {"name": self.name, "config_name": self.config_name, "split": self.split, "revision": self.revision}
        if self.data_dir is not None:
            options["data_dir"] = self.data_dir
        return {"kind": type(self).__name__, **options, "n_rows": len(self.table), "hub": self.table._fingerprint}


class HubDataset(_Hub, Source):
    """Documents of a data set of the Hugging Face hub.

    Args:
        name: Name on the hub, such as ``roneneldan/TinyStories``, or a local folder.
        split: Name of the split.
        field: Name of the column that holds the text.
        config_name: Configuration of the data set, where it has several.
        revision: Commit, tag or branch; None takes the newest.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, by their text; 0 < share < 1 where ``part`` is not ``all``.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        field: str = "text",
        config_name: str | None = None,
        revision: str | None = None,
        part: Part = "all",
        validation_share: float = 0.0,
    ) -> None:
        super().__init__(name, split, config_name, revision)
        self.field = field
        self.hold_out = HoldOut(part, validation_share)

    def documents(self) -> Iterator[str]:
        """Yields the documents of the part."""
        self.n_blank = 0
        for place, value in self.read():
            text = take_text(value, self.field, place)
            if not text.strip():
                self.n_blank += 1
            elif self.hold_out.keeps(text):
                yield text

    def fingerprint(self) -> dict[str, Any]:
        """Name, split, options, number of rows and the library's fingerprint."""
        return {**self.identity(), "field": self.field, **self.hold_out.fingerprint()}


class HubRows(_Hub, ReadRows):
    """Conversations of a data set of the Hugging Face hub; their format is detected as in ``RowFiles``.

    Args:
        name: Name on the hub, such as ``openai/gsm8k``, or a local folder.
        split: Name of the split.
        config_name: Configuration of the data set, where it has several.
        revision: Commit, tag or branch; None takes the newest.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of prompts held out with all their answers; 0 < share < 1 where ``part`` is not ``all``.
        data_dir: Folder of the repository; names a configuration in the branch ``refs/convert/parquet``.
        columns: As of ``RowFiles``.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        config_name: str | None = None,
        revision: str | None = None,
        part: Part = "all",
        validation_share: float = 0.0,
        data_dir: str | None = None,
        columns: dict[str, str] | None = None,
    ) -> None:
        _Hub.__init__(self, name, split, config_name, revision, data_dir)
        ReadRows.__init__(self, columns, part, validation_share)

    def fingerprint(self) -> dict[str, Any]:
        """Name, split, options, number of rows and the library's fingerprint."""
        return {**self.identity(), **self._read_as()}
