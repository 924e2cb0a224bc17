"""Half finetuning (HFT): of every layer half of the matrices are trained, the other half stays as it was.

Two of the four attention matrices (query, key, value, output projection) and half of the MLP's are frozen; of a gated
MLP's three, two in even layers and one in odd ones. A matrix takes its bias along. LitGPT keeps query, key and value
as rows of one matrix, which no ``requires_grad`` divides: the frozen rows get no gradient, so that clipping, MoFO's
budget and Muon's directions do not see them, and are put back after every step, so that weight decay and momentum
cannot move them whatever the optimizer.

Given up: the memory and time that the optimizer spends on the frozen rows of a fused matrix; latent attention, which
has other matrices; a choice that is drawn anew every epoch.

Source: Hui et al. 2024, HFT: Half Fine-Tuning for Large Language Models, arXiv 2404.18466. There the two of four are
drawn at random (``selection: random``); ``alternating`` needs no seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from lit_consistency.methods.base import Method
from lit_consistency.model import DocumentMask
from lit_consistency.model.tying import is_tied
from lit_consistency.optimizers.core.checks import check_choice
from lit_consistency.optimizers.core.optimizer import local, master_or_parameter

Selection = Literal["alternating", "random"]
ATTENTION = ("query", "key", "value", "proj")


class FrozenRows(NamedTuple):
    """Rows of a parameter's shard on this rank that do not move."""

    rows: Tensor  # their indices in the shard, int64
    values: Tensor  # what they hold, in the parameter's dtype


class HFT(Method):
    """Half of the matrices of every layer are trained, the others are frozen.

    Args:
        selection: which half is frozen: ``alternating``: query, key and the first half of the MLP in even layers, the
            others in odd ones; ``random``: drawn for each layer and each MLP.
        seed: of the random selection; it is a function of the seed, the layer and the name of the MLP.
        complement: freeze the other half instead.
        embedding: train the embedding.
        head: train the output head.
        norms: train the norms.
    """

    def __init__(
        self,
        selection: Selection = "alternating",
        seed: int = 0,
        complement: bool = False,
        embedding: bool = True,
        head: bool = True,
        norms: bool = True,
    ) -> None:
        check_choice("selection", selection, get_args(Selection))
        self.selection = selection
        self.seed = seed
        self.complement = complement
        self.trained = {"embedding": embedding, "head": head, "norms": norms}
        self._start: dict[str, FrozenRows] = {}
        self._bound: dict[Tensor, FrozenRows] = {}

    @property
    def name(self) -> str:
        """``hft``."""
        return "hft"

    def build(self, config: Config) -> DocumentMask:
        """The plain model.

        Raises:
            ValueError: its attention has other matrices than query, key, value and projection; or embedding and head
                are one weight, of which only one name is to be trained.
        """
        if config.latent_attention:
            raise ValueError("method = HFT with latent_attention: expected an architecture without; use Full or Pull")
        if is_tied(config) and self.trained["embedding"] != self.trained["head"]:
            raise ValueError(
                f"embedding = {self.trained['embedding']}, head = {self.trained['head']} with a model whose embedding "
                "and head are one weight: expected the same for both, or overrides.tie_embeddings = false"
            )
        return super().build(config)

    def prepare(self, model: nn.Module) -> None:
        """A parameter takes a gradient if any of its rows is trained."""
        frozen = self.frozen_rows(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen[name].all())

    def begin(self, model: nn.Module) -> None:
        """Copy the frozen rows of the matrices of which other rows are trained."""
        self._start = {}
        frozen = self.frozen_rows(model)
        for name, parameter in model.named_parameters():
            if frozen[name].any() and not frozen[name].all():
                rows = frozen[name][local_rows(parameter)].nonzero().flatten().to(parameter.device)
                self._start[name] = FrozenRows(rows, local(parameter)[rows].clone())

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """After every step of ``optimizer`` the frozen rows are put back."""
        parameters = dict(model.named_parameters())
        self._bound = {
            parameters[name]: FrozenRows(*(tensor.to(parameters[name].device) for tensor in frozen))
            for name, frozen in self._start.items()
        }
        optimizer.register_step_post_hook(self._put_back)

    @torch.no_grad()
    def before_step(self) -> None:
        """Frozen rows have no gradient."""
        for parameter, frozen in self._bound.items():
            if parameter.grad is not None:
                local(parameter.grad).index_fill_(0, frozen.rows, 0)

    @torch.no_grad()
    def _put_back(self, optimizer: Optimizer, *_: Any) -> None:
        for parameter, frozen in self._bound.items():
            local(parameter).index_copy_(0, frozen.rows, frozen.values)
            master = master_or_parameter(optimizer, parameter)
            if master is not parameter:
                local(master).index_copy_(0, frozen.rows, frozen.values.to(master.dtype))

    def trained_share(self, model: nn.Module) -> float:
        """Share in [0, 1] of the parameters that are trained; the frozen rows of a fused matrix are not."""
        frozen = self.frozen_rows(model)
        trained = sum(
            p.numel() * int((~frozen[name]).sum()) // len(frozen[name]) for name, p in model.named_parameters()
        )
        return trained / sum(p.numel() for p in model.parameters())

    def frozen_rows(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter name to the mask of its frozen rows: bool, of the length of its first dimension, on the CPU."""
        layers = cast(Any, model).transformer.h
        matrices = {path: frozen for layer, block in enumerate(layers) for path, frozen in self._matrices(layer, block)}
        by_parameter = {}
        for name, parameter in model.named_parameters():
            path = name.rpartition(".")[0]
            frozen = matrices.get(path)
            if frozen is None:
                frozen = torch.tensor([not self._trains(path, model.get_submodule(path))])
            by_parameter[name] = frozen.expand(parameter.shape[0])
        return by_parameter

    def _trains(self, path: str, module: nn.Module) -> bool:
        """Whether a module other than a matrix of attention or MLP is trained; a router always is."""
        if isinstance(module, nn.Embedding):
            return self.trained["embedding"]
        leaf = path.rpartition(".")[2]
        if leaf in ("lm_head", "gate"):
            return leaf == "gate" or self.trained["head"]
        return self.trained["norms"]

    def _matrices(self, layer: int, block: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Path of each matrix of a layer, and the mask of its frozen rows, or one value for all its rows."""
        prefix = f"transformer.h.{layer}"
        frozen = self._frozen(layer, "attn", ATTENTION)
        config = cast(Any, block.attn).config
        heads = (config.n_head, config.n_query_groups, config.n_query_groups)
        rows = [torch.full((n * config.head_size,), name in frozen) for n, name in zip(heads, ATTENTION, strict=False)]
        yield f"{prefix}.attn.qkv", torch.cat(rows)
        yield f"{prefix}.attn.proj", torch.tensor(["proj" in frozen])
        for path, module in cast(nn.Module, block.mlp).named_modules(prefix=f"{prefix}.mlp"):
            names = [name for name, child in module.named_children() if isinstance(child, nn.Linear) and name != "gate"]
            frozen = self._frozen(layer, path, names)
            yield from ((f"{path}.{name}", torch.tensor([name in frozen])) for name in names)

    def _frozen(self, layer: int, path: str, names: Sequence[str]) -> set[str]:
        """Which of the matrices ``names`` are frozen: half of them; of an odd number, one more in even layers."""
        even = layer % 2 == 0
        half = (len(names) + even) // 2
        if self.selection == "random":
            chosen = set(random.Random(f"{self.seed}/{layer}/{path}").sample(list(names), half))
        else:
            chosen = set(names[:half] if even else names[len(names) - half :])
        return set(names) - chosen if self.complement else chosen


def local_rows(parameter: Tensor) -> Tensor:
    """Indices, on the CPU, of the rows of a parameter that lie on this rank.

    Raises:
        ValueError: the parameter is sharded along another dimension than the first.
    """
    rows = torch.arange(parameter.shape[0])
    if not isinstance(parameter, DTensor):
        return rows
    if any(isinstance(placement, Shard) and placement.dim != 0 for placement in parameter.placements):
        raise ValueError(f"method = HFT: a parameter is sharded as {parameter.placements}: expected shards of rows")
    rows = rows.to(parameter.device_mesh.device_type)
    # without a source rank every rank cuts its own copy, and nothing is sent
    return local(distribute_tensor(rows, parameter.device_mesh, parameter.placements, src_data_rank=None)).cpu()
