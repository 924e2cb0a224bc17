"""The base's own samples, drawn once: its texts as a shard of the cache of tokens, and what it predicts along them.

One process of a machine draws, on the run's device, before the model that is trained is built: it holds the base alone.
Every rank opens the same files. The cache knows them by the base's fingerprint (weights, configuration, tokenizer) and
the options. Given up: a base that no single device holds; other hardware rounds otherwise, and may draw other texts.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from lit_consistency.data import TokenData
from lit_consistency.data.sources.own_samples import OwnSamples
from lit_consistency.data.tokens.cache import folder_of, open_or_build
from lit_consistency.data.tokens.pairs import opening_token
from lit_consistency.data.tokens.token_files import Shard, ShardWriter
from lit_consistency.inference.decoding import Decoding, Request
from lit_consistency.inference.head import read_log_probs
from lit_consistency.inference.load import load_model
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.inference.score import pad, plan_batches, shift
from lit_consistency.methods.anchor import AnchorTexts, KLAnchor, TopK, top_k
from lit_consistency.records.model_folder import model_fingerprint

TEXTS = "texts.jsonl"
"""The texts to be looked at, one a line, as `data --rows` reads them."""
EVERY = 10.0
"""Seconds between two lines of progress."""


def open_own_samples(base: Path, samples: OwnSamples, block_size: int, cache_dir: Path, device: torch.device) -> Shard:
    """The base's texts; drawn first where they are not in the cache.

    Args:
        base: model folder.
        samples: how many, how long, from which seed.
        block_size: places of the rows in which they are trained on.
        cache_dir: of tokens.
        device: where they are drawn.

    Returns:
        A text is the token that opens it, then those that were drawn, with the one that ends it unless it was cut; all
        but the first are learned.

    Raises:
        ValueError: the base ends every text before its first token, or a text may be longer than a row.
    """
    fingerprint = _fingerprint(base, samples, block_size)

    def draw(folder: Path) -> None:
        rank_zero_info(
            f"own samples: drawing {samples.n_texts:,} texts of at most {samples.longest(block_size):,} tokens from "
            f"{base} on {device}, once"
        )
        with isolate_rng(), torch.no_grad():
            _draw(folder, base, samples, samples.longest(block_size), device, fingerprint)

    shard = open_or_build(cache_dir, fingerprint, draw)
    file = folder_of(cache_dir, fingerprint) / TEXTS
    _say_once(
        f"own samples: {shard.meta['n_documents']:,} texts, {shard.meta['n_tokens']:,} tokens, "
        f"{shard.meta['n_truncated']:,} cut; to be read in {file}"
    )
    return shard


@cache
def _say_once(line: str) -> None:
    """Of a replay and an anchor along the same texts."""
    rank_zero_info(line)


def _fingerprint(base: Path, samples: OwnSamples, block_size: int) -> dict[str, Any]:
    drawn = {**samples.fingerprint(), "max_tokens": samples.longest(block_size)}
    return {"tokens": "own_samples", "base": model_fingerprint(base), "samples": drawn}


def _draw(
    folder: Path, base: Path, samples: OwnSamples, longest: int, device: torch.device, fingerprint: dict[str, Any]
) -> None:
    """Draw all texts, many at once: the place of one that has ended is taken by the next."""
    model, tokenizer, _ = load_model(base, str(device))
    opening = opening_token(tokenizer)
    options = GenerationOptions(max_new_tokens=longest, temperature=samples.temperature, seed=samples.seed)
    began = said = time.monotonic()

    def watch(n_finished: int, n_tokens: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said > EVERY:
            said = now
            rate = n_tokens / (now - began)
            rank_zero_info(f"own samples: {n_finished:,} of {samples.n_texts:,} texts, {rate:,.0f} tokens/s")

    prompt = np.asarray([opening])
    decoding = Decoding(model, [prompt], options, tokenizer, samples.batch_tokens, device, in_step=False, watch=watch)
    texts = decoding.run([Request(0, (i,)) for i in range(samples.n_texts)])
    if not any(text.tokens for text in texts.values()):
        raise ValueError(f"own samples: {base} ends every text before its first token; expected a base that writes")
    n_truncated = 0
    with ShardWriter(folder, tokenizer.vocab_size, masked=True) as writer:
        with open(folder / TEXTS, "w", encoding="utf-8") as lines:
            for i in range(samples.n_texts):
                end = decoding.ended_by.get((0, i))
                tokens = [opening, *texts[0, i].tokens, *([] if end is None else [end])]
                writer.add(tokens, np.arange(len(tokens)) > 0)
                n_truncated += end is None
                lines.write(json.dumps({"text": texts[0, i].text}, ensure_ascii=False) + "\n")
        writer.finish({"fingerprint": fingerprint, "n_truncated": n_truncated})
    seconds = time.monotonic() - began
    rank_zero_info(f"own samples: drawn in {seconds:,.0f} s, {writer.n_tokens / seconds:,.0f} tokens/s")


def read_anchor(anchor: KLAnchor, base: Path, trainer: Trainer) -> None:
    """Give an anchor the texts that it reads, if it reads any; see that the run's data have what it holds otherwise."""
    data: TokenData = trainer.datamodule  # type: ignore[attr-defined]
    anchor.check_data(data)
    if anchor.on != "own" or anchor.has_read:
        return
    # of a mixed precision the weights are in float32, and so are the logits
    precision = {"bf16-true": "bfloat16", "16-true": "float16"}.get(str(trainer.precision), "float32")
    device = trainer.strategy.root_device
    texts = open_anchor_texts(base, anchor.samples, anchor.k, data.block_size, data.cache_dir, device, precision)
    anchor.read(texts, int(os.environ.get("PL_GLOBAL_SEED", 0)))


def check_same_texts(anchor: KLAnchor | None, data: Any) -> None:
    """ValueError, on all ranks, where nodes have drawn other texts than each other, each into a cache of its own."""
    drawn = data.drawn() if isinstance(data, TokenData) else {}
    mine = {**drawn, **({"model.anchor": anchor.fingerprint()} if anchor and anchor.on == "own" else {})}
    if not (mine and dist.is_initialized()):
        return
    of_ranks: list[Any] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    if other := [name for name in mine if any(of_rank[name] != of_ranks[0][name] for of_rank in of_ranks)]:
        raise ValueError(
            f"{', '.join(other)}: the base has written other texts on one node than on another; expected "
            "data.init_args.cache_dir on a disk that all of them share"
        )


def open_anchor_texts(
    base: Path,
    samples: OwnSamples,
    k: int,
    block_size: int,
    cache_dir: Path,
    device: torch.device,
    precision: str,
) -> AnchorTexts:
    """The base's texts with its ``k`` likeliest tokens at every position; computed first where they are not on disk.

    Args:
        base: model folder.
        samples: which texts.
        k: tokens of which the probability is kept; 0 keeps none, for a base that is asked during the run.
        block_size: as of ``open_own_samples``.
        cache_dir: of tokens.
        device: where they are computed.
        precision: in which, as of ``load_model``: that of the run, so that the divergence begins at zero.
    """
    texts = open_own_samples(base, samples, block_size, cache_dir, device)
    if k == 0:
        return AnchorTexts(texts, None)
    fingerprint = {
        "tokens": "anchor_texts",
        "k": k,
        "precision": precision,
        "of": _fingerprint(base, samples, block_size),
        "sha256": texts.meta["sha256"]["tokens.bin"],
    }

    def ask(folder: Path) -> None:
        rank_zero_info(f"anchor: asking {base} for its {k} likeliest tokens at {_n_positions(texts):,} positions, once")
        with isolate_rng(), torch.no_grad():
            _ask(folder, base, texts, k, samples.batch_tokens, device, precision, fingerprint)

    shard = open_or_build(cache_dir, fingerprint, ask)
    folder = folder_of(cache_dir, fingerprint)
    return AnchorTexts(shard, TopK(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in TopK._fields)))


def _n_positions(texts: Shard) -> int:
    """A text's last token is only ever a target."""
    return len(texts.tokens) - (len(texts.offsets) - 1)


def _ask(
    folder: Path,
    base: Path,
    texts: Shard,
    k: int,
    batch_tokens: int,
    device: torch.device,
    precision: str,
    fingerprint: dict[str, Any],
) -> None:
    """Write the texts again, and beside them what the base predicts, position after position, text after text."""
    assert texts.supervised is not None
    model = load_model(base, str(device), precision).model
    n, k = _n_positions(texts), min(k, int(model.config.padded_vocab_size or 0) - 1)
    kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int32, (n, k)),
        "log_probs": (np.float32, (n, k)),
        "log_rest": (np.float32, (n,)),
    }
    with ShardWriter(folder, int(texts.tokens.max()) + 1, masked=True) as writer:
        rows = []
        for start, end in zip(texts.offsets, texts.offsets[1:], strict=False):
            writer.add(texts.tokens[start:end], texts.supervised[start:end])
            # copies, since torch warns of what cannot be written
            rows.append(shift(texts.tokens[start:end].astype(np.int64), texts.supervised[start:end].copy()))
        tables = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (dtype, shape) in kinds.items()
        }
        first_of = texts.offsets[:-1] - np.arange(len(rows))
        for batch in plan_batches([len(tokens) for tokens, _ in rows], batch_tokens):
            tokens, targets = pad([rows[i] for i in batch], device)
            at = np.concatenate([first_of[i] + np.arange(len(rows[i][0])) for i in batch])

            def keep(log_probs: torch.Tensor, first: int, at: np.ndarray = at) -> None:
                for name, values in top_k(log_probs, k)._asdict().items():
                    tables[name][at[first : first + len(log_probs)]] = values.cpu().numpy()

            read_log_probs(model, tokens, (targets >= 0).flatten().nonzero()[:, 0].cpu(), keep)
        for table in tables.values():
            table.flush()
        writer.finish({"fingerprint": fingerprint})
