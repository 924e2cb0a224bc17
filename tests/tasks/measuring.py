"""A loaded model that measures tasks, for tests that count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.data.worlds import World
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import Loaded, load_model
from lit_consistency.model import GPT, model_config, save_model
from lit_consistency.records.provenance import Provenance
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.task import EncodedTask, Engine


def measure(loaded: Loaded, encoded: EncodedTask, batch_tokens: int = 512, **options: Any) -> Measured:
    """The task's numbers."""
    with evaluation_mode(loaded.model):
        engine = Engine(loaded.model, loaded.tokenizer, batch_tokens, loaded.device, **options)
        return encoded.task.measure(encoded, engine)


def world_model(folder: Path, world: World, block_size: int = 64, scale: float = 3) -> Loaded:
    """A model of random weights with the world's own tokenizer."""
    write_tokenizer(world.tokenizer(), folder / "tokenizer")
    tokenizer = Tokenizer(folder / "tokenizer")
    overrides = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": block_size}
    config = model_config("pythia-14m", None, overrides, tokenizer.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = GPT(config).state_dict()
    weights = {name: tensor * (scale if name.endswith("weight") else 1) for name, tensor in weights.items()}
    stage = {"model": "pythia-14m", "optimizer": "AdamW", "method": "full", "stage": "pretrain", "steps": 1}
    save_model(folder / "model", weights, config, tokenizer.folder, Provenance(**stage))
    return load_model(folder / "model", "cpu")
