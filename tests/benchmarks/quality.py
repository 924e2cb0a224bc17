"""What Muon's speed costs in loss: nothing. Small models pretrained by it and by torch.optim.Muon, seed by seed.

The task is a Markov chain of order two, so that attention has something to learn. Both orthogonalize the same whole
matrices with the same coefficients, learning rate and scale, and leave the rest to torch's and to our AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from litgpt import GPT, Config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lit_consistency.optimizers import AdamW, Muon, parameter_groups
from tests.benchmarks.shapes import hidden_matrices

SEEDS, N_STEPS, BATCH, LENGTH, SYMBOLS = range(4), 120, 16, 32, 10
RATE, DECAY = 5e-3, 0.01
MODEL = Config(n_layer=2, n_embd=64, n_head=4, padded_vocab_size=SYMBOLS, block_size=LENGTH, bias=False)


def sequences(seed: int, n: int) -> Tensor:
    """(n, LENGTH + 1) symbols; the seed draws the sequences, the chain is always the same."""
    rows = torch.rand(SYMBOLS, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(0)).pow(12)
    generator = torch.Generator().manual_seed(seed + 1)
    symbols = [torch.randint(SYMBOLS, (n,), generator=generator) for _ in range(2)]
    for _ in range(LENGTH - 1):
        symbols.append(torch.multinomial(rows[symbols[-2], symbols[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(symbols, dim=1)


def of_torch(model: nn.Module) -> list[torch.optim.Optimizer]:
    """torch.optim.Muon for the hidden matrices, torch.optim.AdamW for the rest."""
    matrices = hidden_matrices(model)
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=RATE, weight_decay=0.0)]


def of_ours(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon with the same choices."""
    groups = parameter_groups(model, qkv="fused")
    return [Muon(groups, lr=RATE, weight_decay=DECAY, adamw_lr=RATE, ns_coefficients="quintic")]


def of_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW alone: how far another optimizer ends up."""
    return [AdamW(parameter_groups(model), lr=RATE)]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "torch.optim.Muon": of_torch,
    "Muon": of_ours,
    "AdamW": of_adamw,
}


def final_loss(make: Callable[[nn.Module], list[torch.optim.Optimizer]], seed: int, device: str) -> float:
    """Nats per token on fresh sequences after a pretraining run."""
    torch.manual_seed(seed)
    model = GPT(MODEL)
    model.apply(model._init_weights)
    model.to(device)
    optimizers = make(model)
    batches = sequences(seed, N_STEPS * BATCH).to(device).split(BATCH)
    for step, batch in enumerate(batches):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, 2 * (1 - step / N_STEPS))
        _loss(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return float(_loss(model, sequences(10_000, 256).to(device)))


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def losses(device: str, seeds: Sequence[int] = SEEDS) -> dict[str, list[float]]:
    """Final losses of each optimizer, one for each seed."""
    return {name: [final_loss(make, seed, device) for seed in seeds] for name, make in OPTIMIZERS.items()}


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds."""
    return float(torch.tensor(values, dtype=torch.float64).std())


def summary(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each optimizer."""
    return [
        {"optimizer": name, "nats per token": f"{sum(v) / len(v):.4f}", "spread over seeds": f"{spread(v):.4f}"}
        for name, v in found.items()
    ]
