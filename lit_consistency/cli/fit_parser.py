"""The parser of the commands that Lightning makes: its errors say what is allowed."""

from __future__ import annotations

import traceback

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_consistency.cli.parser import ShortErrors, one_line
from lit_consistency.cli.suggestions import NO_CLASS_YET, suggestion
from lit_consistency.cli.world import with_world

# What jsonargparse 4.41 says of a string that a Literal of strings does not have, instead of what it has.
NO_TYPES = "Cannot take a Union of no types."
NO_WORLD = "Not a valid subclass of World."


class Parser(ShortErrors, LightningArgumentParser):
    """LightningArgumentParser with errors in a few lines, which say what is allowed.

    Attributes:
        shares_world: whether this is the parser of a command, whose key ``world`` all others refer to.
    """

    builds_all = True  # Lightning does
    shares_world = False

    def instantiate_classes(self, cfg: Namespace, instantiate_groups: bool = True) -> Namespace:
        """Build the classes, with the run's world wherever none is named."""
        cfg = with_world(cfg) if self.shares_world else cfg
        return super().instantiate_classes(cfg, instantiate_groups=instantiate_groups)

    def hint(self, message: str) -> str:
        """Also options of classes, and the words of other libraries."""
        meant = suggestion(message)
        return f"{meant}\n" if meant else super().hint(message)

    def in_words(self, message: str, ex: Exception | None) -> str:
        """With what is allowed in place of what jsonargparse says of it."""
        if NO_WORLD in message:
            what = "a class of lit_consistency.data.worlds; the run's own is changed by --world and --world.init_args"
            return f"{message.partition(NO_WORLD)[0]}no class_path of a world is given: expected {what}"
        if match := NO_CLASS_YET.search(one_line(message)):
            key, kind, option, value = match.groups()
            chosen = f"no {kind.lower()} is chosen of which it is an option"
            return f"{key}.init_args.{option} = {value}: {chosen}: expected --{key} too"
        if NO_TYPES not in message:
            return message
        return message.replace(NO_TYPES, _choices(ex) or NO_TYPES)


def _choices(error: BaseException | None) -> str | None:
    """The value and what is allowed, from the place where the error was raised."""
    words = None
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__ if str(error) == NO_TYPES else None):
            if allowed := frame.f_locals.get("subtypehints"):
                words = f"{frame.f_locals['val']!r}: expected one of {', '.join(map(str, allowed))}"
        error = error.__cause__ or error.__context__
    return words
