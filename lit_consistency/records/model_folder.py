"""A model on disk, in LitGPT's format, without its tensors: what must be there, and whether two models are the same."""

from __future__ import annotations

from pathlib import Path

from lit_consistency.records.atomic import hidden_folders
from lit_consistency.records.fingerprints import fingerprint_of, sha256_once
from lit_consistency.records.shipped import looked_in

WEIGHTS = ("lit_model.pth", "lit_model.safetensors")
VOCABULARIES = ("tokenizer.json", "tokenizer.model")
CONFIG = "model_config.yaml"
ADAPTERS = "adapters.yaml"
"""In a folder of adapters, which are merged onto a base."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Texts of a licence, which go along with a model."""
OPTIMIZER_STATE = "optimizer_state.safetensors"
"""Of the training that made the model, where it was kept."""
COMPUTED_BY = (CONFIG, *VOCABULARIES, "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
"""Besides the weights, what decides what a model computes from a text, and where it stops."""
IMPORT = "python -m lit_consistency import"
MAX_SHARD_SIZE = "5GB"
"""Of a file of exported weights: that of transformers up to version 4, which any file system and any upload takes."""
PROMPTED_BY = ("prompt_style.yaml",)
"""How LitGPT prompts it."""


def check_checkpoint_dir(checkpoint_dir: Path, needs_tokenizer: bool = True, option: str = "checkpoint_dir") -> None:
    """See that a folder holds a model: weights, ``model_config.yaml`` and, where needed, a tokenizer.

    Args:
        checkpoint_dir: the folder.
        needs_tokenizer: whether it must hold one.
        option: what the user calls the folder, for the message.

    Raises:
        FileNotFoundError: naming everything that is missing.
    """
    folder = Path(checkpoint_dir)
    if not folder.is_dir():
        asides = hidden_folders(folder.parent, folder.name) if folder.parent.is_dir() else []
        hint = f"; {asides[0]} stands beside it, moved there by a save that was killed: rename it" if asides else ""
        hub = f"; a model of the hub is fetched by: {IMPORT} {folder.as_posix()}" if len(folder.parts) == 2 else ""
        raise FileNotFoundError(
            f"{option} = {folder}: there is no such folder; expected one in LitGPT's format{hint or hub}"
            f"{looked_in(folder)}"
        )
    if (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{option} = {folder}: is in the format of Hugging Face's transformers; expected LitGPT's, which is made "
            f"by: {IMPORT} {folder} --to DIR"
        )
    needed: list[tuple[str, ...]] = [WEIGHTS, (CONFIG,)]
    if needs_tokenizer:
        needed.append(VOCABULARIES)
    missing = [" or ".join(names) for names in needed if not any((folder / name).is_file() for name in names)]
    if missing:
        hint = "; merge LoRA weights first: `litgpt merge_lora`" if (folder / "lit_model.pth.lora").is_file() else ""
        if (folder / "run.json").is_file():
            there = [name for name in ("model", "adapters", "series") if (folder / name).is_dir()]
            expected = ", or ".join(str(folder / name) for name in there) if there else "a run that has written a model"
            hint = f"; it is the folder of a run: expected {expected}"
        if (folder / ADAPTERS).is_file():
            merge = f"python -m lit_consistency export --checkpoint_dir {folder} --to litgpt --out_dir OUT"
            hint = f"; it holds adapters, merge them first: {merge}"
        raise FileNotFoundError(f"{option} = {folder}: missing {', '.join(missing)}{hint}")


def weights_path(checkpoint_dir: Path) -> Path:
    """The file of the weights.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in WEIGHTS:
        if (path := Path(checkpoint_dir) / name).is_file():
            return path
    raise FileNotFoundError(f"checkpoint_dir = {checkpoint_dir}: missing {' or '.join(WEIGHTS)}")


def weights_files(checkpoint_dir: Path) -> list[Path]:
    """Every file of tensors in a folder: weights, adapters, the optimizer's state."""
    files = (path for path in Path(checkpoint_dir).iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if {".pth", ".safetensors", ".bin"} & set(path.suffixes))


def weights_hash(checkpoint_dir: Path) -> str:
    """SHA-256 of the weights file, in hexadecimal: what provenance calls a model by."""
    # gigabytes, asked for by the record, the provenance and the evaluation of one run
    return sha256_once(weights_path(checkpoint_dir))


def model_fingerprint(checkpoint_dir: Path) -> str:
    """SHA-256 of all that the model's answers depend on: weights, configuration, tokenizer, prompt style."""
    files = [Path(checkpoint_dir) / name for name in (*COMPUTED_BY, *PROMPTED_BY)]
    hashes = {file.name: sha256_once(file) for file in files if file.is_file()}
    return fingerprint_of({"weights": weights_hash(checkpoint_dir), **hashes})


def licence_texts(folder: Path) -> list[Path]:
    """The texts of the licence in a model's folder, sorted by name."""
    return sorted({file for pattern in LICENCES for file in folder.glob(pattern) if file.is_file()})
