r"""What every linear layer of a model reads on a text: streamed, sampled, or summed to its second moments.

A forward pre-hook on the layer sees its input; only positions that are tokens of the text count, never padding. One
pass over the text serves all layers, in the memory of one batch.

.. math::
    C = E[x x^T] = \frac{1}{n} \sum_{i=1}^{n} x_i x_i^T, \qquad m = E[x],

over all n positions of a text. Products and sums are taken in float64 of activations as the model computes them (in
its own precision), so that the covariance :math:`C - m m^T` and its small eigenvalues can be read too. A model of 1B
parameters has about 9 GiB of such sums: they are taken in as many passes over the text as ``memory`` demands, and kept
on disk, where every analysis of the run finds them again.

Given up: mixtures of experts, where an expert reads only some of the tokens.

Shapes: B rows of T tokens, n positions that count among them, d numbers that a layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_consistency.analysis.core.analysis import Advance
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.texts import Text
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.score import CPU_BATCH_TOKENS, plan_batches
from lit_consistency.records.atomic import new_file
from lit_consistency.records.fingerprints import fingerprint_of, sha256_once

MEMORY = 4 << 30
"""Bytes of second moments that are summed at once: those of a model of 1B parameters take three passes."""
FOLDER = "second_moments"

Consume = Callable[[str, Tensor], None]
"""Given a module's name and what it reads, (n, d) float32 or float64, once a batch."""


# -------------------- which layers


def linear_modules(files: ModelFiles) -> list[str]:
    """Names of all linear layers, as ``transformer.h.0.attn.qkv``, in the order of the model's modules.

    Raises:
        ValueError: the model is a mixture of experts.
    """
    if files.config.mlp_class_name == "LLaMAMoE":
        raise ValueError(
            f"{files.folder}: its experts read only some of the tokens; expected a model without mixture of experts"
        )
    return [name for name, module in files.skeleton.named_modules() if isinstance(module, nn.Linear)]


def residual_streams(n_layer: int) -> dict[str, int]:
    """Module that reads the residual stream -> how many blocks came before: 0 .. n_layer."""
    return {**{f"transformer.h.{i}": i for i in range(n_layer)}, "transformer.ln_f": n_layer}


def n_inputs(files: ModelFiles, module: str) -> int:
    """Numbers that a linear layer reads at a position, d."""
    layer = files.skeleton.get_submodule(module)
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def _chosen(files: ModelFiles, modules: Sequence[str] | None) -> list[str]:
    known = linear_modules(files)
    if modules is None:
        return known
    if unknown := [name for name in modules if name not in known]:
        raise ValueError(f"modules: {files.folder} has no linear layer {unknown[0]!r}; expected some of {known}")
    return [name for name in known if name in modules]


# -------------------- one pass


class Batch(NamedTuple):
    """Rows of tokens, padded on the right.

    Attributes:
        tokens: (B, T) int64, on the model's device.
        counts: (B, T) bool, where a token of the text stands.
        at: (n,) int64 on the CPU, of every position that counts its number in the text, all items one after the other.
        rows: the number of every row.
    """

    tokens: Tensor
    counts: Tensor
    at: Tensor
    rows: list[int]


def batches(rows: Sequence[Tensor], batch_tokens: int, device: torch.device) -> Iterator[Batch]:
    """All rows, longest first; a batch depends on the rows, the budget and the kind of device alone.

    Args:
        rows: tokens (T,) int64 of each; one without a token is in no batch.
        batch_tokens: budget of padded tokens in one forward.
        device: of the model.
    """
    starts = [0, *accumulate(len(tokens) for tokens in rows)]
    at_once = min(batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else batch_tokens
    for batch in plan_batches([len(tokens) for tokens in rows], at_once):
        fed = [i for i in batch if len(rows[i])]
        if fed:
            # padding stands on the right, where no earlier token sees it
            tokens = nn.utils.rnn.pad_sequence([rows[i] for i in fed], batch_first=True)
            lengths = torch.tensor([len(rows[i]) for i in fed])
            counts = torch.arange(tokens.size(1)) < lengths[:, None]
            at = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in fed])
            yield Batch(tokens.to(device), counts.to(device), at, fed)


def item_of_position(text: Text) -> Tensor:
    """(N,) int64: the item that every position of the text belongs to, in the order of ``Batch.at``."""
    return torch.repeat_interleave(torch.tensor([len(tokens) for tokens, _ in text.rows]))


def feed(model: nn.Module, batch: Batch, modules: Sequence[str], consume: Consume) -> None:
    """One forward; ``consume`` is given what every module reads, in the order of computation.

    Args:
        model: LitGPT's, in evaluation mode.
        batch: of a text.
        modules: names of modules whose first argument is (B, T, d), linear or not.
        consume: see ``Consume``; what layers share (``fc_1`` and ``fc_2`` of a gated MLP) is the same tensor.
    """
    read: tuple[Tensor, Tensor] | None = None

    def see(name: str, x: Tensor) -> None:
        nonlocal read
        if read is None or read[0] is not x:
            kept = x[batch.counts]
            read = x, kept.to(torch.promote_types(kept.dtype, torch.float32))
        consume(name, read[1])

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if name in wanted:
                see(name, args[0])
            # nobody asked for logits: of 16,384 tokens and a vocabulary of 128k they would take 8 GiB
            return (args[0][:1, :1],) if name == "lm_head" else None

        return before

    wanted = set(modules)
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in wanted | {"lm_head"}]
    try:
        model(batch.tokens)
    finally:
        for handle in handles:
            handle.remove()


def layer_inputs(
    subject: Subject,
    files: ModelFiles,
    text: Text,
    consume: Consume,
    modules: Sequence[str] | None = None,
    advance: Advance | None = None,
) -> None:
    """What linear layers read at every position of a text, batch by batch.

    Args:
        subject: for the loaded model and the budget of a batch.
        files: the model, or the base.
        text: its tokens.
        consume: given the module's name and its input (n, d), once for every batch and module.
        modules: names of linear layers; all when not given.
        advance: given the share of the pass that is newly done.

    Raises:
        ValueError: the model has no such layer, or is a mixture of experts.
    """
    chosen = _chosen(files, modules)
    model, _, device = subject.load(files)
    n_all = text.n_tokens
    with evaluation_mode(model):
        for batch in batches(text.tokens, subject.batch_tokens, device):
            feed(model, batch, chosen, consume)
            if advance is not None:
                advance(len(batch.at) / n_all)


def sample_inputs(
    subject: Subject, files: ModelFiles, text: Text, n: int, modules: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """What linear layers read at ``n`` positions, drawn without replacement by the subject's seed.

    Args:
        subject: for the loaded model, the budget of a batch and the seed.
        files: the model, or the base.
        text: its tokens.
        n: positions; all of the text where it has fewer.
        modules: names of linear layers; all when not given.

    Returns:
        Module -> (n, d) on the CPU, row i of every module (and model) at the same position, in the order of the text.
    """
    chosen = _chosen(files, modules)
    model, _, device = subject.load(files)
    drawn = torch.randperm(text.n_tokens, generator=torch.Generator().manual_seed(subject.seed))[:n].sort().values
    is_drawn = torch.zeros(text.n_tokens, dtype=torch.bool)
    is_drawn[drawn] = True
    pieces: dict[str, list[Tensor]] = {name: [] for name in chosen}
    order = []
    with evaluation_mode(model):
        for batch in batches(text.tokens, subject.batch_tokens, device):
            taken = is_drawn[batch.at]
            if taken.any():
                order.append(batch.at[taken])
                mask = taken.to(device)
                feed(model, batch, chosen, lambda name, x, mask=mask: pieces[name].append(x[mask].cpu()))  # type: ignore[misc]
    by_position = torch.cat(order).argsort()
    return {name: torch.cat(rows)[by_position] for name, rows in pieces.items()}


# -------------------- second moments


class Moments(NamedTuple):
    """Of what a layer reads, on the CPU.

    Attributes:
        second: (d, d) float64, E[x x^T].
        mean: (d,) float64, E[x].
        n: positions over which they are means.
    """

    second: Tensor
    mean: Tensor
    n: int

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, E[(x - E[x]) (x - E[x])^T]."""
        return self.second - torch.outer(self.mean, self.mean)


class MomentsOnDisk(Mapping[str, Moments]):
    """Module -> moments, read from disk when they are asked for: one at a time is in memory.

    Args:
        folder: of the files.
        modules: that are there.
    """

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        self.folder, self.modules = folder, list(modules)

    def __getitem__(self, module: str) -> Moments:
        if module not in self.modules:
            raise KeyError(module)
        content = torch.load(moments_file(self.folder, module), weights_only=True)
        return Moments(content["second"], content["mean"], content["n"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


def moments(
    subject: Subject,
    files: ModelFiles,
    text: Text,
    modules: Sequence[str] | None = None,
    advance: Advance | None = None,
    memory: int = MEMORY,
) -> Mapping[str, Moments]:
    """Second moments and means of what linear layers read on a text, from disk where they are there.

    Args:
        subject: for the loaded model, the budget of a batch and the folder in which they are kept.
        files: the model, or the base.
        text: its tokens.
        modules: names of linear layers; all when not given.
        advance: given the share of the work that is newly done.
        memory: bytes that the sums may take at once on the model's device; a single layer may take more.

    Raises:
        ValueError: the model has no such layer, or is a mixture of experts.
    """
    chosen = _chosen(files, modules)
    folder = moments_folder(subject, files, text)
    first_of: dict[Path, str] = {}
    for name in chosen:
        first_of.setdefault(moments_file(folder, name), name)
    todo = [name for file, name in first_of.items() if not file.is_file()]
    sizes = {name: 8 * n_inputs(files, name) ** 2 for name in todo}
    passes = in_passes(sizes, memory)
    for names in passes:
        step = (lambda share: advance(share / len(passes))) if advance is not None else None
        for name, found in _summed(subject, files, text, names, step).items():
            with new_file(moments_file(folder, name)) as path:
                torch.save(found._asdict(), path)
    return MomentsOnDisk(folder, chosen)


def moments_folder(subject: Subject, files: ModelFiles, text: Text) -> Path:
    """Where the moments of a model on a text are kept."""
    depends_on = [files.fingerprint, text.fingerprint, subject.shared.precision, sha256_once(Path(__file__))]
    return subject.output / FOLDER / fingerprint_of(depends_on)[:24]


def moments_file(folder: Path, module: str) -> Path:
    """Of one layer; both first matrices of a gated MLP read the same, and share a file."""
    return folder / f"{module.replace('mlp.fc_2', 'mlp.fc_1')}.pt"


def in_passes(sizes: Mapping[str, int], memory: int = MEMORY) -> list[list[str]]:
    """Names in their order, as many at once as fit into the memory by their bytes, at least one."""
    passes: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not passes or size > left:
            passes.append([])
            left = memory
        passes[-1].append(name)
        left -= size
    return passes


def _summed(
    subject: Subject, files: ModelFiles, text: Text, modules: Sequence[str], advance: Advance | None
) -> dict[str, Moments]:
    seconds: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        precise = x.double()
        if name not in seconds:
            seconds[name] = precise.new_zeros(x.size(1), x.size(1))
            means[name] = precise.new_zeros(x.size(1))
        seconds[name].addmm_(precise.T, precise)
        means[name] += precise.sum(0)

    layer_inputs(subject, files, text, add, modules, advance)
    n = text.n_tokens
    return {name: Moments((seconds[name] / n).cpu(), (means[name] / n).cpu(), n) for name in modules}
