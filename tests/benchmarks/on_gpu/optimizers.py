"""Optimizers on the device: that they arrive where the CPU does, and what a step of them costs beside torch's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_consistency.model import GPT, init_weights, model_config
from lit_consistency.optimizers import SGD, AdamW, FilteredMuon, MoFO, Muon, parameter_groups
from lit_consistency.optimizers.core.optimizer import GroupOptimizer
from tests.benchmarks import shapes
from tests.benchmarks.measure import medians, peak_bytes
from tests.benchmarks.on_gpu.place import Place, Row, attempt, bar, copy_bytes_per_second, or_skip, release
from tests.benchmarks.on_gpu.training import SEQUENTIAL, TINY, VOCABULARY

# -------------------- the CPU's results


class Case(NamedTuple):
    """An optimizer, its options on the device and other ones on the CPU, and how far apart the two may be.

    The distance is of what three steps have changed, relative to that, for parameters in float32 and in bfloat16.
    """

    kind: type[GroupOptimizer]
    options: dict[str, Any]
    on_cpu: dict[str, Any]
    float32: float
    bfloat16: float


FULL = {"ns_dtype": "float32"}
COMPILED, STEP_BY_STEP = {"compile": "always"}, {"compile": "never"}
# float32: rounding, which Newton-Schulz amplifies, in Gram form twice; MoFO: coordinates beside the threshold that one
# device takes and the other does not. bfloat16: a parameter that is rounded the other way, by chance where stochastic;
# in Newton-Schulz itself up to 0.05, see orthogonalizer.py
CASES: dict[str, Case] = {
    "AdamW": Case(AdamW, {"weight_decay": 0.1}, {}, 1e-4, 1e-2),
    "AdamW, stochastic": Case(AdamW, {"low_precision": "stochastic"}, {}, 1e-4, 5e-2),
    "SGD": Case(SGD, {"momentum": 0.9}, {}, 1e-4, 1e-2),
    "MoFO sampled": Case(MoFO, {"selection": "sampled"}, {}, 1e-2, 3e-2),
    "MoFO sampled, compiled": Case(MoFO, {"selection": "sampled", **COMPILED}, STEP_BY_STEP, 1e-2, 3e-2),
    "MoFO exact": Case(MoFO, {"selection": "exact"}, {}, 1e-2, 3e-2),
    "MoFO exact, compiled": Case(MoFO, {"selection": "exact", **COMPILED}, STEP_BY_STEP, 1e-2, 3e-2),
    "MoFO random, compiled": Case(MoFO, {"filter": "random", **COMPILED}, STEP_BY_STEP, 1e-2, 3e-2),
}
MUON_CASES: dict[str, Case] = {
    "Muon, auto": Case(Muon, {}, FULL, 0.1, 0.1),
    "Muon, direct float32": Case(Muon, {"ns_form": "direct", **FULL}, {}, 2e-3, 1e-2),
    "Muon, Gram float32": Case(Muon, {"ns_form": "gram", **FULL}, {}, 1e-2, 2e-2),
    "Muon, every option": Case(
        Muon,
        {"normuon": True, "cautious_decay": True, "weight_decay": 0.1, "momentum_warmup_steps": 2, **FULL},
        {},
        1e-2,
        2e-2,
    ),
    "FilteredMuon": Case(FilteredMuon, FULL, {}, 2e-2, 3e-2),
}


def agreement(place: Place) -> Iterator[Row]:
    """AdamW, SGD and MoFO against the CPU."""
    yield from _agreement(CASES, place)


def agreement_of_muon(place: Place) -> Iterator[Row]:
    """Muon and what is made of it against the CPU, uncompiled on the CPU and in float32."""
    yield from _agreement(MUON_CASES, place)


def _agreement(cases: dict[str, Case], place: Place) -> Iterator[Row]:
    for name, case in cases.items():
        for dtype, limit in ((torch.float32, case.float32), (torch.bfloat16, case.bfloat16)):
            label = f"{name}, {str(dtype).removeprefix('torch.')} parameters"
            need = 1 if place.tiny else 10
            yield or_skip(place, need, {"optimizer": label}, _apart, case, dtype, limit, label, place)


def _apart(case: Case, dtype: torch.dtype, limit: float, label: str, place: Place) -> Row:
    began = time.monotonic()
    options = case.options
    if place.device == "cpu":  # a rehearsal compiles nothing
        options = {key: value for key, value in options.items() if key != "compile"}
    start = [parameter.data for parameter in small_model(dtype, place.tiny).parameters()]
    found, shares = after_steps(case.kind, options, dtype, place.device, place.tiny)
    expected, expected_shares = after_steps(case.kind, options | case.on_cpu, dtype, "cpu", place.tiny)
    changed = torch.cat([(a.double() - b.double()).flatten() for a, b in zip(expected, start, strict=True)]).norm()
    apart = torch.cat([(a.double() - b.double()).flatten() for a, b in zip(found, expected, strict=True)]).norm()
    row = bar(f"apart from the CPU, relative, {label}", float(apart / changed), limit)
    if shares:
        row["share selected"], row["on the CPU"] = shares, expected_shares
    return {**row, "s": time.monotonic() - began}


def small_model(dtype: torch.dtype, tiny: bool) -> nn.Module:
    """On the CPU; with blocks that are longer than a sample of MoFO's, unless it is tiny."""
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 64 if tiny else 256, "n_head": 4, "block_size": 32, "padded_vocab_size": 512}
    config = model_config("pythia-14m", None, sizes, None)
    model = GPT(config)
    init_weights(model, config)
    return model.to(dtype)


def after_steps(
    kind: type[GroupOptimizer], options: dict[str, Any], dtype: torch.dtype, device: str, tiny: bool
) -> tuple[list[Tensor], float]:
    """Parameters on the CPU after three steps with the same gradients on every device, and MoFO's share of hidden ones.

    Before the last step the state goes through a dict and back, as through a checkpoint.
    """
    model = small_model(dtype, tiny).to(device)
    optimizer = kind(parameter_groups(model), **{"lr": 0.01, **options})
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device, dtype)
        optimizer.step()
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
    share = optimizer.last_selected()["hidden"] if isinstance(optimizer, MoFO) else 0.0
    return [parameter.detach().cpu() for parameter in model.parameters()], share


# -------------------- what a step costs


class Together:
    """torch.optim.Muon for the hidden matrices and torch's fused AdamW for the rest, as ``Muon`` moves both."""

    def __init__(self, model: nn.Module) -> None:
        hidden = shapes.hidden_matrices(model)
        among = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in among]
        self.optimizers = [
            torch.optim.Muon(hidden, lr=1e-3, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, fused=True),
        ]

    def step(self) -> None:
        """Both."""
        for optimizer in self.optimizers:
            optimizer.step()


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "torch AdamW, fused": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True),
    "AdamW": lambda model: AdamW(parameter_groups(model), lr=1e-4),
    "MoFO sampled": lambda model: MoFO(parameter_groups(model), lr=1e-4, selection="sampled"),
    "MoFO exact": lambda model: MoFO(parameter_groups(model), lr=1e-4, selection="exact"),
    "torch Muon and AdamW": Together,
    "Muon": lambda model: Muon(parameter_groups(model), lr=1e-4),
    "Muon, QKV fused": lambda model: Muon(parameter_groups(model, qkv="fused"), lr=1e-4),
}
# name, of which, at most so many times its time, or at least so many times as fast
BARS = [
    ("AdamW", "torch AdamW, fused", 1.05, False),
    ("MoFO sampled", "torch AdamW, fused", 1.3, False),
    ("MoFO exact", "torch AdamW, fused", 3.0, False),
    ("Muon", "torch Muon and AdamW", 2.0, True),
    ("Muon, QKV fused", "torch Muon and AdamW", 2.0, True),
]


def steps(place: Place) -> Iterator[Row]:
    """Milliseconds and memory of a step of every optimizer, on GPT-2 small and on a model of 1B, beside torch's."""
    speed = copy_bytes_per_second(place.device, 2**20 if place.tiny else 2**31)
    release(place.device)
    for size, make in (("GPT-2 small", _gpt2), ("1B", _llama)):
        model = make(place)
        elements = sum(parameter.numel() for parameter in model.parameters())
        # AdamW reads parameter, gradient and two means and writes three of them, in float32
        yield {"model": size, "optimizer": "AdamW, floor by memory", "ms": 1e3 * 28 * elements / speed}
        times: dict[str, float] = {}
        for name, build in WAYS.items():
            if size == "1B" and "fused" in name and "Muon" in name:
                continue  # two more shapes to compile, which GPT-2 small has shown
            labels = {"model": size, "optimizer": name}
            need = 1 if place.tiny else 8
            row = or_skip(place, need, labels, _cost, model, build, place)
            times[name] = row.get("ms", math.nan)
            yield row
        for name, other, limit, at_least in BARS:
            if name not in times:
                continue
            ratio = times[other] / times[name] if at_least else times[name] / times[other]
            title = f"{other} / {name}, {size}" if at_least else f"{name} / {other}, {size}"
            yield bar(title, ratio, limit, at_least=at_least)
        if size == "GPT-2 small":
            half = shapes.with_gradients(model.bfloat16())
            for parameter in half.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
            for name in ("AdamW", "Muon"):
                labels = {"model": f"{size}, bfloat16 with masters", "optimizer": name}
                yield attempt(labels, _cost, half, WAYS[name], place)
            del half, parameter
        del model
        release(place.device)


def _cost(model: nn.Module, build: Callable[[nn.Module], Any], place: Place) -> Row:
    """Of a step, whose state and programs have been made; memory beyond parameters and gradients."""
    release(place.device)
    optimizer = build(model)
    try:
        began = time.monotonic()
        optimizer.step()
        if place.device == "cuda":
            torch.cuda.synchronize()
        first = time.monotonic() - began
        ms = medians({"step": optimizer.step}, place.device, rounds=2 if place.tiny else 5)["step"]
        extra = peak_bytes(optimizer.step, place.device)
        return {"ms": ms, "state MB": state_bytes(optimizer) / 1e6, "extra MB": extra / 1e6, "first step s": first}
    finally:
        del optimizer


def state_bytes(optimizer: Any) -> int:
    """Of the tensors that an optimizer keeps from step to step."""
    every = getattr(optimizer, "optimizers", [optimizer])
    states = [state for one in every for state in one.state.values()]
    return sum(t.numel() * t.element_size() for state in states for t in state.values() if isinstance(t, Tensor))


def _gpt2(place: Place) -> nn.Module:
    return _tiny(place.device) if place.tiny else shapes.gpt2(12, place.device)


def _llama(place: Place) -> nn.Module:
    if place.tiny:
        return _tiny(place.device)
    config = Config(n_layer=16, **{**shapes.LLAMA_1B, **SEQUENTIAL, "padded_vocab_size": VOCABULARY})
    with torch.device("meta"):
        model = GPT(config)
    return shapes.with_gradients(model.to_empty(device=place.device))


def _tiny(device: str) -> nn.Module:
    with torch.device(device):
        return shapes.with_gradients(GPT(Config(**{**shapes.LLAMA_1B, **SEQUENTIAL, **TINY})))
