"""Where a model comes from: one YAML file beside its weights.

It answers which optimizer pretrained the model a user is about to finetune, and which runs led to it, and it vouches
for the bytes of the weights. Plain types only, so that any tool reads it; a key written by a newer version is skipped
rather than refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lit_consistency import __version__
from lit_consistency.records.atomic import write_text
from lit_consistency.records.fingerprints import sha256_once
from lit_consistency.records.model_folder import weights_files
from lit_consistency.records.processes import is_first_here

FILE = "provenance.yaml"
FAMILIES = {
    "Adam": "AdamW",
    "AdamW": "AdamW",
    "MoFO": "AdamW",
    "Muon": "Muon",
    "FilteredMuon": "Muon",
    "SGD": "SGD",
    "Lion": "Lion",
    "Signum": "Lion",
}
"""Class of an optimizer -> the optimizer whose update it applies, to all coordinates or to those it selects.

MoFO is AdamW on a share of the coordinates (arXiv 2407.20999), FilteredMuon is Muon on such a share, Signum is Lion
with one decay rate.
"""


def family(optimizer: str) -> str:
    """The family of an optimizer's class; one that is not known is a family of its own."""
    return FAMILIES.get(optimizer, optimizer)


def current_versions() -> dict[str, str]:
    """Versions of what computes the weights; a package that is not installed is left out."""
    versions = {"lit_consistency": __version__}
    for package in ("torch", "lightning", "litgpt"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@dataclass
class Provenance:
    """The last training stage of a model, and the stages before it.

    Args:
        model: LitGPT's name of the architecture.
        optimizer: class name of the optimizer of this stage.
        method: name of the method of this stage (``full``, ``lora``, ...).
        stage: what this stage was, as ``pretrain`` or ``sft``.
        base: folder or name of the model this stage started from; None when it started from scratch.
        base_hash: sha256 of the base's weights file.
        run: name of the run.
        tokens: tokens seen in this stage, padding excluded.
        steps: optimizer steps of this stage.
        seed: the run's seed.
        versions: package name to version.
        history: the earlier stages, oldest first, each with the keys of this class but ``history``.
        command: the command line of the run.
        optimizer_options: hyperparameters of the optimizer, as configured.
        schedule: ``class_path`` and ``init_args`` of the schedule, as configured; None: a constant learning rate.
        final_metrics: name -> value at the end of this stage, as ``val/loss`` or ``forget/books``; None: no number.
        interpolation: of a model between two others, the share of the way from ``base`` to ``finetuned``, and the
            folders and hashes of both; None for a model that was trained.
        branched_from: of a stage that has left another run at one of its steps, ``checkpoint``, ``run`` and ``step`` of
            the branch point, and where its schedule began; ``steps`` and ``tokens`` count from the start of that run.
        carried_optimizer_state: sha256 of the state of the base's optimizer with which this stage began; None: it began
            with an empty one.
        source: of a model that was imported, where it came from: ``kind`` (hub or folder), ``name``, ``revision``,
            ``licence`` with the keys of a model card on the hub, as ``license``, and ``sha256`` of its files.
        planned_steps: of a model taken before its run ended, the steps that the run was to have: its learning rate has
            not come down yet. None for a model of the end.
        merging: of a method that merges adapters into the base's weights, the dtype in which it was ``computed`` and
            the one of the base that the result was rounded to and is ``stored_as``.
        weights_sha256: file -> SHA-256 of every file of tensors in the folder; set by ``write``.
    """

    model: str
    optimizer: str
    method: str
    stage: str
    base: str | None = None
    base_hash: str | None = None
    run: str | None = None
    tokens: int = 0
    steps: int = 0
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=current_versions)
    history: list[dict[str, Any]] = field(default_factory=list)
    command: str | None = None
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None
    final_metrics: dict[str, float | None] = field(default_factory=dict)
    interpolation: dict[str, Any] | None = None
    branched_from: dict[str, Any] | None = None
    carried_optimizer_state: str | None = None
    planned_steps: int | None = None
    weights_sha256: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    merging: dict[str, str] | None = None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """All stages, oldest first; the last one is this one."""
        this = asdict(self)
        del this["history"]
        return [*self.history, this]

    @property
    def pretraining_optimizer(self) -> str | None:
        """Optimizer of the first stage; None when that stage started from a base whose own past is unknown."""
        first = self.stages[0]
        return first["optimizer"] if first.get("base") is None else None

    def next_stage(self, **stage: Any) -> Provenance:
        """The provenance of a model trained on from this one: ``stage`` is its fields, this stage goes into history."""
        return Provenance(**stage, history=self.stages)

    def write(self, folder: Path) -> None:
        """Write ``provenance.yaml`` into ``folder``, last of its files: it holds the hashes of those of tensors.

        A value that is not a plain type is an error of yaml.
        """
        hashes = {file.name: sha256_once(file) for file in weights_files(folder)}
        text = yaml.safe_dump(asdict(replace(self, weights_sha256=hashes)), sort_keys=False, allow_unicode=True)
        write_text(Path(folder) / FILE, text)


def read_provenance(folder: Path) -> Provenance | None:
    """Read ``provenance.yaml`` of ``folder``; None when there is none.

    Raises:
        ValueError: the file is no YAML mapping, or misses a key without default.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got: {error}") from error
    return provenance_of(content, str(path))


def provenance_of(content: Any, source: str) -> Provenance:
    """The provenance of a mapping, which stands in ``source``.

    Raises:
        ValueError: it is no mapping, or misses a key without default.
    """
    missing = [key for key in ("model", "optimizer", "method", "stage") if key not in (content or {})]
    if not isinstance(content, dict) or missing:
        raise ValueError(
            f"{source}: expected a mapping with the keys model, optimizer, method, stage; missing: {missing}"
        )
    known = {entry.name for entry in fields(Provenance)}
    return Provenance(**{key: value for key, value in content.items() if key in known})


def verify_weights(file: Path) -> None:
    """See that a file of tensors is the one for which the provenance beside it vouches.

    One process of a machine looks, for all of them; a file that no provenance names is not known, and not refused.

    Raises:
        ValueError: it was damaged, or changed.
    """
    if not is_first_here():
        return
    provenance = read_provenance(file.parent)
    expected = provenance.weights_sha256.get(file.name) if provenance is not None else None
    if expected is not None and (digest := sha256_once(file)) != expected:
        raise ValueError(
            f"{file}: sha256 {digest}, expected {expected} ({FILE}): damaged, or changed since it was written; put the "
            f"file back, or take it out of weights_sha256 in {FILE} if it was changed on purpose"
        )
