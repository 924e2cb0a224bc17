"""The dial: models between a base and a finetuned one, or steps of a run, and the one that learned most in a budget.

Every candidate is asked the same questions as the base, by the code of ``fit`` and ``evaluate``, and its changes are
paired differences over the items. A candidate keeps to the budget unless the whole 95% interval of a bounded change
lies beyond its bound, as in a run with ``forgetting.budget``; among those the one is taken that learned most. What is
measured is kept by a hash of all that it depends on, so another budget measures nothing again.

Five alphas are evaluated, evenly spaced and the end among them: learning and forgetting are smooth in alpha (Wortsman
et al. 2022, arXiv 2109.01903), and 0.2 is about what their intervals tell apart. The base, alpha 0, is measured too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_consistency import __version__
from lit_consistency.checkpointing.io import checkpoints, step_of
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.compare import Comparison, compare_folders
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import model_of
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model import load_weights, model_config, weights_hash
from lit_consistency.model.interpolation import Interpolation, config_difference
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.results import Result, check_items, read_result, write_result
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.stats.bounds import Bound, Verdict, bound_names, one_of, parse_bounds
from lit_consistency.stats.intervals import Estimate, turned
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.rows import fingerprint
from lit_consistency.tasks.summarize import summarize_result
from lit_consistency.tasks.task import PromptedTask, Task, keys_of
from lit_consistency.tasks.watched import PreparedTask, WatchedTask

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of ``--interpolate auto``; see above."""
PREFIXES = {"learn": ("learn/", "learned/"), "retain": ("retain/", "forget/")}
"""What may stand before the name of a set in a budget, as the tags of a run have it."""


@dataclass(frozen=True)
class DialSet:
    """A set of questions that decides.

    Attributes:
        kind: whether it is to be learned or retained.
        name: of the set.
        watched: how it is asked.
        task: what is asked.
    """

    kind: Literal["learn", "retain"]
    name: str
    watched: WatchedTask
    task: Task

    @property
    def identity(self) -> dict[str, Any]:
        """What its numbers depend on beside the model, as JSON."""
        few_shot = self.task.few_shot if isinstance(self.task, PromptedTask) else None
        return {
            "name": self.name,
            "task": keys_of(self.task),
            "data": fingerprint(self.task.data),
            "few_shot": fingerprint(few_shot) if few_shot and self.watched.shots else None,
            "format": asdict(load_format(self.watched.format)),
            **{key: getattr(self.watched, key) for key in ("shots", "limit", "seed")},
        }


@dataclass(frozen=True)
class Candidate:
    """A model that could be written.

    Attributes:
        name: as ``0.4`` or ``step-100``; names its folder of results.
        at: alpha, or the step.
        identity: what its weights depend on, as JSON.
        weights: reads or computes them.
    """

    name: str
    at: float
    identity: dict[str, Any]
    weights: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Position:
    """What a candidate learned and forgot.

    Attributes:
        candidate: the model.
        comparisons: set -> the base and the candidate on its items.
        changes: set -> better by, of a learned one, and worse by, of a retained one.
        verdicts: set -> its bounds, judged.
    """

    candidate: Candidate
    comparisons: Mapping[str, Comparison]
    changes: Mapping[str, Estimate]
    verdicts: Mapping[str, Sequence[tuple[Bound, Verdict]]]

    @property
    def is_allowed(self) -> bool:
        """Whether no bound is breached; a bounded change that is no number keeps to nothing."""
        return all(
            verdict != "breached" and math.isfinite(self.changes[name].value)
            for name, judged in self.verdicts.items()
            for _, verdict in judged
        )

    @property
    def excess(self) -> float:
        """The farthest way beyond a breached bound, in half widths of the change's interval."""
        ways = [
            abs(self.changes[name].value - bound.number) / ((self.changes[name].high - self.changes[name].low) / 2)
            for name, judged in self.verdicts.items()
            for bound, verdict in judged
            if verdict == "breached"
        ]
        return max(ways, default=math.inf)


@dataclass(frozen=True)
class Dial:
    """All candidates, and which is the best.

    Attributes:
        sets: what was asked.
        positions: in the order of alpha, or of steps.
        bounds: of the budget.
        most: the learned set by which the best is taken.
    """

    sets: Sequence[DialSet]
    positions: Sequence[Position]
    bounds: Sequence[Bound]
    most: str

    @property
    def best(self) -> Position | None:
        """The one that learned most within the budget, of equal ones the first; None where none keeps to it."""
        known = [p for p in self.positions if p.is_allowed and math.isfinite(p.changes[self.most].value)]
        return max(known, key=lambda p: p.changes[self.most].value, default=None)

    @property
    def nearest(self) -> Position:
        """The one that is least beyond its bounds, where none keeps to the budget."""
        return min(self.positions, key=lambda p: p.excess)


class Budget:
    """Bounds on the changes of sets.

    Args:
        text: as ``old_people<=0.05, new_people>=0.5``: a retained set is at most so much worse, a learned one at least
            so much better.
        sets: what is measured.

    Raises:
        ValueError: a bound cannot be read, or speaks of no set.
    """

    def __init__(self, text: str, sets: Sequence[DialSet]) -> None:
        self.bounds = parse_bounds(text)
        self.of_name: dict[str, list[Bound]] = {}
        for kind, sign in (("retain", "<="), ("learn", ">=")):
            bounds = [replace(b, name=_without(b.name, PREFIXES[kind])) for b in self.bounds if b.sign == sign]
            names = [entry.name for entry in sets if entry.kind == kind]
            for bound in bounds:
                if not bound.of(names):
                    what = "at most so much worse: a retained" if sign == "<=" else "at least so much better: a learned"
                    raise ValueError(f"budget: {bound}: {what} set is bounded; {one_of(names)}")
            self.of_name |= bound_names(bounds, names)

    def judge(self, changes: Mapping[str, Estimate]) -> dict[str, list[tuple[Bound, Verdict]]]:
        """Every bounded set's bounds with their verdicts."""
        return {
            name: [(bound, bound.judge(changes[name].low, changes[name].high)) for bound in bounds]
            for name, bounds in self.of_name.items()
        }


def _without(name: str, prefixes: Iterable[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def between(base: Path, finetuned: Path, alphas: Sequence[float]) -> list[Candidate]:
    """The base, and the models at ``alphas`` of the way from it to the finetuned model.

    Raises:
        FileNotFoundError: a model is incomplete.
        ValueError: the two do not fit, or an alpha is no way from the base.
    """
    if wrong := [alpha for alpha in alphas if not 0 < alpha <= 1]:
        raise ValueError(f"interpolate = {wrong[0]:g}: expected 0 < interpolate <= 1; the base, 0, is measured anyway")
    if len({f"{alpha:g}" for alpha in alphas}) < len(alphas):
        raise ValueError(f"interpolate = {list(alphas)}: expected numbers that differ in six digits")
    line = Interpolation(base, finetuned)
    if line.stranger:
        warnings.warn(line.stranger, stacklevel=2)
    base_hash, finetuned_hash = line.hashes
    return [
        Candidate(
            f"{alpha:g}",
            alpha,
            {"base": base_hash, "finetuned": finetuned_hash, "share": alpha},
            lambda alpha=alpha: line.weights(alpha),  # type: ignore[misc]
        )
        for alpha in (0.0, *alphas)
    ]


def steps_of(run: RunFolder, base: Path) -> dict[str, Path]:
    """Names and folders of the models of a run: those of its series and of its checkpoints, its own, and its last one.

    A checkpoint becomes a model in the run's series first, see methods/base_folder.py.

    Raises:
        FileNotFoundError: the run holds no model beside its base.
    """
    record, own = run.read_record(), run.model if run.model.is_dir() else run.adapters
    ends: dict[int, Path] = {}
    if run.is_finished and own.is_dir():
        ends[record["steps"]] = own
    if run.last.is_dir() and record.get("kept_model"):  # its own is of an earlier step
        ends = {record["kept_model"]["step"]: own, record["steps"]: run.last}
    steps = {*run.series_models(), *(step_of(checkpoint) for checkpoint in checkpoints(run.checkpoints))}
    folders = {step: run.series / f"step-{step}" for step in steps} | ends
    if not folders:
        raise FileNotFoundError(f"checkpoint_dir = {run.path}: holds no model of a step; expected a run's folder")
    return {"base": base, **{f"step-{step}": base_folder(folders[step]) for step in sorted(folders)}}


def in_folders(folders: Mapping[str, Path]) -> list[Candidate]:
    """Models that stand in folders, in the order of their steps.

    Raises:
        ValueError: one is of another architecture than the last.
    """
    config = model_config(None, list(folders.values())[-1], {}, None)
    for folder in folders.values():
        if (difference := config_difference(model_config(None, folder, {}, None), config)) is not None:
            raise ValueError(f"{folder}: does not fit the other models: {difference}")
    return [
        Candidate(
            name,
            float(name.removeprefix("step-")) if i else 0.0,
            {"weights": weights_hash(folder)},
            lambda folder=folder: load_weights(folder),  # type: ignore[misc]
        )
        for i, (name, folder) in enumerate(folders.items())
    ]


def turn(
    candidates: Sequence[Candidate],
    sets: Sequence[DialSet],
    budget: Budget,
    most: str,
    model_files: Path,
    folder: Path,
    device: str = "auto",
    batch_tokens: int = 8192,
    say: Callable[[str], object] = lambda text: None,
) -> Dial:
    """Measure what has not been, and judge every candidate against the first, the base.

    Args:
        candidates: the base first.
        sets: what is asked.
        budget: bounds on their changes.
        most: the learned set by which the best is taken.
        model_files: a model folder with the configuration and tokenizer of all candidates.
        folder: gets ``NAME/results`` and ``NAME/items`` of every candidate.
        device: that computes.
        batch_tokens: padded tokens in one forward.
        say: told what is measured now.

    Raises:
        ValueError: a task, its data, or the weights do not fit.
    """
    results = _measured(candidates, sets, model_files, folder, device, batch_tokens, say)
    base, *others = candidates
    positions = []
    for candidate in others:
        metrics = {result.key: [result.metric] for result in results.values()}
        pairs, _ = compare_folders(folder / base.name, folder / candidate.name, metrics=metrics, tested=False)
        by_name = {comparison.task: comparison for comparison in pairs}
        comparisons = {entry.name: by_name[entry.name] for entry in sets}
        changes = {
            entry.name: change if entry.kind == "learn" else turned(change)
            for entry in sets
            for change in [comparisons[entry.name].change]
        }
        positions.append(Position(candidate, comparisons, changes, budget.judge(changes)))
    return Dial(sets, positions, budget.bounds, most)


def _measured(
    candidates: Sequence[Candidate],
    sets: Sequence[DialSet],
    model_files: Path,
    folder: Path,
    device: str,
    batch_tokens: int,
    say: Callable[[str], object],
) -> dict[str, Result]:
    """Set -> a result of it; those of all candidates stand in the folder."""
    config, tokenizer = model_config(None, model_files, {}, None), Tokenizer(model_files)
    model = {"config": asdict(config), "tokenizer": tokenizer.fingerprint(), "version": __version__}
    marks = {
        (candidate.name, entry.name): fingerprint_of({"weights": candidate.identity, **model, **entry.identity})
        for candidate in candidates
        for entry in sets
    }
    prepared: dict[str, PreparedTask] = {}
    of_set: dict[str, Result] = {}
    for i, candidate in enumerate(candidates):
        kept = _kept(folder / candidate.name)
        known = {entry.name: kept.get(marks[candidate.name, entry.name]) for entry in sets}
        of_set |= {name: result for name, result in known.items() if result is not None}
        missing = [entry for entry in sets if known[entry.name] is None]
        if not missing:
            continue
        say(f"measuring {candidate.name} ({i + 1} of {len(candidates)}): {', '.join(e.name for e in missing)}")
        loaded = model_of(model_files, candidate.weights(), device)
        for entry in missing:
            if entry.name not in prepared:  # read and encoded once for all candidates
                prepared[entry.name] = PreparedTask(entry.watched, entry.task, tokenizer, config.block_size)
            task = prepared[entry.name]
            with evaluation_mode(loaded.model):
                measured = task.measure(loaded.model, batch_tokens=batch_tokens, device=loaded.device)
            mark = marks[candidate.name, entry.name]
            result = summarize_result(task.encoded, measured, task.findings, mark, candidate.name)
            of_set[entry.name] = replace(result, task=entry.name)
            write_result(folder / candidate.name, of_set[entry.name], measured.records)
    return of_set


def _kept(folder: Path) -> dict[str, Result]:
    """Fingerprint -> what stands in a folder of results, whole."""
    kept = {}
    for file in sorted((folder / "results").glob("*.json")):
        try:
            result = read_result(file)
            check_items(folder, result)
        except (ValueError, FileNotFoundError) as error:
            warnings.warn(f"{error}; measured again", stacklevel=2)
            continue
        kept[result.fingerprint] = result
    return kept
