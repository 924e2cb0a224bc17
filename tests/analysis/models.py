"""Small models on disk, random or trained a little, with the tokenizer of a world of Markov chains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.subject import Shared, Subject
from lit_consistency.analysis.core.texts import Reading
from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds import MarkovChains
from lit_consistency.model import GPT, model_config, save_model
from lit_consistency.records.provenance import Provenance

WORLD = {"n_documents": 20, "length": 16, "n_symbols": 8, "n_chains": 2}
"""Fields of the world that the texts ``markov/old`` and ``markov/new`` come from in these tests."""
TEXTS = ("markov/old", "markov/new")
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "padded_vocab_size": 64, "vocab_size": 64}


def config(name: str = "pythia-14m", **overrides: Any) -> Config:
    """A small configuration of a family."""
    return model_config(name, None, {**SHAPE, **overrides}, None)


def write_model(
    folder: Path,
    seed: int = 0,
    name: str = "pythia-14m",
    scale: float = 0.3,
    base: Path | None = None,
    **overrides: Any,
) -> Path:
    """A model with normal weights of standard deviation ``scale`` (norms near 1), float32, as LitGPT's folder.

    Args:
        folder: where to.
        seed: of the weights.
        name: of the family.
        scale: of the weights; of a model with ``base``, of their difference from it.
        base: a folder of the same shape; the weights are its own plus a random update.
        overrides: of the configuration.
    """
    shape = config(name, **overrides)
    torch.manual_seed(seed)
    model = GPT(shape)
    for key, parameter in model.named_parameters():
        norm = "norm" in key or "ln_f" in key
        parameter.data = torch.randn_like(parameter) * (scale / 3 if norm else scale)
        if base is not None:
            parameter.data += ModelFiles(base).tensor(key)
        elif norm and key.endswith("weight"):
            parameter.data += 1
    tokenizer = folder.parent / "tokenizer"
    if not tokenizer.is_dir():
        tokenizer.mkdir(parents=True)
        write_tokenizer(MarkovChains(**WORLD).tokenizer(), tokenizer)
    stage = Provenance(
        model=shape.name, optimizer="AdamW", method="full", stage="sft" if base else "pretrain", steps=10 * (seed + 1),
        base=str(base) if base else None, run=folder.name,
    )  # fmt: skip
    save_model(folder, dict(model.state_dict()), shape, tokenizer, stage)
    return folder


def subject(
    model: Path, base: Path | None = None, texts: tuple[str, ...] = (), others: tuple[Path, ...] = (), limit: int = 0
) -> Subject:
    """What an analysis is asked of, on the CPU."""
    files = ModelFiles(model)
    shared = Shared("cpu", "auto", Reading(limit=limit, world=WORLD))
    models = [*(ModelFiles(other) for other in others), files]
    return Subject(
        files, ModelFiles(base, "base") if base else None, models, list(texts), shared, batch_tokens=512,
        output=model.parent / "analysis",
    )  # fmt: skip


def nothing(share: float) -> None:
    """A progress bar that nobody looks at."""
