"""Attention by where documents lie: torch's kernel needs a GPU, so a plain one by its documentation stands in here."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_consistency.data.loading.collate import model_inputs, seen_on_cpu
from lit_consistency.methods import LoRA
from lit_consistency.model import GPT, DocumentMask, Spans, find_spans, spans
from tests.model.test_gpt import FAMILIES, packed_batch, packed_logits
from tests.model.tiny_models import tiny_model


def plain_varlen(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_most: int, k_most: int, **options: Any
) -> Tensor:
    """(tokens, heads, size) of all sequences one after the other; a window of (-1, 0) is causal."""
    assert q_starts is k_starts
    assert q_starts.dtype == torch.int32
    assert options.pop("window_size") == (-1, 0)
    assert q_most == k_most >= int(q_starts.diff().max())
    out = torch.empty_like(q)
    for start, end in zip(q_starts[:-1], q_starts[1:], strict=True):
        parts = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        out[start:end] = scaled_dot_product_attention(*parts, is_causal=True, **options)[0].transpose(0, 1)
    return out


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_kernel", lambda: plain_varlen)
    monkeypatch.setattr("lit_consistency.model.gpt.takes_spans", lambda gpt, device: True)
    monkeypatch.setattr(spans, "ONE_BY_ONE", ())


def logits_by_spans(model: DocumentMask, batch: dict[str, Tensor]) -> Tensor:
    seen = seen_on_cpu(batch)
    return model(batch["tokens"], body=lambda gpt: gpt.lm_head(gpt.document_states(**model_inputs(seen))))


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_give_what_the_mask_gives(family: str) -> None:
    model, batch = tiny_model(family).double(), packed_batch()
    expected = packed_logits(model, batch)
    by_spans = logits_by_spans(model, batch)
    torch.testing.assert_close(by_spans, expected, rtol=1e-12, atol=1e-12)
    weight = model.transformer.h[0].attn.qkv.weight
    gradients = [torch.autograd.grad(logits.square().sum(), weight)[0] for logits in (by_spans, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_the_kernel_for_many_lengths_gives_what_the_mask_gives(family: str, kernel: None) -> None:
    model, batch = tiny_model(family).double(), packed_batch()
    expected = packed_logits(model, batch)
    torch.testing.assert_close(logits_by_spans(model, batch), expected, rtol=1e-12, atol=1e-12)


def test_adapters_attend_by_spans_too(kernel: None) -> None:
    config = tiny_model("Llama-3.2-1B").config
    model, batch = LoRA(r=2, alpha=4).build(config).double(), packed_batch()
    expected = packed_logits(model, batch)
    by_spans = logits_by_spans(model, batch)
    torch.testing.assert_close(by_spans, expected, rtol=1e-12, atol=1e-12)
    by_spans.sum().backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


def test_where_documents_lie() -> None:
    documents = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1], [-1, -1, -1, -1]])
    found = find_spans(documents)
    assert found.starts.tolist() == [0, 2, 3, 4, 5, 8, 12, 12, 12]
    assert found.starts.dtype == torch.int32
    assert found.longest == 4


def test_spans_come_in_few_sizes() -> None:
    sizes = {
        (len(found.starts), found.longest)
        for n_documents in range(1, 65)
        for found in [find_spans((torch.arange(2 * 96).view(2, 96) * n_documents // 192).int())]
    }
    assert len(sizes) == 6


def test_a_row_of_one_document_asks_for_no_spans() -> None:
    batch = packed_batch()
    assert isinstance(seen_on_cpu(batch)["spans"], Spans)
    batch["documents"].clamp_(max=0)
    assert model_inputs(seen_on_cpu(batch)).keys() == {"tokens"}


class OnGPU:
    """A model that says it lies on a GPU in half precision."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        self.device = torch.device("cuda", 0)

    def takes(self, model: GPT) -> bool:
        return spans.takes_spans(model, self.device)


def test_the_kernel_is_chosen_by_device_precision_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, model = OnGPU(monkeypatch), tiny_model("pythia-14m")
    assert not gpu.takes(model)  # float32
    assert spans.takes_spans(model, torch.device("cpu"))
    with monkeypatch.context() as mixed:  # torch switches autocast off where there is no GPU
        mixed.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        mixed.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        assert gpu.takes(model)
        assert not gpu.takes(tiny_model("Llama-3.2-1B", n_embd=48, n_head=4, n_query_groups=4, head_size=12))
    assert gpu.takes(model.bfloat16())
    assert not OnGPU(monkeypatch, (7, 5)).takes(model)
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    other = tiny_model("SmolLM2-135M", latent_attention=latent, n_query_groups=4).bfloat16()
    assert not OnGPU(monkeypatch).takes(other)
