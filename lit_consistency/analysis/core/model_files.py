"""A model on disk whose weights are read one at a time: 10B parameters are analysed in the memory of one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model import GPT, check_checkpoint_dir, load_weights, model_config
from lit_consistency.model.tensors import read_tensor
from lit_consistency.optimizers.groups import parameter_groups
from lit_consistency.records.model_folder import model_fingerprint, weights_hash, weights_path
from lit_consistency.records.provenance import Provenance, read_provenance, verify_weights


class Matrix(NamedTuple):
    """A matrix of a model, or one block of a fused one.

    Attributes:
        parameter: LitGPT's name of the weight, as ``transformer.h.0.attn.qkv.weight``.
        kind: the same in every layer, as ``attn.q``, ``attn.proj``, ``mlp.fc``, ``wte``, ``lm_head``.
        layer: 0 .. n_layer - 1; -1 outside of the layers.
        role: ``hidden``, ``embedding`` or ``head``, as the optimizers see it.
        start: first row of the block in the weight.
        stop: row behind its last one.
        n_columns: of the weight.
    """

    parameter: str
    kind: str
    layer: int
    role: str
    start: int
    stop: int
    n_columns: int

    @property
    def name(self) -> str:
        """As ``3.attn.q``, or ``wte``."""
        return self.kind if self.layer < 0 else f"{self.layer}.{self.kind}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.stop - self.start, self.n_columns

    @property
    def module(self) -> str:
        """Name of the module whose input the matrix multiplies, as ``transformer.h.0.attn.qkv``."""
        return self.parameter.removesuffix(".weight")


class ModelFiles:
    """A folder in LitGPT's format, or a step of a run.

    Args:
        path: of the folder.
        option: what the user calls it, for messages.
        name: on pictures and in tables; the end of the path when not given.

    Raises:
        FileNotFoundError: something is missing there.
        ValueError: its configuration cannot be read.
    """

    def __init__(self, path: Path, option: str = "model", name: str | None = None) -> None:
        self.folder = base_folder(Path(path), option)
        check_checkpoint_dir(self.folder, needs_tokenizer=False, option=option)
        self.name = name or self.folder.name
        self.config: Config = model_config(None, self.folder, {}, None)
        self.provenance: Provenance | None = read_provenance(self.folder)

    def __repr__(self) -> str:
        return f"ModelFiles({self.folder})"

    @property
    def step(self) -> int:
        """Optimizer steps of its last training; 0 where nothing is known of it."""
        return self.provenance.steps if self.provenance else 0

    @property
    def run(self) -> str:
        """Name of the run that made it, the same for all models of a series; its own name where that is not known."""
        return (self.provenance.run if self.provenance else None) or self.name

    @property
    def optimizer(self) -> str:
        """Class of the optimizer of its last training, or ``unknown``."""
        return self.provenance.optimizer if self.provenance else "unknown"

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights."""
        return weights_hash(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that its answers depend on: weights, configuration, tokenizer."""
        return model_fingerprint(self.folder)

    # -------------------- weights

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """A copy of one weight in memory, in ``dtype`` (None: that of the file).

        Raises:
            ValueError: the file has no such weight, or is damaged.
        """
        path = self._weights
        if path.suffix == ".safetensors":
            tensor = read_tensor(path, name)
        else:
            mapped = self._mapped()
            if name not in mapped:
                raise ValueError(f"{path}: no weight {name}; expected those of model_config.yaml")
            tensor = mapped[name].clone()
        return tensor if dtype is None else tensor.to(dtype)

    def reader(self) -> Callable[[str], Tensor]:
        """Reads one weight after the other, as they are in the file; pickled weights are mapped once for all of them.

        Returned tensors may be views of the file: they are only to be read, and pages count as used while it is kept.
        """
        if self._weights.suffix == ".safetensors":
            return lambda name: self.tensor(name, None)
        mapped = self._mapped()
        return lambda name: mapped[name]

    @cached_property
    def _weights(self) -> Path:
        """The file, which is what was written; looked at once."""
        path = weights_path(self.folder)
        verify_weights(path)
        return path

    def _mapped(self) -> dict[str, Tensor]:
        return load_weights(self.folder)

    def block(self, matrix: Matrix, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, columns) of one matrix."""
        return self.tensor(matrix.parameter, None)[matrix.start : matrix.stop].to(dtype)

    # -------------------- shapes, without weights

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return GPT(self.config)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, each tied one once."""
        return {name: tuple(parameter.shape) for name, parameter in self.skeleton.named_parameters()}

    @cached_property
    def roles(self) -> dict[str, str]:
        """Name of a weight -> ``hidden``, ``embedding``, ``head``, ``norm`` or ``bias``."""
        return {name: group["role"] for group in parameter_groups(self.skeleton) for name, _ in group["params"]}

    @cached_property
    def matrices(self) -> list[Matrix]:
        """All matrices, a fused query, key and value weight as three, in the order of the layers."""
        found = []
        for group in parameter_groups(self.skeleton):
            for name, parameter in group["params"]:
                if parameter.ndim == 2:
                    found += _blocks(name, group["role"], group["split"], tuple(parameter.shape))
        order = {name: i for i, name in enumerate(self.shapes)}
        return sorted(found, key=lambda matrix: (order[matrix.parameter], matrix.start))


def layer_and_kind(name: str) -> tuple[int, str]:
    """As (0, ``attn.qkv``) of the module ``transformer.h.0.attn.qkv``; layer -1 outside of the layers."""
    words = name.removeprefix("transformer.").split(".")
    return (int(words[1]), ".".join(words[2:])) if words[0] == "h" and len(words) > 2 else (-1, ".".join(words))


def _blocks(name: str, role: str, split: Sequence[int] | None, shape: tuple[int, ...]) -> list[Matrix]:
    layer, kind = layer_and_kind(name.removesuffix(".weight"))
    if split is None:
        return [Matrix(name, kind, layer, role, 0, shape[0], shape[1])]
    edges = [sum(split[:i]) for i in range(len(split) + 1)]
    kinds = [kind.removesuffix("qkv") + part for part in "qkv"]
    return [
        Matrix(name, part, layer, role, start, stop, shape[1])
        for part, start, stop in zip(kinds, edges[:-1], edges[1:], strict=True)
    ]


def check_same_shapes(first: ModelFiles, second: ModelFiles) -> None:
    """ValueError with both sides where two models have not the same weights, by name and shape."""
    for name, shape in second.shapes.items():
        if first.shapes.get(name) != shape:
            there = list(first.shapes[name]) if name in first.shapes else "no such weight"
            raise ValueError(
                f"{name} is {list(shape)} in {second.folder} and {there} in {first.folder}; expected one shape"
            )
    if missing := next((name for name in first.shapes if name not in second.shapes), None):
        raise ValueError(f"{missing} is in {first.folder} and not in {second.folder}; expected the same weights")
