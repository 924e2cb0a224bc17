"""Steps of training by themselves, without loader, logger and callbacks: pretraining, and packed rows of conversations.

A step is that of ``LitLanguageModel``: forward under the precision, the loss that takes its gradients there, backward,
the norm of the gradients, the optimizer.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from litgpt.config import Config
from torch import Tensor

from lit_consistency.callbacks.throughput import flops_per_token
from lit_consistency.data.loading.collate import EMPTY, Batch, collate, model_inputs, seen_on_cpu, supervised_tokens
from lit_consistency.data.loading.order import MicroBatch, Order
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.data.tokens.token_rows import ConversationRows
from lit_consistency.distributed.gradients import norm_of, norm_parts
from lit_consistency.inference.rows import supervised_nll
from lit_consistency.model import GPT, DocumentMask, TokenNLL, init_weights, linear_loss
from lit_consistency.optimizers import AdamW, parameter_groups
from tests.benchmarks.measure import seconds
from tests.benchmarks.on_gpu.place import Place, Row, bar, or_skip, peak_flops, peak_gib, release
from tests.benchmarks.shapes import GPT2_SMALL, LLAMA_1B

Step = Callable[[], Tensor]
BLOCK = 1024
VOCABULARY = 50304  # GPT-2's, rounded up to a multiple of 64: tensor cores want 16-bit matrices of such sizes
SEQUENTIAL: dict[str, Any] = {"parallel_residual": False, "lm_head_bias": False, "block_size": BLOCK}
TINY: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_query_groups": 4, "head_size": 16}
TINY |= {"intermediate_size": 96, "padded_vocab_size": 256, "block_size": 64}


class Size(NamedTuple):
    """A model to pretrain: its shape, the rows of a micro-batch to try, largest first, and the bar of its FLOPs use."""

    settings: dict[str, Any]
    micro_batches: tuple[int, ...]
    bar: float


SIZES = {
    # heads and embeddings are two matrices here, whose parameters count twice and whose operations count once
    "124M": Size({"n_layer": 12, **GPT2_SMALL, **SEQUENTIAL, "padded_vocab_size": VOCABULARY}, (32, 16, 8), 0.5),
    "1B": Size(
        {"n_layer": 16, **LLAMA_1B, **SEQUENTIAL, "padded_vocab_size": VOCABULARY, "rotary_percentage": 1.0},
        (16, 8, 4),
        0.45,
    ),
}
# what is uncompiled costs no time to compile and comes last
VARIANTS = [("bf16-mixed", "blocks"), ("bf16-true", "blocks"), ("bf16-mixed", "no"), ("bf16-true", "no")]


def new_model(settings: dict[str, Any], precision: str, compiled: str, place: Place) -> GPT:
    """A model on the device, initialized as a new run's."""
    config = Config(**(settings | TINY if place.tiny else settings))
    torch.manual_seed(0)
    with torch.device(place.device):
        model = GPT(config)
        init_weights(model, config)
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    if compiled != "no":
        compile_blocks(model, place)
    return model


def compile_blocks(model: GPT, place: Place) -> None:
    """In place, so that names of parameters stay; one program serves all blocks."""
    for block in model.transformer.h:
        block.compile(dynamic=False, backend=backend(place))


def backend(place: Place) -> str:
    """In a rehearsal programs are traced and not compiled, which takes a CPU minutes."""
    return "eager" if place.tiny else "inductor"


def training_step(model: GPT, precision: str, batches: Iterator[Batch], place: Place) -> Step:
    """One optimizer step of one micro-batch after the other; returns its loss per supervised token."""
    optimizer = AdamW(parameter_groups(model), lr=1e-4, weight_decay=0.1)

    def step() -> Tensor:
        batch = next(batches)
        indices, targets = supervised_tokens(batch)

        def body(gpt: DocumentMask) -> Tensor:
            states = gpt.document_states(**model_inputs(batch)).flatten(0, 1)
            scale = 1 / batch["supervised"].clamp(min=1).double()
            return linear_loss(states[indices], gpt, TokenNLL(targets), scale)[0]

        with autocast(precision, place.device):
            loss = model(batch["tokens"], body=body)
        loss.backward()
        norm_of(norm_parts(optimizer, 1))
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """What Lightning's plugin of the precision runs a step in."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()


def forever(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The batches again and again."""
    while True:
        yield from batches


# -------------------- pretraining


def pretraining(place: Place) -> Iterator[Row]:
    """Tokens per second and model FLOPs use of models of two sizes, compiled and not."""
    for name, size in SIZES.items():
        torch._dynamo.reset()
        best = 0.0
        for precision, compiled in VARIANTS:
            labels = {"model": name, "precision": precision, "compiled": compiled}
            need = 1 if place.tiny else 15 if compiled == "no" else 30
            row = or_skip(place, need, labels, _pretraining, size, precision, compiled, place)
            best = max(best, row.get("model FLOPs use", 0.0))
            yield row
        yield bar(f"model FLOPs use, {name}", best, size.bar, at_least=True)


def _pretraining(size: Size, precision: str, compiled: str, place: Place) -> Row:
    """The first micro-batch size that fits."""
    for micro_batch in (2,) if place.tiny else size.micro_batches:
        try:
            return _steps(size, precision, compiled, micro_batch, place)
        except torch.OutOfMemoryError:
            if micro_batch == size.micro_batches[-1]:
                raise  # not even the smallest fits
        finally:
            release(place.device)
    raise AssertionError


def _steps(size: Size, precision: str, compiled: str, micro_batch: int, place: Place) -> Row:
    model = new_model(size.settings, precision, compiled, place)
    block_size = model.config.block_size
    batches = [random_batch(micro_batch, block_size, model.config.padded_vocab_size, place.device, i) for i in range(4)]
    step = training_step(model, precision, forever(batches), place)
    began = time.monotonic()
    first = step().item()
    first_step = time.monotonic() - began
    for _ in range(2):
        step()
    took = min(seconds(step, place.device, repeats=2 if place.tiny else 5) for _ in range(2))
    rate = micro_batch * block_size / took
    row = {
        "micro-batch": micro_batch,
        "tokens/s": rate,
        "ms": 1e3 * took,
        "model FLOPs use": rate * flops_per_token(model, block_size) / peak_flops(place.device),
        "peak GiB": peak_gib(place.device),
        "first step s": first_step,
        "first loss": first,
        "last loss": step().item(),
    }
    if not math.isfinite(row["last loss"]):
        raise FloatingPointError(f"the loss is {row['last loss']} after {row['first loss']} at the start")
    return row


def random_batch(rows: int, length: int, n_vocab: int, device: str, seed: int) -> Batch:
    """Rows of one document each, all supervised."""
    tokens = torch.randint(n_vocab, (rows, length + 1), generator=torch.Generator().manual_seed(seed)).to(device)
    supervised, indices = torch.tensor(rows * length, device=device), torch.arange(rows * length, device=device)
    batch: dict[str, Any] = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "supervised": supervised}
    return batch | {"packed": False, "indices": indices}


# -------------------- packing


def packing(place: Place) -> Iterator[Row]:
    """Tokens that are not padding per second, of conversations packed into rows and one a row."""
    size = SIZES["124M"]
    block_size = TINY["block_size"] if place.tiny else BLOCK
    n_vocab = TINY["padded_vocab_size"] if place.tiny else VOCABULARY
    shard = conversations(48 if place.tiny else 1024, block_size, n_vocab)
    rates: dict[str, float] = {}
    nats: dict[str, float] = {}
    for packed, compiled in ((True, "no"), (False, "no"), (True, "blocks")):
        layout = "packed" if packed else "one a row"
        labels = {"layout": layout, "compiled": compiled}
        need = 1 if place.tiny else 10
        row = or_skip(place, need, labels, _epoch, size, shard, block_size, packed, compiled, place)
        way = f"{layout}, {compiled}"
        rates[way], nats[way] = row.get("tokens/s", math.nan), row.get("nats", math.nan)
        yield row
    yield bar("packed / one a row, tokens/s", rates["packed, no"] / rates["one a row, no"], 3, at_least=True)
    # the same conversations by the same new model: what is packed is computed as if it were alone
    apart = abs(nats["packed, no"] / nats["one a row, no"] - 1)
    yield bar("nats of packed rows apart from those of single ones, relative", apart, 1e-3)


def _epoch(size: Size, shard: Shard, block_size: int, packed: bool, compiled: str, place: Place) -> Row:
    rows = ConversationRows(shard, block_size, packed, seed=0)
    micro_batch = 4 if place.tiny else 16
    order = Order(len(rows), micro_batch, micro_batch, world_size=1, rank=0, seed=0)
    every = [_batch(rows, chosen, packed, place.device) for chosen in order.epoch(0)]
    # rows that fill up the last one make it fast, or of a shape of its own
    batches = every[: len(rows) // micro_batch]
    n_real = sum(int((batch["documents"] >= 0).sum()) for batch in batches)
    n_places = sum(batch["tokens"].numel() for batch in batches)
    try:
        model = new_model(size.settings, "bf16-mixed", "no", place)
        nats = _nats(model, every, place.device)
        if compiled != "no":
            compile_blocks(model, place)
        step = training_step(model, "bf16-mixed", forever(batches), place)
        for _ in batches[:4]:
            step()
        took = seconds(step, place.device, repeats=len(batches))
        return {
            "tokens/s": n_real / took / len(batches),
            "ms": 1e3 * took,
            "padding": 1 - n_real / n_places,
            "rows": len(rows),
            "peak GiB": peak_gib(place.device),
            "nats": nats,
        }
    finally:
        release(place.device)


def _batch(rows: ConversationRows, chosen: MicroBatch, packed: bool, device: str) -> Batch:
    """What the loader hands to the module, on the device."""
    supervised = int(rows.supervised[chosen.global_batch].sum())
    some = [rows[i] if i >= 0 else EMPTY for i in chosen.rows]
    batch = seen_on_cpu(collate(some, rows.block_size if packed else None, supervised))
    return move_data_to_device(batch, torch.device(device))


@torch.no_grad()
def _nats(model: GPT, batches: Sequence[Batch], device: str) -> float:
    """Per supervised token, before training."""
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches:
        with autocast("bf16-mixed", device):
            nll = supervised_nll(model, batch)
        total += nll.sum(dtype=torch.float64)
        count += len(nll)
    return float(total) / count


def conversations(n: int, block_size: int, n_vocab: int) -> Shard:
    """Random tokens in lengths like Dolly's: half below 120, a tail up to the block; two thirds are answers."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(math.log(120), 0.9, n), 16, block_size).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = rng.integers(1, n_vocab, offsets[-1]).astype(np.uint16)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    supervised = place >= np.repeat(lengths // 3, lengths)
    return Shard(tokens, supervised, offsets, meta={})
