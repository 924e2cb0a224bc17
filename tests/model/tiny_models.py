"""Models small enough to run in milliseconds, with weights large enough that attention matters."""

import json
from pathlib import Path

import torch
from litgpt.config import Config
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from lit_consistency.model import GPT, model_config, save_model
from lit_consistency.records.provenance import Provenance

TINY = {"n_layer": 2, "n_embd": 32, "n_head": 4, "block_size": 64, "vocab_size": 96}
TINY_EXPERTS = {"n_expert": 4, "n_expert_per_token": 2}


def tiny_config(name: str, **overrides: object) -> Config:
    experts = TINY_EXPERTS if name.startswith("Mixtral") else {}
    return model_config(name, None, {**TINY, **experts, **overrides}, None)


def tiny_model(name: str, **overrides: object) -> GPT:
    """Weights ten times those of training: at 0.02 attention is uniform, and a wrong mask would go unseen."""
    model = GPT(tiny_config(name, **overrides))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 300 tokens, as a tokenizer folder."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(["the llama eats the grass of the hill and the salt of the sea"] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tiny_provenance(**fields: object) -> Provenance:
    given = {"model": "pythia-14m", "optimizer": "AdamW", "method": "full", "stage": "pretrain", **fields}
    return Provenance(**given)  # type: ignore[arg-type]


def tiny_checkpoint(folder: Path, name: str, tokenizer_dir: Path | None = None, **overrides: object) -> GPT:
    model = tiny_model(name, **overrides)
    save_model(folder, model.state_dict(), model.config, tokenizer_dir, tiny_provenance(model=name))
    return model
