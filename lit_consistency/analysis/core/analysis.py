"""The contract of an analysis: what it asks of models, in parts that resume, and how it shows what it found.

A new analysis is one file in ``lit_consistency/analysis/``: a dataclass that extends ``Analysis``. Its file's name is
its name on the command line, its fields are its options (``--NAME.FIELD``), the first line of its docstring is its
line in ``analyze --help``. Tables, resuming, the page, TensorBoard and studies come by themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from lit_consistency.analysis.core.subject import Subject
from lit_consistency.drawing.figure import Figure
from lit_consistency.records.tables import Row

Advance = Callable[[float], object]
"""Called with the share of a part that is newly done, for the progress bar."""


class Analysis(ABC):
    """What is asked of a model, or of several together.

    Attributes:
        title: heading on the page.
        needs_model: whether it asks a model; one that reads the records of runs may not.
        needs_base: whether it compares with the base.
        needs_text: whether it reads ``--text``.
        uses_text: whether it does so where a text is given, and has fewer numbers where none is.
        together: whether it is asked once of all models, not once of each.
    """

    title: ClassVar[str]
    needs_model: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    uses_text: ClassVar[bool] = False
    together: ClassVar[bool] = False

    def check(self, subject: Subject) -> None:  # noqa: B027 (most have nothing more to check)
        """See that it can be asked, before anything is computed or written.

        Raises:
            ValueError: naming the option, its value and what is allowed; or both sides that do not fit.
        """

    def inputs(self, subject: Subject) -> list[str]:
        """Fingerprints of what else the numbers depend on, beside models, options and ``--text``.

        Called after ``check``; as a text that an option names, or the records of runs.
        """
        return []

    @abstractmethod
    def parts(self, subject: Subject) -> list[str]:
        """Names of the parts that are computed, and kept, one by one: those of a large model take minutes each."""

    @abstractmethod
    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """The rows of one part; a function of the subject, the options and the part alone.

        Columns of text say what a row is of (``layer``, ``matrix``, ``head``), the others are numbers, NaN where there
        is none, never infinite. ``model``, ``step`` and ``tau`` (time_scale.py) are added to the rows, but where models
        are analysed ``together``.
        """

    @abstractmethod
    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The few numbers that stand for a model, as ``stable_rank/attn.q``: for TensorBoard, tables, claims.

        Args:
            rows: of one model, or of all where they are analysed ``together``.
        """

    @abstractmethod
    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """What people look at first; the table holds the rest.

        Args:
            rows: of all models, in their order.
        """
