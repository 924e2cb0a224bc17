"""``analyze``: check everything, measure part by part, keep each as it is done, then tables, figures and the page.

Nothing is written before all analyses have seen that they can be asked. A run that is interrupted goes on where it
stopped: a part is found again by its fingerprint, which holds all that its numbers depend on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lit_consistency import __version__
from lit_consistency.analysis.core.analysis import Analysis
from lit_consistency.analysis.core.model_files import ModelFiles, check_same_shapes
from lit_consistency.analysis.core.over_models import figure_over_models
from lit_consistency.analysis.core.show import numbers_of, print_numbers, write_page, write_scalars
from lit_consistency.analysis.core.subject import Shared, Subject, fingerprint_parts
from lit_consistency.analysis.core.texts import Reading
from lit_consistency.analysis.core.time_scale import tau
from lit_consistency.drawing.figure import Figure, named, write_figures
from lit_consistency.inference.load import PRECISIONS, find_device
from lit_consistency.records.analysis_folder import ALL, AnalysisFolder
from lit_consistency.records.fingerprints import fingerprint_of, sha256_once
from lit_consistency.records.provenance import current_versions, read_provenance
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.tables import Row

ROOM = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """The options of the command, see ``lit_consistency/cli/analyze.py``."""

    what: Mapping[str, Analysis]
    output: Path
    model: Path | None = None
    models: Sequence[Path] = ()
    series: Path | None = None
    base: Path | None = None
    text: Sequence[str] = ()
    limit: int = 0
    world: dict[str, Any] | None = None
    data_dir: Path | None = None
    batch_tokens: int = 16384
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    title: str = "Why it forgets"
    command: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key, value, least in (
            ("limit", self.limit, 0),
            ("batch_tokens", self.batch_tokens, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} = {value}: expected at least {least}")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision = {self.precision!r}: expected one of auto, {', '.join(PRECISIONS)}")
        if not self.what:
            raise ValueError("what: expected at least one analysis")
        has_model = self.model is not None or self.models or self.series is not None
        if not has_model and any(analysis.needs_model for analysis in self.what.values()):
            raise ValueError("model, models, series: expected at least one model")


@dataclass(frozen=True)
class _Job:
    """A part that is not measured yet, or whose rows are known."""

    analysis: str
    subject: Subject
    part: str
    fingerprint: str


def analyze(options: Options) -> AnalysisFolder:
    """Run the analyses; prints their numbers and writes ``options.output``.

    Raises:
        FileNotFoundError: a model, task or data file is missing.
        ValueError: something does not fit; names option, value and what is allowed, or both sides.
    """
    find_device(options.device)
    subject = _subject(options)
    for name, analysis in options.what.items():
        _check(name, analysis, subject)
    folder = AnalysisFolder(options.output)
    if folder.path.is_file():
        raise ValueError(f"output = {folder.path}: expected a folder, found a file")
    jobs = [job for name, analysis in options.what.items() for job in _jobs(name, analysis, subject)]
    rows = _measure(jobs, options, folder)
    numbers = _numbers(options, rows)
    figures = named(
        [figure for name in options.what for figure in _figures(name, options, subject, rows[name], numbers)]
    )
    for name in options.what:
        folder.write_table(name, rows[name])
    problems = write_figures(figures, folder.figures)
    record = _record(options, subject, numbers)
    write_page(folder.path, options.title, {n: a.title for n, a in options.what.items()}, figures, record)
    write_scalars(folder.tensorboard, numbers, {files.name: (files.run, files.step) for files in subject.models})
    folder.write_record(record)  # last: it says that the rest is whole
    print_numbers(numbers)
    for problem in [*problems, f"wrote {folder.path}"]:
        print(problem, file=sys.stderr)
    return folder


# -------------------- models


def _subject(options: Options) -> Subject:
    models = _models(options)
    last = models[-1] if models else None
    base = _base(options, last)
    reading = Reading(options.limit, options.seed, options.world, options.data_dir)
    shared = Shared(options.device, options.precision, reading)
    return Subject(last, base, models, list(options.text), shared, options.batch_tokens, options.seed, options.output)


def _models(options: Options) -> list[ModelFiles]:
    paths = [("models", path) for path in options.models]
    if options.series is not None:
        run = RunFolder(options.series)
        series = run.series_models()
        if not series:
            raise ValueError(f"series = {options.series}: it holds no series of models; see checkpoint.series of fit")
        paths += [("series", path) for path in series.values()]
        last = read_provenance(run.model) if run.has_model else None
        # the series may hold the last step by itself
        paths += [("series", run.model)] if last and last.steps not in series else []
    if options.model is not None:
        paths.append(("model", options.model))
    resolved = [(option, Path(path)) for option, path in paths]
    if twice := [path for i, (_, path) in enumerate(resolved) if path in [p for _, p in resolved[:i]]]:
        raise ValueError(f"models: {twice[0]} is there twice; expected every model once")
    names = _names([path for _, path in resolved])
    return [ModelFiles(path, option, name) for (option, path), name in zip(resolved, names, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Names that differ: the end of each path, without the folder ``model`` of a run, as long as it must be."""
    parts = [[part for part in path.parts if part not in ("model", "series", "/")] or [str(path)] for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(words[-length:]) for words in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _base(options: Options, model: ModelFiles | None) -> ModelFiles | None:
    """The base that is named, or the one that the model's provenance names, if it stands there unchanged."""
    if options.base is not None:
        return ModelFiles(options.base, "base", "base")
    provenance = model.provenance if model else None
    if model is None or provenance is None or provenance.base is None or not Path(provenance.base).is_dir():
        return None
    found = ModelFiles(Path(provenance.base), "base", "base")
    if provenance.base_hash is not None and found.hash != provenance.base_hash:
        raise ValueError(f"base: {found.folder} is not what {model.folder} was trained from any more; expected --base")
    return found


def _check(name: str, analysis: Analysis, subject: Subject) -> None:
    """Everything that can be seen before anything is computed."""
    models = ", ".join(str(files.folder) for files in subject.models)
    if analysis.needs_base:
        if subject.base is None:
            raise ValueError(f"base: {name} compares {models} with a base, and none is known; expected --base DIR")
        for files in subject.models:
            check_same_shapes(subject.base, files)
    if analysis.needs_text and not subject.texts:
        raise ValueError(f"text: {name} reads a text; expected --text TASK or FILE")
    if analysis.needs_text or analysis.uses_text:
        for text in subject.texts:
            subject.text(text)
    for one in [subject] if analysis.together else [subject.of(files) for files in subject.models]:
        try:
            analysis.check(one)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


# -------------------- parts


def _jobs(name: str, analysis: Analysis, subject: Subject) -> list[_Job]:
    jobs = []
    for one in [subject] if analysis.together else [subject.of(files) for files in subject.models]:
        identity = {
            "analysis": name,
            "options": asdict(analysis) if is_dataclass(analysis) else {},
            "code": _code(),
            "version": __version__,
            "inputs": analysis.inputs(one),
            **fingerprint_parts(one, analysis.needs_text or analysis.uses_text),
        }
        if not analysis.together:
            del identity["models"]
        mark = fingerprint_of(identity)
        jobs += [_Job(name, one, part, mark) for part in analysis.parts(one)]
    return jobs


@cache
def _code() -> str:
    """Of this room: a changed definition is measured again."""
    return fingerprint_of([sha256_once(path) for path in sorted(ROOM.rglob("*.py"))])


def _measure(jobs: Sequence[_Job], options: Options, folder: AnalysisFolder) -> dict[str, list[Row]]:
    """Rows of every analysis, in the order of models and parts."""
    rows: dict[str, list[Row]] = {name: [] for name in options.what}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeRemainingColumn(),
        console=(console := Console(stderr=True)), disable=not console.is_terminal, transient=True,
    ) as progress:  # fmt: skip
        bars = {
            name: progress.add_task(name, total=max(sum(j.analysis == name for j in jobs), 1)) for name in options.what
        }
        for job in jobs:
            of = ALL if options.what[job.analysis].together else job.subject.model.name
            measured = folder.read_part(job.analysis, of, job.part, job.fingerprint)
            if measured is None:
                progress.update(bars[job.analysis], description=f"{job.analysis} {job.part}")
                measured = _one(options.what[job.analysis], job, progress, bars[job.analysis])
                folder.write_part(job.analysis, of, job.part, job.fingerprint, measured)
            else:
                progress.advance(bars[job.analysis], 1)
            rows[job.analysis] += measured
    return rows


def _one(analysis: Analysis, job: _Job, progress: Progress, bar: TaskID) -> list[Row]:
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        progress.advance(bar, share)

    measured = analysis.measure(job.subject, job.part, advance)
    progress.advance(bar, 1 - done)
    if analysis.together:
        return measured
    files = job.subject.model
    return [{"model": files.name, "step": files.step, "tau": tau(files), **row} for row in measured]


# -------------------- what came out


def _numbers(options: Options, rows: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    """Model -> ``ANALYSIS/NUMBER`` -> value."""
    numbers: dict[str, dict[str, float]] = {}
    for name, analysis in options.what.items():
        grouped: dict[str, list[Row]] = {}
        for row in rows[name]:
            grouped.setdefault(ALL if analysis.together else str(row["model"]), []).append(row)
        for model, own in grouped.items():
            found = {f"{name}/{key}": value for key, value in analysis.summary(own).items()}
            numbers.setdefault(model, {}).update({key: value for key, value in found.items() if not math.isinf(value)})
    return numbers


def _figures(
    name: str,
    options: Options,
    subject: Subject,
    rows: Sequence[Row],
    numbers: Mapping[str, Mapping[str, float]],
) -> list[Figure]:
    """What an analysis draws, and before it its numbers over steps, decays or rates, where models differ in them."""
    of_models = {model: numbers_of(name, values) for model, values in numbers.items() if model != ALL}
    over = figure_over_models(subject.models, {model: own for model, own in of_models.items() if own})
    drawn = [*([over] if over else []), *options.what[name].figures(rows)]
    return [replace(figure, section=name) for figure in drawn]


def _record(options: Options, subject: Subject, numbers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    def said(files: ModelFiles | None) -> dict[str, Any] | None:
        if files is None:
            return None
        return {
            "name": files.name,
            "folder": str(files.folder),
            "weights_sha256": files.hash,
            "step": files.step,
            "optimizer": files.optimizer,
        }

    return {
        "title": options.title,
        "command": options.command,
        "models": [said(files) for files in subject.models],
        "base": said(subject.base),
        "texts": list(options.text),
        "limit": options.limit,
        "seed": options.seed,
        "options": {name: asdict(a) if is_dataclass(a) else {} for name, a in options.what.items()},
        "versions": current_versions(),
        "numbers": numbers,
    }
