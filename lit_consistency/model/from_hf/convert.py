"""A folder in transformers' format as a model in LitGPT's: streamed weight by weight, checked, with its provenance.

LitGPT's own functions rename and join the weights. They are called for one of LitGPT's weights at a time, which is
written at once (LitGPT's ``incremental_save``), so that memory holds about one weight however large the model. Names
and shapes are checked against the model that LitGPT builds, and every weight is asked whether it is finite. Nothing in
the folder is executed: no pickle, no code beside it.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from litgpt.config import Config
from litgpt.utils import incremental_save
from torch import Tensor

from lit_consistency.model.checkpoint import compact, write_model_files
from lit_consistency.model.from_hf.config import litgpt_config
from lit_consistency.model.from_hf.families import Copy
from lit_consistency.model.from_hf.weights import HFWeights
from lit_consistency.model.gpt import GPT
from lit_consistency.model.tensors import is_finite
from lit_consistency.model.tying import EMBEDDING, HEAD, is_tied, same, with_tying
from lit_consistency.records.atomic import check_free, new_folder
from lit_consistency.records.fingerprints import sha256_once
from lit_consistency.records.model_folder import CONFIG, VOCABULARIES, WEIGHTS, licence_texts
from lit_consistency.records.provenance import Provenance, read_provenance

EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
"""Ends of the names of both in transformers."""
VISION = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
LANGUAGE = re.compile(r"^(?:model\.language_model\.|language_model\.(?=lm_head))|^language_model\.(?=model\.)")


class Imported(NamedTuple):
    """What an import has written.

    Attributes:
        config: of the model.
        n_parameters: an embedding that is the head too counted once.
        dtype: of the weights, several joined by commas.
    """

    config: Config
    n_parameters: int
    dtype: str


def import_model(
    source: Path,
    out_dir: Path,
    *,
    name: str,
    organization: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Write the model of a folder in transformers' format as one in LitGPT's, whole or not at all.

    Args:
        source: the folder, with ``config.json`` and weights.
        out_dir: the new folder.
        name: of the model.
        organization: of its repository on the hub; None for a folder from elsewhere.
        revision: commit of the repository.
        overwrite: replace a model that stands at ``out_dir``.
        command: for the provenance.
        progress: is told how many of how many weights are done.

    Returns:
        What was written.

    Raises:
        ValueError: LitGPT does not compute this model, a weight does not fit, or ``out_dir`` may not be replaced.
        FileNotFoundError: the folder holds no such model.
    """
    source = Path(source)
    content = read_config(source)
    check_free(Path(out_dir), overwrite)
    if Path(out_dir).resolve() == source.resolve():
        raise ValueError(f"to = {out_dir}: expected another folder than the one that is imported")
    config, copy = litgpt_config(content, name, organization)
    weights = HFWeights(source)
    if n_seeing := sum(bool(VISION.match(name)) for name in weights.file_of):
        warnings.warn(f"{source}: the part that sees pictures is left out, {n_seeing} weights", stacklevel=2)
    config = _tied_as_stored(config, weights)
    with new_folder(Path(out_dir), overwrite) as folder:
        dtypes = _write(folder, weights, config, copy, progress)
        tokenizer = source if any((source / file).is_file() for file in VOCABULARIES) else None
        if tokenizer is None:
            warnings.warn(f"{source}: no {' or '.join(VOCABULARIES)}: the model has no tokenizer yet", stacklevel=2)
        write_model_files(folder, config, tokenizer, tied=is_tied(config))
        for file in licence_texts(source):
            shutil.copyfile(file, folder / file.name)
        _provenance(source, weights, config, organization, revision, command).write(folder)
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in GPT(config).parameters())
    return Imported(config, n_parameters, ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)))


def read_config(folder: Path) -> dict[str, Any]:
    """Contents of ``config.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no mapping, or the folder holds something else than a model of transformers.
    """
    if (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: has {CONFIG}, so it is in LitGPT's format already; expected one of transformers")
    if not (folder / "config.json").is_file():
        adapter = "; it holds adapters, merge them first" if (folder / "adapter_config.json").is_file() else ""
        raise FileNotFoundError(f"{folder}: missing config.json; expected a model of transformers{adapter}")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: expected JSON, got: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{folder / 'config.json'}: expected a mapping, got {type(content).__name__}")
    return content


# -------------------- weights


def _write(
    folder: Path, weights: HFWeights, config: Config, copy: Copy, progress: Callable[[int, int], None]
) -> set[torch.dtype]:
    """Write ``lit_model.pth``, and return the types of its weights."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    groups = [names for names in weights.groups() if not _left_out(names[0], weights, config)]
    written: dict[str, Any] = {}
    dtypes = set()
    with incremental_save(folder / WEIGHTS[0]) as saver:
        for done, names in enumerate(groups, start=1):
            for name, tensor in _converted(names, weights, copy):
                _check(name, tensor, shapes, names, weights.folder)
                dtypes.add(tensor.dtype)
                written[name] = saver.store_early(compact(tensor))
            progress(done, len(groups))
        if is_tied(config):
            written[EMBEDDING] = written[HEAD] = written.get(EMBEDDING, written.get(HEAD))
        if missing := [name for name in shapes if written.get(name) is None]:
            raise ValueError(
                f"{weights.folder}: {len(missing)} of LitGPT's {len(shapes)} weights have no counterpart in the "
                f"files, as {', '.join(missing[:3])}"
            )
        # in the model's own order: nothing that reads the file depends on how the shards were cut
        saver.save({name: written[name] for name in shapes})
    return dtypes


def _tied_as_stored(config: Config, weights: HFWeights) -> Config:
    """The configuration; not tied where both are stored and differ, which is how transformers 5 reads such files."""
    embedding, head = (_named(weights, names) for names in (EMBEDDINGS, HEADS))
    if not (is_tied(config) and embedding and head) or same(weights[embedding], weights[head]):
        return config
    warnings.warn(
        f"{weights.folder}: by tie_word_embeddings embedding and head are one weight, but {embedding} and {head} "
        "differ: they are imported as two",
        stacklevel=3,
    )
    return replace(config, hf_config=with_tying(vars(config), False)["hf_config"])


def _left_out(name: str, weights: HFWeights, config: Config) -> bool:
    """Whether a weight has no place in LitGPT's model: what sees pictures, and a head that the embedding is as well."""
    return bool(VISION.match(name)) or (
        is_tied(config) and name == _named(weights, HEADS) and _named(weights, EMBEDDINGS) is not None
    )


def _named(weights: HFWeights, ends: tuple[str, ...]) -> str | None:
    return next((name for name in weights.file_of if name.endswith(ends) and not VISION.match(name)), None)


def _converted(names: tuple[str, ...], weights: HFWeights, copy: Copy) -> list[tuple[str, Tensor]]:
    """LitGPT's weights that are made of these; several only where one is cut (Phi-3's gate and up)."""
    # a head that is missing is the embedding to LitGPT's functions, which then look for that
    state: dict[str, Any] = {HEAD: None}
    try:
        copy(state_dict=state, hf_weights={LANGUAGE.sub(_text_name, name): weights[name] for name in names})
    except KeyError:
        state = {}
    converted = [(name, tensor) for name, tensor in state.items() if tensor is not None]
    if not converted:
        raise ValueError(
            f"{weights.folder}: {', '.join(names)}: no such weight in LitGPT's model of this family; expected those "
            "that transformers writes for the architecture of config.json"
        )
    return converted


def _text_name(match: re.Match[str]) -> str:
    """Beginning of a weight's name in a model that reads text alone."""
    return "model." if match[0] == "model.language_model." else ""


def _check(name: str, tensor: Tensor, shapes: dict[str, torch.Size], names: tuple[str, ...], folder: Path) -> None:
    if tensor.shape != shapes.get(name):
        expected = list(shapes[name]) if name in shapes else "no such weight"
        raise ValueError(
            f"{folder}: {', '.join(names)} become {name} of shape {list(tensor.shape)}: config.json makes it {expected}"
        )
    if not is_finite(tensor):
        raise ValueError(f"{folder}: {', '.join(names)}: NaN or infinity; expected finite weights")


# -------------------- where it comes from


def _provenance(
    source: Path,
    weights: HFWeights,
    config: Config,
    organization: str | None,
    revision: str | None,
    command: str | None,
) -> Provenance:
    """This import as a stage; the folder's own history goes on where it has one, as one that we exported."""
    used = [
        *weights.files,
        *(file for file in sorted(source.iterdir()) if file.suffix in (".json", ".jinja", ".model")),
    ]
    known_as = "/".join(filter(None, (organization, config.hf_config["name"])))
    stage: dict[str, Any] = {
        "model": config.name,
        "optimizer": "unknown",
        "method": "none",
        "stage": "import",
        "base": known_as if organization else str(source),
        "command": command,
    }
    stage["source"] = {
        "kind": "hub" if organization else "folder",
        "name": known_as,
        "revision": revision,
        "licence": licence_of(source),
        "sha256": {file.name: sha256_once(file) for file in dict.fromkeys(used)},
    }
    before = read_provenance(source)
    return before.next_stage(**{**stage, "optimizer": "none"}) if before else Provenance(**stage)


def licence_of(folder: Path) -> dict[str, str] | None:
    """What the model card says of the licence: ``license``, ``license_name`` and ``license_link``; None: nothing."""
    card = Path(folder) / "README.md"
    if not card.is_file():
        return None
    head = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        fields = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return None
    named = {
        key: fields[key]
        for key in ("license", "license_name", "license_link")
        if isinstance(fields, dict) and key in fields
    }
    return {key: str(value) for key, value in named.items()} or None
