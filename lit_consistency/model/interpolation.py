r"""WiSE-FT: a model between a base and the same model finetuned.

.. math::
    p = (1 - a) \, p_{\text{base}} + a \, p_{\text{finetuned}}

with share a: 0 is the base and 1 the finetuned model, bit for bit. Computed in float32, or in float64 for float64
weights, and rounded once, to the wider of the two dtypes. Given up: models whose weights do not have the same names
and shapes, as after an older conversion by LitGPT; whether the line between the two models is a good one.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, CVPR, arXiv 2109.01903.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from litgpt.config import Config
from torch import Tensor

from lit_consistency.model.checkpoint import load_weights, save_model
from lit_consistency.model.configuration import model_config
from lit_consistency.model.export import save_hf
from lit_consistency.model.to_hf import finite, hf_config
from lit_consistency.records.atomic import check_free
from lit_consistency.records.model_folder import MAX_SHARD_SIZE, VOCABULARIES, check_checkpoint_dir, weights_hash
from lit_consistency.records.provenance import Provenance, read_provenance

UNCOMPARED = ("name", "hf_config")
"""Keys of LitGPT's Config that say what a model is called and where it came from, not what it computes."""


def export_interpolated(
    base_dir: Path,
    finetuned_dir: Path,
    shares: Sequence[float],
    out_dir: Path,
    to: Literal["litgpt", "hf"] = "litgpt",
    overwrite: bool = False,
    command: str | None = None,
    turn_ends: Sequence[int] = (),
    max_shard_size: str = MAX_SHARD_SIZE,
) -> list[Path]:
    """Write the models at ``shares`` of the way from a base to the finetuned model (WiSE-FT).

    Args:
        base_dir: the base, in LitGPT's format.
        finetuned_dir: the model trained from it, likewise; its tokenizer and prompt style go along.
        shares: 0 is the base, 1 the finetuned model.
        out_dir: the new folder; with several shares, one folder in it for each, named by the share.
        to: the format, LitGPT's or that of transformers.
        overwrite: replace models that stand there.
        command: for the provenance.
        turn_ends: of the format of transformers, see ``save_hf``.
        max_shard_size: likewise.

    Returns:
        The folders.

    Raises:
        ValueError: the models do not fit, a share is not in [0, 1] or is there twice, a folder may not be replaced,
            or a weight is not finite.
        FileNotFoundError: a model is incomplete.
    """
    for share in shares:
        check_interpolate(share)
    if not shares or len(set(shares)) < len(shares):
        raise ValueError(f"interpolate = {list(shares)}: expected one number or several different ones")
    folders = [Path(out_dir) / f"{share:g}" for share in shares] if len(shares) > 1 else [Path(out_dir)]
    if len(set(folders)) < len(folders):
        raise ValueError(f"interpolate = {list(shares)}: expected numbers that differ in six digits, they name folders")
    for folder in folders:
        check_free(folder, overwrite)
    between = Interpolation(base_dir, finetuned_dir)
    if to == "hf":
        hf_config(between.config)
    if between.stranger:
        warnings.warn(between.stranger, stacklevel=2)
    for share, folder in zip(shares, folders, strict=True):
        weights, provenance = between.weights(share), between.provenance(share, command)
        if to == "hf":
            save_hf(folder, weights, between.config, finetuned_dir, provenance, overwrite, turn_ends, max_shard_size)
        else:
            has_tokenizer = any((Path(finetuned_dir) / name).is_file() for name in VOCABULARIES)
            tokenizer_dir = finetuned_dir if has_tokenizer else None
            weights = {name: finite(name, tensor) for name, tensor in weights.items()}
            save_model(folder, weights, between.config, tokenizer_dir, provenance, overwrite=overwrite)
    return folders


class Interpolation:
    """Two models that fit, and what lies between them.

    Args:
        base_dir: folder of the base, in LitGPT's format.
        finetuned_dir: folder of the model that was trained from it.

    Raises:
        FileNotFoundError: a model is incomplete.
        ValueError: the two differ in configuration, names or shapes; the message gives the first difference.
    """

    def __init__(self, base_dir: Path, finetuned_dir: Path) -> None:
        for option, folder in (("with", base_dir), ("checkpoint_dir", finetuned_dir)):
            check_checkpoint_dir(folder, needs_tokenizer=False, option=option)
        self.base_dir = Path(base_dir)
        self.finetuned_dir = Path(finetuned_dir)
        self.config = model_config(None, self.finetuned_dir, {}, None)
        difference = config_difference(model_config(None, self.base_dir, {}, None), self.config)
        if difference is None:
            self._base, self._finetuned = load_weights(self.base_dir), load_weights(self.finetuned_dir)
            difference = weights_difference(self._base, self._finetuned)
        if difference is not None:
            raise ValueError(
                f"{self.finetuned_dir} does not fit {self.base_dir}: {difference}; expected a model and its own base"
            )

    @cached_property
    def hashes(self) -> tuple[str, str]:
        """Of the weights of the base and of the finetuned model."""
        return weights_hash(self.base_dir), weights_hash(self.finetuned_dir)

    @property
    def stranger(self) -> str | None:
        """What to say where the finetuned model's provenance knows its bases, and this one is none of them."""
        provenance = read_provenance(self.finetuned_dir)
        bases = [stage["base_hash"] for stage in provenance.stages if stage.get("base_hash")] if provenance else []
        if not bases or self.hashes[0] in bases:
            return None
        return (
            f"{self.finetuned_dir} was not trained from {self.base_dir}, says its provenance; between models that do "
            "not belong together there is seldom a good one"
        )

    def weights(self, share: float) -> dict[str, Tensor]:
        """Weights of the model at ``share`` of the way from the base to the finetuned model."""
        check_interpolate(share)
        return {name: interpolate(self._base[name], tensor, share) for name, tensor in self._finetuned.items()}

    def provenance(self, share: float, command: str | None = None) -> Provenance:
        """The stage after the finetuned model's own: from which two models, and where between them."""
        before = read_provenance(self.finetuned_dir)
        base_hash, finetuned_hash = self.hashes
        between = {"share": share, "base": str(self.base_dir), "base_hash": base_hash}
        between |= {"finetuned": str(self.finetuned_dir), "finetuned_hash": finetuned_hash}
        stage: dict[str, Any] = {"model": self.config.name, "optimizer": "none", "method": "wise_ft"}
        stage |= {"stage": "interpolation"}
        stage |= {"base": str(self.base_dir), "base_hash": base_hash, "command": command, "interpolation": between}
        return before.next_stage(**stage) if before else Provenance(**stage)


def interpolate(base: Tensor, finetuned: Tensor, share: float) -> Tensor:
    """(1 - share) base + share finetuned, of one weight.

    Args:
        base: any float dtype, only read.
        finetuned: of its shape, any float dtype, only read.
        share: 0 to 1.

    Returns:
        In the wider of the two dtypes; for 0 and 1 the values of the one or the other, unchanged.
    """
    dtype = torch.promote_types(base.dtype, finetuned.dtype)
    if share in (0, 1):
        return (finetuned if share else base).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.lerp(base.to(wide), finetuned.to(wide), share).to(dtype)


def check_interpolate(share: float) -> None:
    """ValueError unless 0 <= ``share`` <= 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"interpolate = {share}: expected 0 <= interpolate <= 1, 0 for the base, 1 for the finetuned")


def config_difference(base: Config, finetuned: Config) -> str | None:
    """The first key in which two architectures differ, with both values; None when they are the same."""
    for key in (entry.name for entry in fields(Config) if entry.name not in UNCOMPARED):
        if getattr(base, key) != getattr(finetuned, key):
            return f"{key} = {getattr(finetuned, key)} here and {getattr(base, key)} there"
    return None


def weights_difference(base: dict[str, Tensor], finetuned: dict[str, Tensor]) -> str | None:
    """The first name or shape in which two sets of weights differ; None when they fit."""
    for name, tensor in finetuned.items():
        if name not in base:
            return f"{name} is here and not there"
        if tensor.shape != base[name].shape:
            return f"{name} has shape {list(tensor.shape)} here and {list(base[name].shape)} there"
    missing = next((name for name in base if name not in finetuned), None)
    return None if missing is None else f"{missing} is there and not here"
