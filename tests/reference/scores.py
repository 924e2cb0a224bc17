"""Log-likelihoods the plain way: one candidate a row, all logits, one token after the other."""

from __future__ import annotations

import math

import torch
from torch import nn

from lit_consistency.data.worlds import MarkovChains
from lit_consistency.inference.items import Item


@torch.no_grad()
def plain_scores(model: nn.Module, items: list[Item]) -> list[tuple[float, int, int]]:
    """Summed nll in nats, scored tokens and first choices of every candidate."""
    scores = []
    for candidate in (c for item in items for c in item.candidates):
        tokens = torch.as_tensor(candidate.tokens)
        asked = [i for i in range(1, len(tokens)) if candidate.supervised[i]]
        nll, hits = 0.0, 0
        if asked:
            logits = model(tokens[None, :-1])[0].double()
            for i in asked:
                nll -= float(torch.log_softmax(logits[i - 1], -1)[tokens[i]])
                hits += int(logits[i - 1].argmax()) == int(tokens[i])
        scores.append((nll, len(asked), hits))
    return scores


@torch.no_grad()
def continuation(model: nn.Module, context: list[int], answer: list[int]) -> tuple[float, bool]:
    """Nats of an answer behind a context, and whether every token of it is the first choice."""
    logits = model(torch.tensor([[*context, *answer[:-1]]]))[0].double()
    nats, greedy = 0.0, True
    for i, token in enumerate(answer):
        row = logits[len(context) - 1 + i]
        nats += float(torch.logsumexp(row, 0) - row[token])
        greedy = greedy and int(row.argmax()) == token
    return nats, greedy


def document(model: nn.Module, opening: int, ids: list[int], block_size: int) -> float:
    """Nats of a document: blocks of ``block_size`` predictions; the last one is as long, and begins earlier."""
    tokens, nats, done = [opening, *ids], 0.0, 1
    while done < len(tokens):
        end = min(done + block_size, len(tokens))
        nats += continuation(model, tokens[max(end - block_size - 1, 0) : done], tokens[done:end])[0]
        done = end
    return nats


@torch.no_grad()
def chain_kl(model: nn.Module, world: MarkovChains, texts: list[str]) -> float:
    """KL(truth || model) in nats per symbol over documents of a world of chains, one symbol after the other."""
    tokenizer = world.tokenizer()
    symbols = [choice.strip() for choice in world.probes("old")[0].choices]
    ids = {symbol: tokenizer.encode(symbol).ids[0] for symbol in symbols}
    total, n = 0.0, 0
    for text in texts:
        tag, *said = text.split()
        log_q = torch.log_softmax(model(torch.tensor([tokenizer.encode(text).ids]))[0].double(), -1)
        for i in range(len(said)):
            row = world.transitions[tag][symbols.index(said[i - 1])] if i else world.stationary[tag]
            for symbol, p in zip(symbols, row.tolist(), strict=True):
                if p > 0:
                    total += p * (math.log(p) - float(log_q[i, ids[symbol]]))
            n += 1
    return total / n
