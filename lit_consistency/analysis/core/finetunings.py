"""Records of finished finetunings: what was measured early, and what came in the end. No model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lit_consistency.records.run_folder import RunFolder


class Finetuning(NamedTuple):
    """A finished finetuning.

    Attributes:
        name: of its folder.
        base: hash of the model it started from.
        seed: of the run.
        optimizer: class.
        rate: learning rate, NaN if it has none.
        step: of the early measurement.
        share: of the run that was done by then.
        early: feature -> value at that step.
        final: the target.
    """

    name: str
    base: str
    seed: str
    optimizer: str
    rate: float
    step: int
    share: float
    early: dict[str, float]
    final: float


@cache  # a study that goes on adds runs: what was checked is what is measured
def read_runs(given: tuple[str, ...], target: str | None, share: float) -> tuple[list[Finetuning], int, str]:
    """The runs of some folders, how many of those in a folder of several are left out, and the target.

    Raises:
        ValueError: a folder that is named is no finished finetuning with the target, or none is.
    """
    folders, loose = _folders(given)
    target = target or _only_target(folders)
    runs, n_left_out = [], 0
    for folder in folders:
        try:
            runs.append(read_run(folder, target, share))
        except ValueError:
            if folder not in loose:
                raise
            n_left_out += 1
    if not runs:
        raise ValueError(f"runs, target = {target!r}: none of {len(folders)} folders is a finished finetuning with it")
    return runs, n_left_out, target


def _folders(given: Sequence[str]) -> tuple[list[Path], set[Path]]:
    """All folders of runs, and those among them that a folder of several held."""
    found: list[Path] = []
    loose: set[Path] = set()
    for name in given:
        path = Path(name)
        if not path.is_dir():
            raise ValueError(f"runs: {name}: there is no such folder")
        if RunFolder(path).record_file.is_file():
            found.append(path)
            continue
        inside = sorted(child for child in path.iterdir() if RunFolder(child).record_file.is_file())
        if not inside:
            raise ValueError(f"runs: {name}: expected the folder of a run (run.json), or one that holds such folders")
        found += inside
        loose |= set(inside)
    return list(dict.fromkeys(found)), loose


def _only_target(folders: Sequence[Path]) -> str:
    names = {
        key.removeprefix("final/")
        for folder in folders
        for line in RunFolder(folder).read_metrics()
        for key in line
        if key.startswith("final/forget/")
    }
    if len(names) != 1:
        raise ValueError(
            f"target: the runs have {', '.join(sorted(names)) or 'no final/forget/...'}; expected one name"
        )
    return names.pop()


def read_run(folder: Path, target: str, share: float) -> Finetuning:
    """What a run's records say.

    Raises:
        ValueError: it has not finished, is no finetuning, or lacks the target or an early measurement of it.
    """
    run = RunFolder(folder)
    record, lines = run.read_record(), run.read_metrics()
    if not run.is_finished:
        raise ValueError(f"runs: {folder}: status is {record.get('status')}; expected a finished run")
    if not record.get("base"):
        raise ValueError(f"runs: {folder}: it started from no base; expected a finetuning")
    last = [line[f"final/{target}"] for line in lines if line.get(f"final/{target}") is not None]
    if not last:
        raise ValueError(f"runs: {folder}: metrics.jsonl has no number final/{target}; see forgetting.retain of fit")
    steps = int(record["steps"])
    measured = {int(line["step"]): line for line in lines if target in line and 0 < int(line["step"]) < steps}
    before = [step for step in sorted(measured) if step <= share * steps] if share else sorted(measured)[:1]
    if not before:
        raise ValueError(
            f"runs: {folder}: {target} was measured at the steps {sorted(measured)} of {steps}; expected a measurement "
            f"before {f'share = {share}' if share else 'the end'}"
        )
    line = measured[before[-1]]
    early = {key: float(v) for key, v in line.items() if isinstance(v, (int, float)) and key != "step"}
    return Finetuning(
        folder.name, str(record.get("base_hash") or record["base"]), str(record.get("seed")), str(record["optimizer"]),
        _rate(folder), before[-1], before[-1] / steps, early, float(last[-1]),
    )  # fmt: skip


def _rate(folder: Path) -> float:
    model: dict[str, Any] = RunFolder(folder).read_config().get("model") or {}
    options = (model.get("optimizer") or {}).get("init_args") or {}
    return float(options.get("lr") or math.nan)


def group_names(runs: Sequence[Finetuning], by: str) -> list[str]:
    """The group of every run: its base, or its seed; seeds that share a base are one group."""
    if by == "base":
        return [run.base[:12] for run in runs]
    merged = {run.seed: run.seed for run in runs}
    for base in dict.fromkeys(run.base for run in runs):
        names = {merged[run.seed] for run in runs if run.base == base}
        merged = {seed: min(names) if name in names else name for seed, name in merged.items()}
    return [merged[run.seed] for run in runs]
