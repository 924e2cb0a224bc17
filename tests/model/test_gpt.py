import litgpt.model
import pytest
import torch

from lit_consistency.model import GPT, check_documents, document_mask, model_config, token_nll
from tests.model.tiny_models import tiny_config, tiny_model

FAMILIES = ["pythia-14m", "Llama-3.2-1B", "Qwen3-0.6B", "OLMo-2-1124-7B", "Mixtral-8x7B-v0.1", "SmolLM2-135M"]
LENGTHS = [[7, 5, 3], [2, 9]]
T = 16


def packed_batch() -> dict[str, torch.Tensor]:
    """Two rows of 3 and of 2 documents, the rest padding; every document is its own row in ``documents_of``."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "tokens": torch.randint(1, 96, (len(LENGTHS), T), generator=generator),
        "positions": torch.zeros(len(LENGTHS), T, dtype=torch.int64),
        "documents": torch.full((len(LENGTHS), T), -1, dtype=torch.int32),
    }
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths):
            batch["positions"][row, start : start + length] = torch.arange(length)
            batch["documents"][row, start : start + length] = number
            start += length
        batch["tokens"][row, start:] = 0
    batch["targets"] = torch.randint(1, 96, (len(LENGTHS), T), generator=generator)
    batch["targets"][batch["documents"] == -1] = -100
    return batch


def documents_of(batch: dict[str, torch.Tensor]) -> list[tuple[int, slice]]:
    places = []
    for row, lengths in enumerate(LENGTHS):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        places += [(row, slice(end - length, end)) for length, end in zip(lengths, ends, strict=True)]
    return places


def packed_logits(model: GPT, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["tokens"], positions=batch["positions"], documents=batch["documents"])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_documents_it_is_litgpt_bit_for_bit(family: str) -> None:
    model = tiny_model(family)
    stock = litgpt.model.GPT(model.config)
    stock.load_state_dict(model.state_dict())
    tokens = packed_batch()["tokens"]
    assert torch.equal(model(tokens), stock(tokens))
    chunks, stock_chunks = model(tokens, lm_head_chunk_size=6), stock(tokens, lm_head_chunk_size=6)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(chunks, stock_chunks, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_equal_separate_ones(family: str) -> None:
    model, batch = tiny_model(family), packed_batch()
    logits = packed_logits(model, batch)
    token_nll(logits, batch["targets"]).sum().backward()
    packed_gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, place in documents_of(batch):
        alone = model(batch["tokens"][row : row + 1, place])
        torch.testing.assert_close(logits[row : row + 1, place], alone, rtol=1e-5, atol=1e-5)
        token_nll(alone, batch["targets"][row : row + 1, place]).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(packed_gradients[name], parameter.grad, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def test_without_a_mask_packed_documents_would_differ() -> None:
    model, batch = tiny_model("Llama-3.2-1B"), packed_batch()
    row, place = documents_of(batch)[1]
    naive = model(batch["tokens"])[row, place]
    assert (naive - packed_logits(model, batch)[row, place]).abs().max() > 0.1


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith("Mixtral")])
def test_a_changed_document_leaves_the_others_bit_equal(family: str) -> None:
    # experts compute their tokens in one product, whose rounding depends on how many there are: Mixtral is left out
    model, batch = tiny_model(family), packed_batch()
    before = packed_logits(model, batch)
    batch["tokens"][0, 7:12] = (batch["tokens"][0, 7:12] + 1) % 96
    after = packed_logits(model, batch)
    assert torch.equal(before[0, :7], after[0, :7])
    assert torch.equal(before[0, 12:], after[0, 12:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, 7:12], after[0, 7:12])


def test_positions_decide_the_rotation() -> None:
    # rotations are relative, so a shift of a document changes nothing; a stretch does, and undoes condensed positions
    stretched, plain = tiny_model("pythia-14m", rope_condense_ratio=2), tiny_model("pythia-14m")
    tokens = packed_batch()["tokens"]
    documents, positions = torch.zeros_like(tokens), torch.arange(T).expand_as(tokens)
    logits = stretched(tokens, positions=2 * positions, documents=documents)
    torch.testing.assert_close(logits, plain(tokens), rtol=1e-5, atol=1e-5)
    assert (stretched(tokens, positions=positions, documents=documents) - logits).abs().max() > 0.01


def test_final_soft_capping_and_scaled_embeddings_are_kept() -> None:
    model = tiny_model("SmolLM2-135M", final_logit_softcapping=3.0, scale_embeddings=True)
    tokens = packed_batch()["tokens"]
    positions = torch.arange(T).expand_as(tokens)
    logits = model(tokens, positions=positions, documents=torch.zeros_like(tokens))
    torch.testing.assert_close(logits, model(tokens), rtol=1e-5, atol=1e-5)
    assert logits.abs().max() < 3.0


def test_latent_attention_packs_exactly() -> None:
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    model, batch = tiny_model("SmolLM2-135M", latent_attention=latent, n_query_groups=4), packed_batch()
    check_documents(model.config)
    logits = packed_logits(model, batch)
    for row, place in documents_of(batch):
        alone = model(batch["tokens"][row : row + 1, place])
        torch.testing.assert_close(logits[row : row + 1, place], alone, rtol=1e-5, atol=1e-5)


def test_chunks_of_packed_logits_make_the_whole() -> None:
    model, batch = tiny_model("pythia-14m"), packed_batch()
    places = {"positions": batch["positions"], "documents": batch["documents"]}
    chunks = model(batch["tokens"], lm_head_chunk_size=5, **places)
    assert [chunk.shape[1] for chunk in chunks] == [5, 5, 5, 1]
    torch.testing.assert_close(torch.cat(chunks, dim=1), packed_logits(model, batch), rtol=1e-6, atol=1e-6)


def test_padding_gives_finite_logits_and_gradients() -> None:
    model, batch = tiny_model("pythia-14m"), packed_batch()
    batch["documents"][1] = -1
    batch["targets"][1] = -100
    logits = packed_logits(model, batch)
    token_nll(logits, batch["targets"]).sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_mask_is_causal_within_documents() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, -1]]))[0, 0]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert mask.int().tolist() == expected


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Gemma-2-2b", "attention_logit_softcapping"),
        ("Gemma-3-1b-it", "sliding_window_size"),
        ("Mistral-7B-v0.1", "sliding_window_size"),
    ],
)
def test_families_that_cannot_be_packed_are_refused(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {key} = .*packing: false"):
        check_documents(model_config(name, None, {}, None))


def test_rotary_frequencies_per_layer_are_refused() -> None:
    config = model_config("Gemma-3-1b-it", None, {"sliding_window_size": None}, None)
    with pytest.raises(ValueError, match="rope_indices"):
        check_documents(config)


def test_a_window_taken_away_allows_packing() -> None:
    check_documents(model_config("Mistral-7B-v0.1", None, {"sliding_window_size": None}, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_pack_exactly_are_allowed(family: str) -> None:
    check_documents(tiny_config(family))


def test_documents_need_positions_and_no_cache_and_room() -> None:
    model, batch = tiny_model("pythia-14m"), packed_batch()
    with pytest.raises(ValueError, match="positions = None"):
        model(batch["tokens"], documents=batch["documents"])
    places = {"positions": batch["positions"], "documents": batch["documents"]}
    with pytest.raises(ValueError, match="input_pos"):
        model(batch["tokens"], torch.arange(T), **places)
    model.max_seq_length = 8
    with pytest.raises(ValueError, match="expected at most block_size = 8"):
        model(batch["tokens"], **places)
