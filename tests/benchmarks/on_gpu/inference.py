"""Scores and texts per second beside transformers' own path, where that is installed; the same model, the same items.

The model has pythia-160m's shape and random weights in bfloat16, its head ten times as large as a new one's, so that
choices are as decided as a trained model's. Time is the wall's, the device idle before and after: planning batches is
part of the work. Scores are compared in float32, in which neither side may round away a difference.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.generate import generate
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.inference.score import score_sequences
from lit_consistency.model import GPT, export_hf, init_weights, model_config, save_model
from lit_consistency.records.provenance import Provenance
from tests.benchmarks.on_gpu.place import Place, Row, attempt, bar, or_skip, peak_gib, release

Scored = tuple[np.ndarray, np.ndarray]  # tokens (T,), and which of them are scored (T,) bool
ROOT = Path(__file__).parents[3]
TOKENIZER = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"
BATCH_TOKENS = 2**15  # ours
BATCH_SIZES = (16, 64, 128)  # theirs, of which the fastest counts
HEAD = 400  # tokens of the examples that all prompts begin with


def new_model(place: Place) -> GPT:
    """In float32, on the device."""
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "block_size": 1024, "padded_vocab_size": 1024}
    config = model_config("pythia-160m", None, sizes if place.tiny else {}, None)
    torch.manual_seed(0)
    with torch.device(place.device):
        model = GPT(config)
        init_weights(model, config)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model.eval().requires_grad_(False)


def theirs(model: GPT, place: Place) -> Row:
    """The same weights as a ``model`` of transformers, in float32; or a row that says why there is none."""
    labels = {"path": "transformers"}
    if importlib.util.find_spec("transformers") is None:
        return {**labels, "skipped": "transformers is not installed"}
    return attempt(labels, _exported, model, place)


def _exported(model: GPT, place: Place) -> Row:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        lit, hf = Path(folder) / "lit", Path(folder) / "hf"
        provenance = Provenance(model=model.config.name, optimizer="none", method="full", stage="pretrain")
        save_model(lit, {name: t.cpu() for name, t in model.state_dict().items()}, model.config, TOKENIZER, provenance)
        export_hf(lit, hf)
        other: Any = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    return {"model": other.to(place.device).eval().requires_grad_(False)}


def timed(place: Place, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the second of two runs; the first one finds kernels and memory."""
    work()
    _wait(place)
    began = time.perf_counter()
    result = work()
    _wait(place)
    return time.perf_counter() - began, result


def _wait(place: Place) -> None:
    if place.device == "cuda":
        torch.cuda.synchronize()


# -------------------- scoring


def scoring(place: Place) -> Iterator[Row]:
    """Questions with two answers (PIQA's lengths) and pairs of sentences (BLiMP's)."""
    n = 8 if place.tiny else 500
    tasks = {"answers": answers(n, 900), "pairs": pairs(2 * n, 900)}
    model, device = new_model(place), torch.device(place.device)
    other = theirs(model, place)
    if "model" not in other:
        yield other
    for name, asked in tasks.items():
        ours = score_sequences(model, asked, batch_tokens=BATCH_TOKENS, device=device).nll
        if "model" in other:
            expected, _ = their_scores(other["model"], asked, BATCH_SIZES[0], place.device)
            apart = float((ours - expected).abs().max())
            yield bar(f"nats apart from transformers', float32, {name}", apart, 1e-2)
    model = model.bfloat16()
    rates: dict[str, dict[str, float]] = {name: {} for name in tasks}
    for name, asked in tasks.items():
        release(place.device)
        score = functools.partial(score_sequences, model, asked, batch_tokens=BATCH_TOKENS, device=device)
        took, _ = timed(place, score)
        rates[name]["ours"] = len(asked) / 2 / took
        yield {"task": name, "path": "ours", "items/s": rates[name]["ours"], "peak GiB": peak_gib(place.device)}
    if "model" not in other:
        return
    hf = other["model"].bfloat16()
    for name, asked in tasks.items():
        for size in BATCH_SIZES[:1] if place.tiny else BATCH_SIZES:
            labels = {"task": name, "path": f"transformers, batch size {size}"}
            row = or_skip(place, 3, labels, _their_rate, hf, asked, size, place)
            rates[name]["theirs"] = max(rates[name].get("theirs", 0.0), row.get("items/s", 0.0))
            yield row
        best = rates[name]["theirs"]
        ratio = rates[name]["ours"] / best if best else math.nan
        yield bar(f"ours / transformers, items/s of {name}", ratio, 3, at_least=True)


def _their_rate(model: Any, asked: Sequence[Scored], size: int, place: Place) -> Row:
    release(place.device)
    took, _ = timed(place, lambda: their_scores(model, asked, size, place.device))
    return {"items/s": len(asked) / 2 / took, "peak GiB": peak_gib(place.device)}


@torch.no_grad()
def their_scores(model: Any, asked: Sequence[Scored], size: int, device: str) -> tuple[Tensor, Tensor]:
    """Summed nll (N,) float64 and hits (N,) by lm-eval's way: batches by length, all logits, row by row."""
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i][0]))
    nll, hits = torch.zeros(len(asked), dtype=torch.float64), torch.zeros(len(asked), dtype=torch.bool)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        tokens = pad_sequence([torch.from_numpy(asked[i][0][:-1]) for i in some], batch_first=True).to(device)
        log_probs = torch.log_softmax(model(tokens).logits, dim=-1, dtype=torch.float32)
        for row, i in enumerate(some):
            ids, scored = asked[i]
            places = torch.from_numpy(np.flatnonzero(scored[1:])).to(device)
            wanted = torch.from_numpy(ids[1:][scored[1:]]).to(device)
            chosen = log_probs[row, places]
            nll[i] = -chosen.gather(1, wanted[:, None]).sum().item()
            hits[i] = bool((chosen.argmax(-1) == wanted).all())
    return nll, hits


def answers(n: int, n_vocab: int) -> list[Scored]:
    """Two sequences a question: a common beginning that is not scored, and an answer."""
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(n):
        question = rng.integers(1, n_vocab, rng.integers(8, 25))
        for _ in range(2):
            answer = rng.integers(1, n_vocab, rng.integers(8, 40))
            asked.append((np.concatenate([question, answer]), np.arange(len(question) + len(answer)) >= len(question)))
    return asked


def pairs(n: int, n_vocab: int) -> list[Scored]:
    """Two sentences that differ in one token."""
    rng = np.random.default_rng(1)
    asked = []
    for _ in range(n):
        good = rng.integers(1, n_vocab, rng.integers(8, 15))
        bad = good.copy()
        bad[int(rng.integers(2, len(bad)))] = n_vocab
        asked += [(tokens, np.arange(len(tokens)) >= 1) for tokens in (good, bad)]
    return asked


# -------------------- generation


def generation(place: Place) -> Iterator[Row]:
    """Greedy texts after prompts with a common beginning of four examples, as GSM8K has them."""
    n, new_tokens = (4, 8) if place.tiny else (256, 64)
    asked = prompts(n, 900)
    model, device = new_model(place).bfloat16(), torch.device(place.device)
    tokenizer = Tokenizer(TOKENIZER)
    how = GenerationOptions(max_new_tokens=new_tokens)
    release(place.device)
    batch_tokens = 2**18
    took, texts = timed(place, lambda: generate(model, asked, how, tokenizer, batch_tokens=batch_tokens, device=device))
    rate, n_tokens = n / took, sum(len(samples[0].tokens) for samples in texts)
    yield {"path": "ours", "items/s": rate, "tokens/s": n_tokens / took, "peak GiB": peak_gib(place.device)}
    drawn = how._replace(temperature=0.8, top_p=0.95, n_samples=2)
    yield attempt({"path": "ours, two samples at 0.8, top_p 0.95"}, _drawn, model, asked, drawn, tokenizer, place)
    other = theirs(model.float(), place)
    if "model" not in other:
        yield other
        return
    hf, best = other["model"].bfloat16(), 0.0
    for size in (n,) if place.tiny else (64, 256):
        labels = {"path": f"transformers, batch size {size}"}
        row = or_skip(place, 10, labels, _their_texts, hf, asked, texts, new_tokens, size, place)
        best = max(best, row.get("items/s", 0.0))
        yield row
    yield bar("ours / transformers, texts/s", rate / best if best else math.nan, 2, at_least=True)


def _drawn(model: GPT, asked: Sequence[np.ndarray], how: GenerationOptions, tokenizer: Tokenizer, place: Place) -> Row:
    device = torch.device(place.device)
    took, texts = timed(place, lambda: generate(model, asked, how, tokenizer, batch_tokens=2**18, device=device))
    again = generate(model, asked[:2], how, tokenizer, batch_tokens=2**18, device=device)
    return {
        "items/s": len(asked) / took,
        "tokens/s": sum(len(text.tokens) for samples in texts for text in samples) / took,
        "samples differ": sum(a.tokens != b.tokens for a, b in texts) / len(texts),
        "again alike": again == generate(model, asked[:2], how, tokenizer, batch_tokens=2**18, device=device),
    }


def _their_texts(model: Any, asked: Sequence[np.ndarray], ours: Any, new_tokens: int, size: int, place: Place) -> Row:
    """By ``generate`` of transformers, prompts of a batch padded on the left, longest first as lm-eval sorts them."""
    release(place.device)
    took, found = timed(place, lambda: their_texts(model, asked, new_tokens, size, place.device))
    same = sum(own[0].tokens == tokens[: len(own[0].tokens)].tolist() for own, tokens in zip(ours, found, strict=True))
    return {
        "items/s": len(asked) / took,
        "tokens/s": len(asked) * new_tokens / took,
        "peak GiB": peak_gib(place.device),
        "texts as ours": same / len(asked),  # in bfloat16 a near tie falls either way, and the rest of a text with it
    }


@torch.no_grad()
def their_texts(model: Any, asked: Sequence[np.ndarray], new_tokens: int, size: int, device: str) -> list[Tensor]:
    """New tokens (T,) of every prompt, on the CPU."""
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), size):
        some = order[start : start + size]
        width = len(asked[some[0]])
        tokens = torch.stack([torch.from_numpy(np.pad(asked[i], (width - len(asked[i]), 0))) for i in some])
        seen = torch.stack([torch.arange(width) >= width - len(asked[i]) for i in some])
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        written = model.generate(tokens.to(device), attention_mask=seen.long().to(device), **options)
        found |= zip(some, written[:, width:].cpu(), strict=True)
    return [found[i] for i in range(len(asked))]


def prompts(n: int, n_vocab: int) -> list[np.ndarray]:
    """A common beginning of ``HEAD`` tokens and 30 to 100 of their own."""
    rng = np.random.default_rng(2)
    head = rng.integers(1, n_vocab, HEAD)
    return [np.concatenate([head, rng.integers(1, n_vocab, rng.integers(30, 100))]) for _ in range(n)]
