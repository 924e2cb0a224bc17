"""What a run must not forget: the sets that the user names, or else the package's suite with the base's own samples.

Where ``forgetting.retain`` is not given and the run starts from a base, the suite is watched; a set of it that the base
cannot be asked (its tokenizer reads no English, its context is too short) is left out with a word. What is named is
watched as it is named, and what is wrong with it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.tasks.suite import NAME, OWN_SAMPLES, SETS, reads_english
from lit_consistency.tasks.suite.own_samples import LENGTH, N_TEXTS, Samples, draw_texts, own_samples_task
from lit_consistency.tasks.watched import PreparedTask, WatchedTask

OFF = "--forgetting.retain '{}' switches it off, '[suite, NAME]' adds a set, '[suite/pairs, NAME]' takes one of it"


class RetainedSets:
    """The sets that are watched for forgetting.

    Args:
        learn: the sets that the run is to learn, whose names are taken.
        retain: as the user names them; None: the suite, in a run that starts from a base.

    Attributes:
        sets: name -> how it is asked; those of the default are there once ``prepare`` has been called.
        texts: tokens of the base's own samples, once they are drawn.

    Raises:
        FileNotFoundError: there is no such task.
        ValueError: a name, or an option of a set; names the key and what is allowed.
    """

    def __init__(self, learn: Mapping[str, WatchedTask], retain: Mapping[str, WatchedTask] | None) -> None:
        self.learn = dict(learn)
        self.is_default = retain is None
        self.sets = _with_suite(retain or {})
        self.texts: list[list[int]] | None = None
        self.samples: Samples | None = None
        self._own: str | None = None  # name of the base's own samples among the sets
        self._tokenizer: Tokenizer | None = None
        for name, watched in self.learn.items():
            _check("learn", name, watched, self.sets)
        for name, watched in self.sets.items():
            _check("retain", name, watched, {})
        if len(own := [name for name, watched in self.sets.items() if _is_own(name, watched)]) > 1:
            raise ValueError(f"forgetting.retain: {' and '.join(own)} are the base's own samples; expected one of them")

    @property
    def own(self) -> list[str]:
        """Name of the base's own samples, where they are watched."""
        return [] if self._own is None else [self._own]

    def prepare(
        self, tokenizer: Tokenizer, block_size: int, *, has_base: bool, in_fit: bool
    ) -> dict[str, PreparedTask]:
        """Read and encode the sets that have rows.

        Args:
            tokenizer: of the model.
            block_size: longest input of the model, in tokens.
            has_base: whether the run starts from a base, which the default is for.
            in_fit: whether there will be a start to compare with; the base's own samples need one.
        """
        self._tokenizer = tokenizer
        if self.is_default:
            self.sets = self._default() if has_base else {}
        own = {name: watched for name, watched in self.sets.items() if _is_own(name, watched)}
        self._own = next(iter(own), None) if in_fit else None
        if own and not in_fit:
            rank_zero_info(f"{next(iter(own))}: not measured, there is no start here to compare with")
        asked = {name: watched for name, watched in self.sets.items() if name not in own}
        if not self.is_default:
            return {name: watched.prepare(name, tokenizer, block_size) for name, watched in asked.items()}
        return self._prepare_default(asked, tokenizer, block_size)

    def _default(self) -> dict[str, WatchedTask]:
        """The sets of the suite, under names that no set has that is learned."""
        return {f"{NAME}_{s}" if s in self.learn else s: WatchedTask(f"{NAME}/{s}") for s in SETS}

    def _prepare_default(
        self, asked: Mapping[str, WatchedTask], tokenizer: Tokenizer, block_size: int
    ) -> dict[str, PreparedTask]:
        """Those sets of the suite that this model can be asked, said in a line."""
        prepared: dict[str, PreparedTask] = {}
        refused: dict[str, str] = {}
        if asked and not reads_english(tokenizer):
            refused = dict.fromkeys(asked, "the base's tokenizer reads no English")
        for name, watched in asked.items():
            if name in refused:
                continue
            try:
                task = watched.prepare(name, tokenizer, block_size)
            except ValueError as error:  # the rows are right, so it is the model: a context that is too short
                refused[name] = str(error)
                continue
            questions = task.encoded.questions
            if 2 * sum(question.n_truncated > 0 for question in questions) > len(questions):
                refused[name] = f"most of its questions do not fit into the base's context of {block_size} tokens"
            else:
                task.tells_constant = False  # the table marks what the base cannot do
                prepared[name] = task
        if names := [*prepared, *([self._own] if self._own else [])]:
            own = f"; {self._own} are texts that the base writes now" if self._own else ""
            rank_zero_info(
                f"forgetting.retain is not given: the suite of the package is watched ({', '.join(names)}{own}). {OFF}"
            )
        for reason in dict.fromkeys(refused.values()):
            names = [name for name, other in refused.items() if other == reason]
            rank_zero_warn(f"the suite is watched without {', '.join(names)}: {reason}")
        return prepared

    def compared(self, tasks: Mapping[str, PreparedTask]) -> dict[str, PreparedTask]:
        """Those of all tasks on which the divergence from the base is taken besides: not those of the default suite.

        Its own samples tell it better, and what the base predicts along all the rest would fill half a GiB.
        """
        return {key: task for key, task in tasks.items() if not (self.is_default and key.startswith("retain/"))}

    def draw(self, model: nn.Module, *, batch_tokens: int, device: torch.device, block_size: int) -> None:
        """Let the base write its texts, unless there are some; the caller has put it into evaluation mode.

        Raises:
            ValueError: it writes nothing, and the user has named the set; of the default it is left out with a word.
        """
        if not self.lacks_texts:
            return
        assert self._own is not None
        assert self._tokenizer is not None
        watched = self.sets[self._own]
        try:
            self.texts = draw_texts(
                model,
                self._tokenizer,
                n_texts=watched.limit or N_TEXTS,
                length=min(LENGTH, block_size - 1),
                seed=watched.seed,
                batch_tokens=batch_tokens,
                device=device,
            )
        except ValueError as error:
            if not self.is_default:
                raise ValueError(f"forgetting.retain.{self._own}: {error}; expected it to be left out") from None
            rank_zero_warn(f"the suite is watched without {self._own}: {error}")
            self._own = None

    @property
    def lacks_texts(self) -> bool:
        """Whether the base has still to write."""
        return self._own is not None and self.texts is None

    def own_task(
        self, *, n_vocab: int, batch_tokens: int, device: torch.device, block_size: int
    ) -> dict[str, PreparedTask]:
        """The base's own samples as a task, once they are drawn.

        Args:
            n_vocab: V, of the model.
            batch_tokens: budget of padded tokens in one forward.
            device: where the model is.
            block_size: longest input of the model.
        """
        if self._own is None or self.texts is None:
            return {}
        assert self._tokenizer is not None
        self.samples = Samples(self.texts, self._tokenizer)
        self.samples.prepare(n_vocab=n_vocab, batch_tokens=batch_tokens, device=device)
        task = own_samples_task(self._own, self.samples)
        return {self._own: PreparedTask(WatchedTask(), task, self._tokenizer, block_size)}

    def read_base(self, model: nn.Module) -> None:
        """Keep what the base predicts along its texts; the caller has put it into evaluation mode."""
        if self.samples is not None:
            self.samples.read_base(model)


def _with_suite(sets: Mapping[str, WatchedTask]) -> dict[str, WatchedTask]:
    """The sets with those of the suite in its place; one that is also named by itself is as it is named there."""
    named: dict[str, WatchedTask] = {}
    for name, watched in sets.items():
        if (name if watched.task is None else watched.task) == NAME:
            named |= {s: replace(watched, task=f"{NAME}/{s}") for s in SETS if s not in sets}
        else:
            named[name] = watched
    return named


def _is_own(name: str, watched: WatchedTask) -> bool:
    task = name if watched.task is None else watched.task
    return task in (OWN_SAMPLES, f"{NAME}/{OWN_SAMPLES}", f"{NAME}:{OWN_SAMPLES}")


def _check(kind: str, name: str, watched: WatchedTask, others: Mapping[str, WatchedTask]) -> None:
    """ValueError that names the key, for a name that is none or is taken, and for an option that does not fit."""
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"forgetting.{kind}: name {name!r}: expected letters, digits, '_' and '-' only")
    if name in others:
        raise ValueError(f"forgetting: {name} stands in learn and in retain; expected a name in one of the two")
    key = f"forgetting.{kind}.{name}"
    if kind == "retain" and _is_own(name, watched):
        given = WatchedTask(watched.task, limit=watched.limit, seed=watched.seed)
        if replace(watched, world=None) != given:  # the run's world is that of every set
            raise ValueError(f"{key}: expected no option but limit (the number of texts) and seed (of their draw)")
        return
    try:
        watched.load(name)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{key}: {error}") from None
