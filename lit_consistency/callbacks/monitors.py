"""A number that a callback of Lightning watches must be one that is logged: found out before training, not behind it.

EarlyStopping, ModelCheckpoint, and a schedule that waits for a plateau, would otherwise fail when an epoch is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_consistency.callbacks.changes import CHANGES, tags

DISTANCES = ("distance/", "relative_distance/", "moved/")
LOGGED = (*DISTANCES, "lr/", "speed/", "evaluation/", "selected/", "density/", "budget/")
"""Beginnings of names of which the rest depends on model and optimizer."""
OF_TRAINING = ("loss", "train/loss", "train/grad_norm", "train/penalty", "train/anchor", "epoch", "step")
"""``epoch`` and ``step`` are ModelCheckpoint's own."""
OF_ALL_TASKS = ("kl_to_base", "reverse_kl_to_base", "kl_to_base_retained", "reverse_kl_to_base_retained")


def check_monitors(trainer: Trainer, tasks: Mapping[str, Sequence[str]]) -> None:
    """See that what callbacks and schedules monitor will be there.

    Args:
        trainer: before training.
        tasks: ``KIND/NAME`` of every watched task -> its metrics, first the one that judges it.

    Raises:
        ValueError: a monitor that nobody logs; names it and the nearest ones. Only a warning where a callback of the
            user's own may log it.
    """
    names = {*OF_TRAINING, *OF_ALL_TASKS, *_names_of(tasks), *(["val/loss"] if _validates(trainer) else [])}
    for place, watcher, monitor in _monitors(trainer):
        if monitor in names or monitor.startswith(LOGGED):
            continue
        near = get_close_matches(monitor, names, n=3, cutoff=0.4) or sorted(names)
        message = (
            f"{place}: {watcher} monitors {monitor!r}, which nothing logs; expected one of "
            f"{', '.join(near)}{', ...' if len(near) < len(names) else ''}"
        )
        if any(_is_foreign(other) for other in trainer.callbacks):  # type: ignore[attr-defined]
            rank_zero_warn(f"{message}, or a number of your own callbacks")
        else:
            raise ValueError(message)


def _monitors(trainer: Trainer) -> Iterator[tuple[str, str, str]]:
    """Where it is configured, who watches, and what; a callback may watch several numbers."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        for name in monitor if isinstance(monitor, list | tuple) else [monitor]:
            if isinstance(name, str):
                yield "trainer.callbacks", type(callback).__name__, name
    for schedule in trainer.lr_scheduler_configs:
        if schedule.reduce_on_plateau and schedule.monitor is not None:  # the others have a monitor that is not read
            yield "model.schedule", type(schedule.scheduler).__name__, schedule.monitor


def _names_of(tasks: Mapping[str, Sequence[str]]) -> set[str]:
    """What is logged of the tasks: values, changes since the base, and the errors of both."""
    names = set()
    for key, (judge, *others) in tasks.items():
        kind, name = key.split("/", 1)
        for metric in (judge, *others):
            names |= set(tags(key, metric, judge))
            if metric != "word_perplexity":  # of which no change is logged
                names |= set(tags(f"{CHANGES[kind]}/{name}", metric, judge))
        names |= {f"retained/{name}", f"kl_to_base/{name}", f"reverse_kl_to_base/{name}"}
    return names


def _validates(trainer: Trainer) -> bool:
    return bool(trainer.limit_val_batches) and getattr(trainer.datamodule, "validation", None) is not None  # type: ignore[attr-defined]


def _is_foreign(callback: Callback) -> bool:
    return not type(callback).__module__.startswith(("lightning.", "lit_consistency."))
