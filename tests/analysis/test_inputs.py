from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_consistency.analysis.core import inputs
from lit_consistency.analysis.core.inputs import (
    item_of_position,
    layer_inputs,
    linear_modules,
    moments,
    moments_file,
    moments_folder,
    sample_inputs,
)
from lit_consistency.analysis.core.model_files import layer_and_kind
from lit_consistency.analysis.core.subject import Subject
from tests.analysis.models import subject, write_model

FAMILIES: dict[str, dict[str, Any]] = {
    "pythia-14m": {},
    "Llama-3.2-1B": {"n_query_groups": 2, "intermediate_size": 48},  # a gated MLP: fc_1 and fc_2 read the same
}
LENGTHS = (8, 2, 5, 7, 3, 3, 1)


def write_text(folder: Path) -> str:
    """A text whose documents differ in length, so that batches are padded."""
    lines = [json.dumps({"text": " ".join("abcdefgh"[-n:])}) for n in LENGTHS]
    (folder / "uneven.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "uneven.jsonl")


def uneven(folder: Path, family: str = "pythia-14m") -> Subject:
    model = write_model(folder / "model", name=family, padded_vocab_size=512, vocab_size=512, **FAMILIES[family])
    return subject(model, texts=(write_text(folder),))


def read_by_hand(of: Subject, tokens: Tensor) -> dict[str, Tensor]:
    """What the layers of one row read, without padding or hooks before them: from what the modules before give."""
    model = of.load().model
    given: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        keep: Callable[..., None] = lambda _m, _a, out, name=name: given.__setitem__(name, out[0])  # noqa: E731
        if "norm" in name or "ln_f" in name or "mlp.fc" in name:
            handles.append(module.register_forward_hook(keep))
    # attention is taken apart at its own kernel
    for i, block in enumerate(model.transformer.h):
        attend = block.attn.scaled_dot_product_attention

        def watched(q, k, v, mask=None, attend=attend, i=i):  # type: ignore[no-untyped-def]
            given[f"attention {i}"] = attend(q, k, v, mask)
            return given[f"attention {i}"]

        block.attn.scaled_dot_product_attention = watched
    with torch.no_grad():
        model(tokens[None])
    for handle in handles:
        handle.remove()
    found = {"lm_head": given["transformer.ln_f"]}
    for i, block in enumerate(model.transformer.h):
        del block.attn.scaled_dot_product_attention
        before = f"transformer.h.{i}"
        found[f"{before}.attn.qkv"] = given[f"{before}.norm_1"]
        found[f"{before}.attn.proj"] = given[f"attention {i}"].reshape(len(tokens), -1)
        if f"{before}.mlp.fc" in given:
            found[f"{before}.mlp.fc"] = given[f"{before}.norm_2"]
            found[f"{before}.mlp.proj"] = torch.nn.functional.gelu(given[f"{before}.mlp.fc"])
        else:
            found[f"{before}.mlp.fc_1"] = found[f"{before}.mlp.fc_2"] = given[f"{before}.norm_2"]
            gate = torch.nn.functional.silu(given[f"{before}.mlp.fc_1"])
            found[f"{before}.mlp.proj"] = gate * given[f"{before}.mlp.fc_2"]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_read_what_the_modules_before_them_give(family: str, tmp_path: Path) -> None:
    """Batches of padded rows against one row at a time; the second moments are sums of outer products in a loop."""
    of = uneven(tmp_path, family)
    text = of.text()
    assert len({len(tokens) for tokens, _ in text.rows}) > 3
    expected = [read_by_hand(of, tokens) for tokens, _ in text.rows]
    n = sum(len(tokens) for tokens, _ in text.rows)
    assert set(expected[0]) == set(linear_modules(of.model))
    whole = moments(of, of.model, text)
    sampled = sample_inputs(of, of.model, text, 10**6)
    for name in linear_modules(of.model):
        rows = np.concatenate([row[name].double().numpy() for row in expected])
        torch.testing.assert_close(sampled[name], torch.tensor(rows, dtype=torch.float32), rtol=1e-4, atol=1e-5)
        by_loop = sum(np.outer(x, x) for x in rows) / n
        torch.testing.assert_close(whole[name].second, torch.tensor(by_loop), rtol=1e-4, atol=1e-6)
        assert whole[name].second.dtype == torch.float64
        torch.testing.assert_close(
            whole[name].covariance, torch.tensor(np.cov(rows.T, bias=True)), rtol=1e-3, atol=1e-5
        )
        assert whole[name].n == n == len(rows)


def test_sums_do_not_depend_on_batches_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = uneven(tmp_path)
    whole = moments(of, of.model, of.text())
    kept = {name: whole[name] for name in whole}
    forwards = []
    layers = inputs.layer_inputs

    def counted(*given: Any) -> None:
        forwards.append(given[4])
        layers(*given)

    monkeypatch.setattr(inputs, "layer_inputs", counted)
    monkeypatch.setattr(inputs, "moments_folder", lambda *_: tmp_path / "other")
    # one layer of 32 numbers takes 8 KiB, one of 128 as much as sixteen of them, which is more than there is
    again = moments(Subject(**{**of.__dict__, "batch_tokens": 8}), of.model, of.text(), memory=2 * 8 * 32**2)
    assert max(map(len, forwards)) == 2
    assert sorted(name for names in forwards for name in names) == sorted(linear_modules(of.model))
    for name in again:
        torch.testing.assert_close(again[name].second, kept[name].second, rtol=1e-5, atol=1e-6)


def test_moments_are_kept_for_weights_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = uneven(tmp_path, "Llama-3.2-1B")
    other = subject(
        write_model(tmp_path / "other", seed=1, padded_vocab_size=512, vocab_size=512), texts=tuple(of.texts)
    )
    folder = moments_folder(of, of.model, of.text())
    assert folder.is_relative_to(of.output / "second_moments")
    assert folder != moments_folder(of, other.model, of.text())
    assert folder != moments_folder(of, of.model, of.text("markov/old"))
    first, second = ("transformer.h.0.mlp.fc_1", "transformer.h.0.mlp.fc_2")
    kept = moments(of, of.model, of.text(), [second])[second].second
    assert moments_file(folder, first).is_file()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(inputs, "layer_inputs", refuse)
    assert (moments(of, of.model, of.text(), [first])[first].second == kept).all()
    with pytest.raises(AssertionError):
        moments(of, of.model, of.text(), ["transformer.h.1.mlp.fc_1"])


def test_a_sample_is_of_the_same_positions_in_every_module_and_model(tmp_path: Path) -> None:
    """The embedding of the token is the only thing that layer 0 reads: equal tokens, equal rows."""
    of = uneven(tmp_path)
    tokens = torch.cat([tokens for tokens, _ in of.text().rows])
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:20].sort().values
    name = "transformer.h.0.attn.qkv"
    sample = sample_inputs(of, of.model, of.text(), 20, [name])
    assert list(sample) == [name]
    model = of.load().model
    with torch.no_grad():
        expected = model.transformer.h[0].norm_1(model.transformer.wte(tokens[drawn]))
    torch.testing.assert_close(sample[name], expected)


def test_positions_know_their_item(tmp_path: Path) -> None:
    of = uneven(tmp_path)
    expected = [i for i, (tokens, _) in enumerate(of.text().rows) for _ in tokens]
    assert item_of_position(of.text()).tolist() == expected


def test_hooks_are_gone_and_the_share_is_one(tmp_path: Path) -> None:
    of = uneven(tmp_path)
    shares: list[float] = []
    layer_inputs(of, of.model, of.text(), lambda *_: None, advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    assert not any(module._forward_pre_hooks for module in of.load().model.modules())


def test_names() -> None:
    assert layer_and_kind("transformer.h.3.attn.qkv") == (3, "attn.qkv")
    assert layer_and_kind("lm_head") == (-1, "lm_head")


def test_what_cannot_be_asked_is_named(tmp_path: Path) -> None:
    of = uneven(tmp_path)
    with pytest.raises(ValueError, match=r"no linear layer 'transformer\.h\.9\.attn\.qkv'; expected some of"):
        layer_inputs(of, of.model, of.text(), lambda *_: None, ["transformer.h.9.attn.qkv"])
    mixture = write_model(
        tmp_path / "mixture", name="Mixtral-8x7B-v0.1", n_expert=2, n_expert_per_token=1, intermediate_size=32,
        n_query_groups=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected a model without mixture of experts"):
        linear_modules(subject(mixture).model)
