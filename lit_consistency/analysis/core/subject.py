"""What an analysis is asked of: a model, its base, all models of the run, and the texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.texts import Reading, Text
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.load import Loaded, find_device, load_model
from lit_consistency.records.fingerprints import fingerprint_of

T = TypeVar("T")
IN_MEMORY = 2
"""Loaded models that are kept: a model and its base."""


class Shared:
    """What all subjects of one run share, so that it is read once: loaded models and encoded texts.

    Args:
        device: as in ``load_model``.
        precision: likewise.
        reading: how texts are read.
    """

    def __init__(self, device: str, precision: str, reading: Reading) -> None:
        self.device, self.precision, self.reading = device, precision, reading
        self._models: OrderedDict[Path, Loaded] = OrderedDict()
        self._texts: dict[tuple[str, str, int], Text] = {}
        self._made: dict[Hashable, Any] = {}

    def load(self, files: ModelFiles) -> Loaded:
        """A model in evaluation mode; whoever changes its weights puts them back."""
        if files.folder not in self._models:
            while len(self._models) >= IN_MEMORY:
                self._models.popitem(last=False)
            self._models[files.folder] = load_model(files.folder, self.device, self.precision)
        self._models.move_to_end(files.folder)
        return self._models[files.folder]

    def text(self, name: str, files: ModelFiles) -> Text:
        """A text as tokens of this model.

        Raises:
            ValueError: the model has fewer tokens than its tokenizer.
        """
        tokenizer = Tokenizer(files.folder)
        if tokenizer.vocab_size > files.config.padded_vocab_size:
            raise ValueError(
                f"{files.folder}: padded_vocab_size = {files.config.padded_vocab_size}, and its tokenizer has "
                f"{tokenizer.vocab_size} tokens; expected a model that knows all of them"
            )
        key = (name, fingerprint_of(tokenizer.fingerprint()), files.config.block_size)
        if key not in self._texts:
            self._texts[key] = Text(name, tokenizer, files.config.block_size, self.reading)
        return self._texts[key]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several parts of a run need, made by the first of them and kept in memory.

        Args:
            key: all that it depends on beyond the options of the run.
            make: makes it.
        """
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])


@dataclass(frozen=True)
class Subject:
    """What an analysis is asked of.

    Args:
        analysed: the model that is analysed; of analyses of several together the last one; None if none is asked.
        base: from which it was trained; None if there is none.
        models: all of the run.
        texts: names of ``--text``; the first is what the models should retain.
        shared: loaded models and encoded texts.
        batch_tokens: budget of padded tokens in one forward.
        seed: of all draws.
        output: folder of the run, for what is too large for a table.
    """

    analysed: ModelFiles | None
    base: ModelFiles | None
    models: Sequence[ModelFiles]
    texts: Sequence[str]
    shared: Shared
    batch_tokens: int = 16384
    seed: int = 0
    output: Path = field(default=Path())

    @property
    def model(self) -> ModelFiles:
        """The model that is analysed, which ``needs_model`` promises."""
        assert self.analysed is not None
        return self.analysed

    def load(self, files: ModelFiles | None = None) -> Loaded:
        """The model, or another one, in evaluation mode on its device; whoever changes its weights puts them back."""
        return self.shared.load(files or self.model)

    def text(self, name: str | None = None) -> Text:
        """A text by its name, the first of ``--text`` when not given.

        Raises:
            FileNotFoundError: there is no such task or file.
            ValueError: it does not fit the model.
        """
        return self.shared.text(name if name is not None else self.texts[0], self.model)

    def check_same_tokens(self, other: ModelFiles) -> None:
        """ValueError with both sides where another model reads other tokens: their losses would not be of one text."""
        for name in self.texts:
            if self.shared.text(name, other).fingerprint != self.text(name).fingerprint:
                raise ValueError(
                    f"text = {name!r}: {self.model.folder} and {other.folder} make other tokens of it; expected one "
                    "tokenizer and block_size"
                )

    def of(self, model: ModelFiles) -> Subject:
        """The same for another of the models."""
        return replace(self, analysed=model)

    @property
    def origin(self) -> ModelFiles:
        """The base, which ``needs_base`` promises."""
        assert self.base is not None
        return self.base


def fingerprint_parts(subject: Subject, with_texts: bool) -> Mapping[str, object]:
    """What of a subject the numbers of an analysis may depend on, as JSON."""
    return {
        "model": subject.analysed.fingerprint if subject.analysed else None,
        "base": subject.base.fingerprint if subject.base else None,
        "models": [files.fingerprint for files in subject.models],
        "texts": [subject.text(name).fingerprint for name in subject.texts] if with_texts else [],
        "seed": subject.seed,
        "precision": subject.shared.precision,
        "device": find_device(subject.shared.device).type,
        "reading": repr(subject.shared.reading),
    }
