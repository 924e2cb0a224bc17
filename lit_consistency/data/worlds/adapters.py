"""A world as the source of pretraining and as the rows of finetuning: the DataModules need not know what a world is.

Example:
    ```yaml
    world: {class_path: lit_consistency.data.worlds.Biographies, init_args: {n_people: 500, seed: 0}}
    data:
      class_path: lit_consistency.data.PretrainData
      init_args:
        source: lit_consistency.data.worlds.WorldText
    ```
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.data.worlds.base import PARTS, SPLITS, World, check_choice


class WorldText(Source):
    """The documents of a world.

    Args:
        world: The world; null: the run's `world`.
        part: `train`, or `held_out` for validation.

    Raises:
        ValueError: There is no world, or no such part.
    """

    def __init__(self, world: World | None = None, part: str = "train") -> None:
        check_choice("part", part, PARTS)
        self.world = _required(world)
        self.part = part

    def documents(self) -> Iterator[str]:
        """Yields every document of the part once."""
        return self.world.documents(self.part)

    def fingerprint(self) -> dict[str, Any]:
        """The world's fields and the part."""
        return {"kind": "WorldText", **self.world.fingerprint(), "part": self.part}

    def default_tokenizer(self) -> Tokenizer:
        """The world's own tokenizer."""
        return self.world.tokenizer()


class WorldRows(Rows):
    """The rows of one of a world's tasks: a user's turn and an assistant's.

    Args:
        world: The world; null: the run's `world`.
        task: One of the world's tasks; null: the only one that it has.
        split: `train` or `test`.
        n_rows: How many of the rows are taken, from the first; None = all.

    Raises:
        ValueError: There is no world, no such task or split, or no row is taken.
    """

    prompt_style = "default"  # the world's tasks ask so

    def __init__(
        self, world: World | None = None, task: str | None = None, split: str = "train", n_rows: int | None = None
    ) -> None:
        world = _required(world)
        if task is None and len(world.tasks) == 1:
            task = world.tasks[0]
        check_choice("task", task, world.tasks)
        assert task is not None
        check_choice("split", split, SPLITS)
        if n_rows is not None and n_rows < 1:
            raise ValueError(f"n_rows = {n_rows}: expected at least 1, or null for all rows")
        self.world = world
        self.task = task
        self.split = split
        self.n_rows = n_rows

    def rows(self) -> Iterator[Conversation]:
        """Yields every row once."""
        for i, (prompt, completion) in enumerate(self.world.rows(self.task, self.split)[: self.n_rows]):
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            yield Conversation(messages, f"{type(self.world).__name__}/{self.task}/{self.split}:{i}")

    def fingerprint(self) -> dict[str, Any]:
        """The world's fields, task, split and number of rows."""
        own = {"task": self.task, "split": self.split, "n_rows": self.n_rows}
        return {"kind": "WorldRows", **self.world.fingerprint(), **own}

    def default_tokenizer(self) -> Tokenizer:
        """The world's own tokenizer."""
        return self.world.tokenizer()


def _required(world: World | None) -> World:
    if world is None:
        raise ValueError(
            "world = None: expected a world of lit_consistency.data.worlds, as "
            "`--world lit_consistency.data.worlds.Biographies`, to which all that name none refer"
        )
    return world
