"""One world for a run: all sources, rows and watched tasks that name no world refer to the key ``world``.

It is filled in when the classes are built, not in the configuration: ``<run>/config.yaml`` names the world once, so
that ``--world.init_args.seed 1`` over it changes all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_consistency.cli.overlays import same_class
from lit_consistency.records.differences import flatten


def with_world(config: Namespace) -> Namespace:
    """The configuration of a command with its world wherever one is asked for and none is named.

    Where ``world`` is null, the run's world is the one that it trains on.

    Raises:
        ValueError: what is trained on, or asked of the new task, is of another world than the run's; names both keys.
    """
    config = config.clone()
    nested = list(_worlds(config))
    named = {key: node["world"] for key, node in nested if node["world"] is not None}
    trained = {key: world for key, world in named.items() if key.startswith("data.") and ".replay." not in key}
    run, world = ("world", config["world"]) if config["world"] is not None else next(iter(trained.items()), ("", None))
    if world is None:
        return config
    others = {key: text for key, other in named.items() if (text := _difference(other, world))}
    for key, text in others.items():
        if key in trained or key.startswith("forgetting.learn."):
            raise ValueError(
                f"{key}, {run}: {text}; expected the same world in both, which is trained on and asked about: leave "
                "the first one away, or make them equal"
            )
    if others:
        texts = "; ".join(f"{key}: {text} in {run}" for key, text in others.items())
        rank_zero_warn(f"more than one world in this run: {texts}")
    for _, node in nested:
        if node["world"] is None:
            node["world"] = world.clone()
    return config


def _worlds(node: Any, prefix: str = "") -> Iterator[tuple[str, Namespace]]:
    """Dotted key and owner of every ``world`` below the first level."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, Namespace) and prefix and "world" in node:
        yield f"{prefix}world", node
    for key, value in (node.__dict__ if isinstance(node, Namespace) else node).items():
        if isinstance(value, Namespace | dict | list):
            yield from _worlds(value, f"{prefix}{key}.")


def _difference(one: Namespace, other: Namespace) -> str:
    """What tells the first world from the second, in words; empty where nothing does."""
    if not same_class(one["class_path"], other["class_path"]):
        return f"class_path = {one['class_path']} against {other['class_path']}"
    first, second = (flatten(world["init_args"].as_dict()) for world in (one, other))
    keys = [key for key in first if first[key] != second.get(key)]
    return ", ".join(f"{key} = {first[key]} against {second.get(key)}" for key in keys)
