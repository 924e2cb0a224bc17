"""Where the rows of a task come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.hold_out import HoldOut, Part
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.worlds.base import World


@dataclass(frozen=True)
class TaskData:
    """Where rows come from: files, a split of a data set of the hub (extra ``hf``), or a synthetic world.

    Args:
        path: file, folder, glob pattern or zip: .jsonl, .json (a list, or an object with ``records``), .csv, .txt,
            .parquet, and .gz of the text formats.
        member: which files of a zip or folder count, as ``data/test/*.csv``.
        records: name of the list of rows in a .json object; the object's other fields belong to every row.
        columns: names of the columns of a .csv without a header.
        separator: text between two documents of a .txt; None: a file is a document.
        part: ``all``, or ``train`` or ``validation`` as ``TextFiles`` divides the documents of .txt files.
        validation_share: as of ``TextFiles``.
        hub: name on the Hugging Face hub, in place of ``path``.
        config: configuration of the hub's data set.
        data_dir: folder of its repository; in the branch ``refs/convert/parquet``, which data sets that were once a
            script need, it names a configuration.
        split: its split.
        revision: its commit, tag or branch; None takes the newest.
        world: a world, in place of ``path``, as ``class_path`` and ``init_args``; a run puts its own in its place. One
            of the next three says what is taken of it.
        probes: its set of questions of that name: fields ``prompt``, ``answer``, ``choices``, and the tags.
        documents: its text, ``train`` or ``held_out``: field ``text``.
        pairs: rows of one of its finetuning tasks, as ``new_people/test``: fields ``prompt`` and ``completion``.
        source: documents that stand in memory (the held-out part of a run's data), in place of ``path``.
        rows: conversations that do, likewise.
    """

    path: str | None = None
    member: str | None = None
    records: str | None = None
    columns: tuple[str, ...] = ()
    separator: str | None = None
    part: str = "all"
    validation_share: float = 0.0
    hub: str | None = None
    config: str | None = None
    data_dir: str | None = None
    split: str | None = None
    revision: str | None = None
    world: World | None = None
    probes: str | None = None
    documents: str | None = None
    pairs: str | None = None
    source: Source | None = None
    rows: Rows | None = None

    def __post_init__(self) -> None:
        origins = {key: getattr(self, key) for key in ("path", "hub", "world", "source", "rows")}
        if sum(value is not None for value in origins.values()) != 1:
            given = ", ".join(f"{key} = {origins[key]}" for key in ("path", "hub", "world"))
            raise ValueError(f"{given}: expected exactly one of the three")
        if (self.split is None) != (self.hub is None):
            raise ValueError(
                f"split = {self.split}, hub = {self.hub}: expected a split with a name on the hub, else none"
            )
        if self.part != "all":
            if self.path is None or not self.path.endswith(".txt"):
                raise ValueError(
                    f"part = {self.part!r}: expected a path that ends in .txt, whose documents are divided"
                )
            HoldOut(cast(Part, self.part), self.validation_share)
        needs = {"hub": ("config", "data_dir", "revision"), "path": ("member", "records", "columns", "separator")}
        for origin, keys in needs.items():
            if origins[origin] is None and (idle := [key for key in keys if getattr(self, key)]):
                raise ValueError(f"{idle[0]} = {getattr(self, idle[0])!r}: expected a {origin} with it")
        if self.validation_share and self.part == "all":
            raise ValueError(f"validation_share = {self.validation_share}, part = 'all': expected train or validation")
        views = {key: getattr(self, key) for key in ("probes", "documents", "pairs")}
        if sum(value is not None for value in views.values()) != (self.world is not None):
            given = ", ".join(f"{key} = {value}" for key, value in views.items())
            raise ValueError(f"{given}: expected one of the three with a world, else none")

    @property
    def origin(self) -> str:
        """Where the rows come from, for messages."""
        if self.world is not None:
            return f"{type(self.world).__name__}/{self.probes or self.documents or self.pairs}"
        if self.source is not None:
            return self.source.shown_as
        return str(self.path or self.hub) if self.rows is None else type(self.rows).__name__
