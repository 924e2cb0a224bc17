"""Generation without a cache: the whole text is read again for every token, one prompt at a time."""

import torch

from lit_consistency.inference.generate import Generation


def greedy(model, prompt, max_new_tokens, tokenizer, stop=()):
    tokens = [int(token) for token in prompt]
    new = []
    for _ in range(max_new_tokens):
        if len(tokens) == model.max_seq_length:
            break
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1]
        best = max(range(len(logits)), key=lambda i: (float(logits[i]), -i))
        if best == tokenizer.eos_id:
            return Generation(tokenizer.decode(torch.tensor(new)) if new else "", new, "eos")
        tokens.append(best)
        new.append(best)
        text = tokenizer.decode(torch.tensor(new))
        ends = [text.index(s) for s in stop if s in text]
        if ends:
            return Generation(text[: min(ends)], new, "stop")
    return Generation(tokenizer.decode(torch.tensor(new)) if new else "", new, "length")
