"""The model card of an exported model: what it learned and forgot, and where it comes from, read from its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lit_consistency.records.pretraining import UNKNOWN, Pretraining, pretraining_of
from lit_consistency.records.provenance import Provenance

SETS = ("learn/", "retain/")
DISTANCES = {
    "kl_to_base": "KL to the base (nats per token)",
    "reverse_kl_to_base": "KL from the base (nats per token)",
    "relative_distance/all": "distance of the weights to the base's, relative to their norm",
    "val/loss": "loss on the validation rows (nats per token)",
    "train/loss": "last loss in training (nats per token)",
}


def model_card(name: str, model: str, provenance: Provenance | None, record: Mapping[str, Any]) -> str:
    """The text of ``README.md``, with the header that the hub reads.

    Args:
        name: of the model.
        model: LitGPT's name of the architecture.
        provenance: of the model; None: nothing is known.
        record: run.json of the run that made it; empty where there is none.
    """
    licence, source = licence_of(provenance), source_of(provenance)
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", **licence}
    header |= {"base_model": source["name"]} if source.get("kind") == "hub" else {}
    header["tags"] = ["lit_consistency", "litgpt"]
    head = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n# {name}\n"
    if provenance is None:
        return f"{head}\nA {model}. Nothing is recorded of how it was made.\n"
    sections = [_summary(model, provenance), _measured(provenance, record), _stages(provenance)]
    sections.append(_pretraining(model, provenance, record))
    sections += [_data(record), _command(provenance), _licence(licence)]
    return head + "".join(f"\n{section}\n" for section in sections if section)


def licence_of(provenance: Provenance | None) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` of the imported base, as far as its card gave them."""
    source = source_of(provenance)
    licence = source.get("licence") or {"license": source.get("license")}
    return {key: str(value) for key, value in dict(licence).items() if value is not None}


def source_of(provenance: Provenance | None) -> Mapping[str, Any]:
    """Where the last imported model among the stages came from; empty where none was imported."""
    for stage in reversed(provenance.stages if provenance else []):
        if isinstance(source := stage.get("source"), Mapping):
            return source
    return {}


def _summary(model: str, provenance: Provenance) -> str:
    made = f"`{provenance.stage}` with {provenance.optimizer} (method: {provenance.method})"
    size = f"{provenance.steps} steps, {provenance.tokens} tokens, seed {provenance.seed}"
    unfinished = f", of {provenance.planned_steps} planned" if provenance.planned_steps else ""
    return f"A {model}, {made}: {size}{unfinished}."


def _measured(provenance: Provenance, record: Mapping[str, Any]) -> str:
    """Every set before and after, and what of it was forgotten."""
    now, before, judges = provenance.final_metrics, record.get("base_metrics", {}), record.get("judged_by", {})
    lines = []
    for key in (key for key in now if key.startswith(SETS)):
        kind, _, task = key.partition("/")
        measure = judges.get(key, {}).get("metric", "")
        # `forget/` is in the unit of the measure, positive where the model has become worse
        numbers = (before.get(key), now[key], now.get(f"forget/{task}"))
        lines.append(f"| {kind} | {task} | {measure} | {' | '.join(map(_number, numbers))} |")
    distances = [f"- {text}: {_number(now[key])}" for key, text in DISTANCES.items() if key in now]
    if not lines and not distances:
        return ""
    title = "| | set | measure | base | this model | forgotten |\n|---|---|---|---|---|---|\n"
    table = title + "\n".join(lines) + "\n\nForgotten: positive where the model has become worse than its base.\n"
    return "## Learned and forgotten\n\n" + (table + "\n" if lines else "") + "\n".join(distances)


def _stages(provenance: Provenance) -> str:
    keys = ("stage", "base", "optimizer", "method", "steps", "tokens", "seed", "run")
    rows = ["| " + " | ".join(str(stage.get(key, "")) for key in keys) + " |" for stage in provenance.stages]
    return "\n".join(["## Stages", "", f"| {' | '.join(keys)} |", "|---" * len(keys) + "|", *rows])


def _pretraining(model: str, provenance: Provenance, record: Mapping[str, Any]) -> str:
    """How the optimizer of pretraining is known, where the stages do not say it."""
    if provenance.pretraining_optimizer is not None and "pretraining_optimizer_source" not in record:
        return ""
    known = pretraining_of(provenance, [model])
    if source := record.get("pretraining_optimizer_source"):
        known = Pretraining(record["pretraining_optimizer"], source)
    if known.optimizer is None or known.optimizer == provenance.pretraining_optimizer:
        return ""
    if known.optimizer == UNKNOWN:
        return "Which optimizer pretrained it is not known."
    return f"Pretrained with {known.optimizer}: {known.source}."


def _data(record: Mapping[str, Any]) -> str:
    known = {key: record[key] for key in ("data", "data_stats") if record.get(key)}
    if not known:
        return ""
    text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=120)
    return f"## Data\n\nWith the hashes by which the rows are known:\n\n```yaml\n{text}```"


def _command(provenance: Provenance) -> str:
    if not provenance.command:
        return ""
    versions = ", ".join(f"{package} {version}" for package, version in provenance.versions.items())
    return f"## Command\n\n```bash\n{provenance.command}\n```\n\nMade with {versions}."


def _licence(licence: Mapping[str, str]) -> str:
    known = f"That of the base: {', '.join(licence.values())}." if licence else "The records do not say what it is."
    return f"## Licence\n\n{known}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "" if value is None else str(value)
