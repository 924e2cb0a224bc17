"""Which optimizer pretrained a model: from its records, from the user, or guessed from the name of a public family.

A guess is never silent: what it rests on stands beside it. Reports that do not name the optimizer are said to be such.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_consistency.records.provenance import FAMILIES, Provenance, family, read_provenance

UNKNOWN = "unknown"


class Pretraining(NamedTuple):
    """The optimizer of a model's pretraining.

    Attributes:
        optimizer: name of its class, or ``unknown``; None for a model that begins with this run.
        source: how it is known, in words.
        is_guess: whether only the model's name speaks for it.
    """

    optimizer: str | None
    source: str
    is_guess: bool = False

    def mismatch(self, now: str) -> bool | None:
        """Whether an optimizer is of another family; None where that of pretraining is not known."""
        if self.optimizer is None:
            return False
        return None if self.optimizer == UNKNOWN else family(self.optimizer) != family(now)

    def record(self, now: str) -> dict[str, Any]:
        """What a run's record says of it beside the optimizer of the run."""
        return {
            "pretraining_optimizer": self.optimizer,
            "pretraining_optimizer_source": self.source,
            "optimizer_mismatch": self.mismatch(now),
            "optimizer": now,
        }


PUBLIC: tuple[tuple[str, str, str], ...] = (
    (r"moonlight|moonshot", "Muon", "arXiv 2502.16982"),
    (r"kimi-?k2", "Muon", "MuonClip, arXiv 2507.20534"),
    (r"nanochat", "Muon", "github.com/karpathy/nanochat"),
    (r"glm-?4\.[5-9]", "Muon", "arXiv 2508.06471"),
    (r"pythia", "AdamW", "Adam with weight decay, arXiv 2304.01373"),
    (r"gpt-?neox", "AdamW", "arXiv 2204.06745"),
    (r"tiny-?llama", "AdamW", "arXiv 2401.02385"),
    (r"smollm", "AdamW", "arXiv 2502.02737"),
    (r"code-?llama", "AdamW", "arXiv 2308.12950"),
    (r"llama-?3", "AdamW", "arXiv 2407.21783"),
    (r"llama-?2", "AdamW", "arXiv 2307.09288"),
    (r"llama", "AdamW", "arXiv 2302.13971"),
    (r"olmo", "AdamW", "arXiv 2402.00838 and 2501.00656"),
    (r"qw(en|q)", "AdamW", "arXiv 2309.16609; later reports do not name it"),
    (r"falcon-?3", "AdamW", "as Falcon's, arXiv 2311.16867; its own report does not name it"),
    (r"falcon", "AdamW", "arXiv 2311.16867"),
    (r"stablelm", "AdamW", "arXiv 2402.17834"),
    (r"phi-?1|phi-?2", "AdamW", "Adam with weight decay, arXiv 2309.05463"),
    (r"phi", "AdamW", "as Phi-1.5's, arXiv 2309.05463; later reports do not name it"),
    (r"mi[sx]tral|mathstral", "AdamW", "not named in arXiv 2310.06825; as all models of its time and kind"),
    (r"(?:code-?)?gemma", "AdamW", "not named in arXiv 2403.08295; as all models of its time and kind"),
)
"""Pattern in a model's name -> the optimizer of its pretraining, and where that stands; the first that fits."""


def pretraining_of(
    provenance: Provenance | None, names: Iterable[str], given: str | None = None, has_base: bool = True
) -> Pretraining:
    """The optimizer that pretrained a base.

    Args:
        provenance: of the base, where it has one.
        names: of the model, the most telling first: on the hub, of its folder, of its architecture.
        given: what the user says it was.
        has_base: whether there is a base at all.
    """
    if not has_base:
        return Pretraining(None, "this run begins the model")
    recorded = provenance.pretraining_optimizer if provenance is not None else None
    if given is not None:
        known = {name.lower(): name for name in FAMILIES}
        against = f", where provenance.yaml of the base says {recorded}" if recorded not in (None, given) else ""
        return Pretraining(known.get(given.lower(), given), f"model.pretraining_optimizer{against}")
    if recorded is not None:
        return Pretraining(recorded, "provenance.yaml of the base")
    imported = ((provenance.stages[0].get("source") or {}) if provenance is not None else {}).get("name")
    for name in [imported, *names]:
        for pattern, optimizer, source in PUBLIC:
            # a name of its own, not a part of another word: `dolphin` is no Phi
            if name and re.search(rf"(?<![a-z])(?:{pattern})", name.lower()):
                return Pretraining(optimizer, f"guessed from the name {name} ({source})", is_guess=True)
    return Pretraining(
        UNKNOWN, "no record, and no public family of this name is known; see model.pretraining_optimizer"
    )


def mismatch_line(base: str, before: Pretraining, now: str) -> str | None:
    """What a user is told where optimizers differ, or that of pretraining is guessed or not known; None for nothing."""
    if before.optimizer == UNKNOWN:
        return (
            f"{base}: which optimizer pretrained it is not known, so that a mismatch with {now} could not be named; "
            "--model.pretraining_optimizer NAME says which"
        )
    if before.is_guess:
        said = f"{base} was probably pretrained with {before.optimizer}, {before.source}"
    else:
        said = f"{base} was pretrained with {before.optimizer}"
    if before.mismatch(now):
        return (
            f"{said} and is now trained with {now}, of another family: finetuning with the optimizer of pretraining "
            "forgets less (arXiv 2605.06654)"
        )
    return f"{said}; --model.pretraining_optimizer says otherwise" if before.is_guess else None


def pretraining_of_base(base: Path | None, config: Any, given: str | None = None) -> Pretraining:
    """As ``pretraining_of``, of a folder in LitGPT's format; None: a model that begins with this run.

    Args:
        base: the folder.
        config: LitGPT's configuration of the model, whose name is that of the architecture.
        given: what the user says it was.
    """
    if base is None:
        return pretraining_of(None, (), has_base=False)
    architecture = getattr(config, "hf_config", None) or {}
    names = names_of(base.resolve().parts, architecture.get("name"), config.name)
    return pretraining_of(read_provenance(base), names, given)


def names_of(folder_parts: Sequence[str], *others: str | None) -> list[str]:
    """Names by which a model may be known: the last two parts of its folder, then others, without those not there."""
    return [name for name in ("/".join(folder_parts[-2:]), *others) if name]
