r"""Memorization: how soon wrong answers are known by heart, and how much of the rule is known by then.

Paper 1's claim 5 (arXiv 2605.06654: Muon learns by rote) is read from the checkpoints of runs on a world of modular
arithmetic (configs/arithmetic, configs/studies/memorization.yaml), of which a share of the training problems is told
wrong. Three sets of questions, each right where the answer of the text is the model's first choice:

- ``clean``: trained, told right: by heart or by the rule;
- ``noisy``: trained, told wrong: by heart alone (rote);
- ``held_out``: not trained: by the rule alone (pattern).

Of every series of models (those of one run, over its steps):

- ``step_half/SET``, ``step_90/SET``: the step at which half, and nine tenths, of a set are known: the first crossing,
  on straight lines between models. A set that the first model already knows gets the step of that model, which is an
  upper bound; one that is never known so well gets NaN.
- ``pattern_at/clean_90``: held-out accuracy at the step at which nine tenths of the clean problems are known
  (``pattern_at/noisy_50``: half of the noisy ones), and ``rote_at/clean_90``, the noisy accuracy there: optimizers are
  compared where they know as much, not after as many steps.
- ``pattern_at/train_loss``, ``rote_at/train_loss``: both where the loss of the trained answers, clean and noisy
  together, first falls to ``train_loss``; when none is given, to the lowest that all runs reach.
- ``final/SET``: accuracy of the last model.

The measure is our own; the paper's task could not be read. Given up: what happens between two models, so a series
should be dense where accuracies rise; other rules than one step of arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.drawing.charts.lines import Series, draw_lines
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.palette import Style, style
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row

SETS = ("clean", "noisy", "held_out")
SAID = {"clean": "trained, told right", "noisy": "trained, told wrong (rote)", "held_out": "held out (pattern)"}


@dataclass(frozen=True)
class Memorization(Analysis):
    """Memorization.

    Args:
        clean: task of the trained problems that are told right. The world of the runs is named by ``--world``.
        noisy: task of those that are told wrong; null where there are none.
        held_out: task of the problems that are not trained.
        train_loss: nats per answer at which runs are compared; null: the lowest that all of them reach.
    """

    title: ClassVar[str] = "Rote and pattern"
    together: ClassVar[bool] = True

    clean: str = "arithmetic/train_clean"
    noisy: str | None = "arithmetic/train_noisy"
    held_out: str = "arithmetic/held_out"
    train_loss: float | None = None

    def __post_init__(self) -> None:
        if self.train_loss is not None and not self.train_loss > 0:
            raise ValueError(f"train_loss = {self.train_loss}: expected nats above 0, or null")

    @property
    def tasks(self) -> dict[str, str]:
        """Set -> task, of those that there are."""
        return {name: task for name in SETS if (task := getattr(self, name)) is not None}

    def check(self, subject: Subject) -> None:
        """Every answer must be one token of every model, as it is in the world that the model was trained on."""
        for files in subject.models:
            for name, task in self.tasks.items():
                text = subject.of(files).text(task)
                metrics = text.prepared.task.metrics
                if "exact" not in metrics:
                    raise ValueError(f"{name} = {task!r}: its metrics are {', '.join(metrics)}; expected exact")
                # a number that the tokenizer does not know falls into bytes: the model knows another modulus
                longest = max(int(item.candidates[item.gold].supervised.sum()) for item in text.items)
                if longest > 1:
                    raise ValueError(
                        f"{name} = {task!r}: an answer has {longest} tokens in the tokenizer of {files.folder}; "
                        "expected the world that it was trained on, as --world '{p: 31}'"
                    )

    def inputs(self, subject: Subject) -> list[str]:
        """All questions, for every model."""
        return [subject.of(files).text(task).fingerprint for files in subject.models for task in self.tasks.values()]

    def parts(self, subject: Subject) -> list[str]:
        """One a model."""
        return [files.name for files in subject.models]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """One row for every set of questions."""
        (files,) = [files for files in subject.models if files.name == part]
        return [self._row(subject.of(files), files, name, task) for name, task in self.tasks.items()]

    def _row(self, subject: Subject, files: ModelFiles, name: str, task: str) -> Row:
        loaded = subject.load()
        text = subject.text(task)
        estimates = text.measure(loaded.model, subject.batch_tokens, loaded.device).estimates()
        exact = estimates["exact"]
        return {
            "model": files.name,
            "run": files.run,
            "optimizer": files.optimizer,
            "step": files.step,
            "set": name,
            "n": len(text.items),
            "accuracy": exact.value,
            "low": exact.low,
            "high": exact.high,
            "nats_per_answer": estimates["nats_per_token"].value,
        }

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The readings of every run; ``NUMBER/RUN`` where there are several."""
        runs = curves(rows)
        level = self.train_loss or common_loss(list(runs.values()))
        numbers: dict[str, float] = {}
        for run, curve in runs.items():
            suffix = f"/{run}" if len(runs) > 1 else ""
            numbers |= {f"{key}{suffix}": value for key, value in readings(curve, level).items()}
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Rote against pattern, then every set over the steps."""
        runs = curves(rows)
        looks = {run: style(i) for i, run in enumerate(runs)}
        figures = [_over_steps(runs, name, looks, rows) for name in SETS if any(name in c for c in runs.values())]
        paths = [
            Series(run, list(zip(curve["noisy"], curve["held_out"], strict=True)))
            for run, curve in runs.items()
            if "noisy" in curve
        ]
        if paths:
            caption = (
                "Held-out problems that are right (the rule) over problems told wrong that are known as told (by "
                "heart), one mark for every model of a run, from the start of training on."
            )
            canvas = draw_lines(paths, "known by heart", "held out", WIDTH, looks)
            columns = ("run", "step", *SETS)
            table = [
                (run, f"{step:g}", *(short_number(curve[name][i]) for name in SETS))
                for run, curve in runs.items()
                if "noisy" in curve
                for i, step in enumerate(curve["step"])
            ]
            figures.insert(0, Figure("", "", "Rote against pattern", caption, canvas, None, columns, tuple(table)))
        return figures


# -------------------- readings


def curves(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Run -> ``step``, the accuracy of every set, and ``train_loss``, over its models in the order of their steps."""
    by_model: dict[tuple[str, float, str], dict[str, Row]] = {}
    for row in rows:
        key = (str(row["run"]), float(row["step"]), str(row["model"]))
        by_model.setdefault(key, {})[str(row["set"])] = row
    runs: dict[str, dict[str, list[float]]] = {str(row["run"]): {} for row in rows}
    for (run, step, _), sets in sorted(by_model.items(), key=lambda entry: entry[0][:2]):
        trained = [sets[name] for name in ("clean", "noisy") if name in sets]
        total = sum(float(row["nats_per_answer"]) * int(row["n"]) for row in trained)
        numbers = {"step": step, **{name: float(row["accuracy"]) for name, row in sets.items()}}
        numbers["train_loss"] = total / sum(int(row["n"]) for row in trained)
        for name, value in numbers.items():
            runs[run].setdefault(name, []).append(value)
    return runs


def common_loss(runs: Sequence[dict[str, list[float]]]) -> float:
    """The lowest training loss that all runs reach."""
    return max(min(curve["train_loss"]) for curve in runs)


def readings(curve: dict[str, list[float]], train_loss: float) -> dict[str, float]:
    """The numbers of one run, as the file's beginning says.

    Args:
        curve: of ``curves``.
        train_loss: nats at which it is read.
    """
    sets = [name for name in SETS if name in curve]
    numbers = {}
    for key, level in (("half", 0.5), ("90", 0.9)):
        for name in sets:
            numbers[f"step_{key}/{name}"] = value_at(curve["step"], crossing(curve[name], level))
    places = {
        "clean_90": crossing(curve["clean"], 0.9),
        "train_loss": crossing([-loss for loss in curve["train_loss"]], -train_loss),
    }
    if "noisy" in curve:
        places["noisy_50"] = crossing(curve["noisy"], 0.5)
    for key, place in places.items():
        numbers[f"pattern_at/{key}"] = value_at(curve["held_out"], place)
        if "noisy" in curve and key != "noisy_50":
            numbers[f"rote_at/{key}"] = value_at(curve["noisy"], place)
    return {**numbers, **{f"final/{name}": curve[name][-1] for name in sets}}


def crossing(values: Sequence[float], level: float) -> float:
    """Where the values first reach a level: the index of a model, in parts between two; NaN if they never do."""
    for i, value in enumerate(values):
        if value >= level:
            if i == 0:
                return 0.0
            before = values[i - 1]
            return i - 1 + (level - before) / (value - before)
    return math.nan


def value_at(values: Sequence[float], place: float) -> float:
    """The value at an index in parts, on straight lines between models."""
    if math.isnan(place):
        return math.nan
    i = min(int(place), max(len(values) - 2, 0))
    share = place - i
    return values[i] if share == 0 else (1 - share) * values[i] + share * values[i + 1]


def _over_steps(
    runs: dict[str, dict[str, list[float]]], name: str, looks: dict[str, Style], rows: Sequence[Row]
) -> Figure:
    bounds = {(str(r["run"]), float(r["step"])): (float(r["low"]), float(r["high"])) for r in rows if r["set"] == name}
    series = []
    for run, curve in runs.items():
        if name in curve:
            low, high = zip(*(bounds[run, step] for step in curve["step"]), strict=True)
            series.append(Series(run, list(zip(curve["step"], curve[name], strict=True)), low, high))
    caption = f"Share of the problems {SAID[name]} whose answer in the text is the first choice; shaded 95% intervals."
    table = [
        (row.name, f"{step:g}", short_number(value), short_number(low), short_number(high))
        for row in series
        for (step, value), low, high in zip(row.points, row.low, row.high, strict=True)
    ]
    canvas = draw_lines(series, "step", "share known", WIDTH, looks)
    title = f"Problems {SAID[name]}"
    return Figure("", "", title, caption, canvas, None, ("run", "step", "share", "low", "high"), tuple(table))
