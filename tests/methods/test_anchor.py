"""The anchor is KL(base || model) of the coarser distributions, whatever the split; with strength 0 it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_consistency.cli.fit import build
from lit_consistency.data import OwnSamples, PretrainData
from lit_consistency.data.loading.collate import model_inputs, supervised_tokens
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.distributed.dtensors import KeptShards, full_tensor
from lit_consistency.distributed.fsdp import shard
from lit_consistency.methods import Full, KLAnchor, LoRA
from lit_consistency.methods.anchor import AnchorTexts, Place, TopK, divergence, top_k
from lit_consistency.model import TokenNLL, linear_loss
from lit_consistency.module import LitLanguageModel
from tests.cli.test_resume import Stop, lines
from tests.methods.small import small_model
from tests.reference.anchor import coarse_kl
from tests.runs import ROOT, arguments, equal, finish, finished, fit, largest_difference, start, weights

BASE = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"
LENGTHS = (9, 2, 5, 13, 4)


def logits_pair(n: int = 6, n_vocab: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base, model = (3 * torch.randn(n, n_vocab, dtype=torch.float64, generator=generator) for _ in range(2))
    return base, model.requires_grad_()


@pytest.mark.parametrize("k", [1, 5, 19])
def test_value_and_gradient_are_those_of_the_definition(k: int) -> None:
    base, model = logits_pair()
    found, expected = divergence(top_k(base, k), model), coarse_kl(base, model, k)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    (gradient,), (reference,) = (torch.autograd.grad(value.sum(), model) for value in (found, expected))
    torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def test_it_is_zero_at_the_base_and_grows_with_k_to_the_full_divergence() -> None:
    base, model = logits_pair()
    p, q = base.log_softmax(-1), model.detach().log_softmax(-1)
    full = (p.exp() * (p - q)).sum(-1)
    found = torch.stack([divergence(top_k(base, k), model.detach()) for k in range(1, 20)])
    assert (found.diff(dim=0) > -1e-12).all()
    assert (found > 0).all()
    torch.testing.assert_close(found[-1], full)
    assert divergence(top_k(base, 3), base).abs().max() < 1e-14


def test_a_rest_too_small_for_one_minus_a_sum_still_pulls() -> None:
    base = torch.tensor([[30.0, 0.0, 0.0]])
    model = torch.tensor([[30.0, 5.0, 5.0]], requires_grad=True)
    divergence(top_k(base, 1), model).sum().backward()
    assert torch.isfinite(model.grad).all()
    assert model.grad[0, 1] > 0


# -------------------- along the base's own samples


def own_texts(model: nn.Module, k: int) -> AnchorTexts:
    """Five texts with what ``model`` predicts, one text at a time."""
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 64, (n + 1,), generator=generator) for n in LENGTHS]
    with torch.no_grad():
        tables = [top_k(model(text[None, :-1])[0], k) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    shard = Shard(torch.cat(texts).numpy().astype(np.uint16), None, offsets, {})
    return AnchorTexts(shard, TopK(*(torch.cat(column).numpy() for column in zip(*tables, strict=True))))


def moved(method: Any) -> nn.Module:
    """A model that has left its base."""
    model = small_model(method, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def gradient_of(model: nn.Module, shares: list[Tensor]) -> tuple[float, list[Tensor]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum(shares, torch.zeros((), dtype=torch.float64))
    return total.item(), list(torch.autograd.grad(total, trained, allow_unused=True))


@pytest.mark.parametrize("texts_per_step", [1, 4])
def test_along_own_samples_any_split_gives_the_mean_over_the_steps_tokens(texts_per_step: int) -> None:
    base, model = small_model(Full(), dtype=torch.float64), moved(Full())
    anchor = KLAnchor(texts_per_step=texts_per_step, k=5)
    own = own_texts(base, 5)
    anchor.read(own, seed=0)
    seen = set()
    for step in range(5):
        split = [gradient_of(model, [anchor.along_own(model, Place(step, i, n)) for i in range(n)]) for n in (1, 3, 8)]
        for value, gradients in split[1:]:
            assert value == pytest.approx(split[0][0], rel=1e-12)
            for a, b in zip(gradients, split[0][1], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        seen.add(round(split[0][0], 12))
    assert len(seen) > 1  # a step reads other texts than the last
    everything = KLAnchor(texts_per_step=len(LENGTHS), k=5)
    everything.read(own, seed=0)
    value = everything.along_own(model, Place(0, 0, 1)).item()
    sums = []
    for a, b in zip(own.texts.offsets, own.texts.offsets[1:], strict=False):
        tokens = torch.from_numpy(own.texts.tokens[a : b - 1].astype(np.int64))[None]
        sums.append(coarse_kl(base(tokens)[0], model(tokens)[0], 5).sum())
    assert value == pytest.approx(sum(sums).item() / sum(LENGTHS), rel=1e-9)


# -------------------- along the run's rows


def batch() -> dict[str, Any]:
    """Four rows, of which the second and the last are replayed; the third is padding, and has nothing to be learned."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 64, (4, 7), generator=generator)
    targets = torch.where(torch.rand(4, 7, generator=generator) < 0.6, tokens, -100)
    targets[2] = -100
    replayed = torch.tensor([False, True, False, True])
    count = (targets != -100).sum(-1)
    documents = torch.tensor([0, 0, 0, 1, 1, 1, 1]).expand(4, 7)
    positions = torch.tensor([0, 1, 2, 0, 1, 2, 3]).expand(4, 7)
    return {
        "tokens": tokens,
        "targets": targets,
        "documents": documents,
        "positions": positions,
        "replayed": replayed,
        "supervised": count.sum(),
        "supervised_replayed": count[replayed].sum(),
        "packed": True,
    }


def along_rows(anchor: KLAnchor, model: Any, micro: dict[str, Any]) -> Tensor:
    """As the training step has it: the base's answers first, the model's within its own call."""
    asked = anchor.ask(model, micro)
    if asked is None:
        return torch.zeros((), dtype=torch.float64)
    return model(
        micro["tokens"],
        body=lambda gpt: anchor.along_rows(gpt.document_states(**model_inputs(micro)).flatten(0, 1), gpt, asked),
    )


def step(anchor: KLAnchor, model: Any, micro: dict[str, Any], place: Place) -> Tensor:
    """The loss of a micro-batch with its anchor's share."""
    asked, (indices, targets) = anchor.ask(model, micro), supervised_tokens(micro)

    def body(gpt: Any) -> Tensor:
        states = gpt.document_states(**model_inputs(micro)).flatten(0, 1)
        loss, _ = linear_loss(states[indices], gpt, TokenNLL(targets), 1 / micro["supervised"].double())
        return loss if asked is None else loss + anchor.along_rows(states, gpt, asked)

    loss = model(micro["tokens"], body=body)
    return loss + anchor.along_own(model, place) if anchor.on == "own" else loss


def part(whole: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {key: value[rows] if isinstance(value, Tensor) and value.ndim else value for key, value in whole.items()}


@pytest.mark.parametrize("on", ["replayed", "learned"])
@pytest.mark.parametrize("k", [0, 5])
def test_along_the_rows_it_is_the_mean_over_those_that_are_asked_for(on: Any, k: int) -> None:
    base, model, whole = small_model(Full(), dtype=torch.float64), moved(Full()), batch()
    anchor = KLAnchor(on=on, k=k)
    anchor.begin(base, None)

    def shares(size: int) -> list[Tensor]:
        found = []
        for first in range(0, 4, size):
            micro = part(whole, slice(first, first + size))
            found.append(along_rows(anchor, model, micro))
        return found

    at_once, one_by_one = gradient_of(model, shares(4)), gradient_of(model, shares(1))
    assert one_by_one[0] == pytest.approx(at_once[0], rel=1e-12)
    for a, b in zip(at_once[1], one_by_one[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    asked = (whole["targets"] != -100) & (whole["replayed"] == (on == "replayed"))[:, None]
    inputs = {key: whole[key] for key in ("tokens", "positions", "documents")}
    expected = coarse_kl(base(**inputs)[asked], model(**inputs)[asked], k or 63).mean()
    assert at_once[0] == pytest.approx(expected.item(), rel=1e-9)


def test_loras_base_is_the_model_without_adapters() -> None:
    """No copy of the weights is needed."""
    method = LoRA()
    model, whole = moved(method), batch()
    copy = KLAnchor(on="learned")
    base = LoRA().build(model.config)
    base.load_state_dict({n: torch.zeros_like(t) if "lora_B" in n else t for n, t in model.state_dict().items()})
    copy.begin(base.double(), None)
    without = KLAnchor(on="learned")
    without.begin(None, lambda gpt: method.between(gpt, KeptShards({}), 0.0))
    found, expected = (along_rows(a, model, whole).item() for a in (without, copy))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0


@pytest.mark.parametrize("on", ["own", "replayed"])
def test_one_process_with_shards_equals_one_without(on: Any, tmp_path: Path) -> None:
    """FSDP2 with a second forward before the backward, and one that reads nothing and is made all the same."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    whole, places = batch(), [Place(0, 0, 2), Place(0, 1, 2)]  # of one text the second of two parts has none
    gradients = []
    for mesh in (None, dist.init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))):
        base, model = small_model(Full(), dtype=torch.float64), moved(Full())
        anchor = KLAnchor(on=on, k=5, texts_per_step=1)
        anchor.read(own_texts(base, 5), seed=0)
        for one in (base, model) if mesh is not None else ():
            shard(one, mesh, "64-true")
        anchor.begin(base, None)
        for micro, place in zip((part(whole, slice(0, 2)), part(whole, slice(2, 3))), places, strict=True):
            step(anchor, model, micro, place).backward()
        gradients.append([full_tensor(p.grad) for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -------------------- runs

OWN = '{"class_path": "lit_consistency.data.OwnSamples", "init_args": {"n_texts": 8, "max_tokens": 12}}'
REPLAY = f"""--data.init_args.replay={{"class_path": "lit_consistency.data.Replay", "init_args":
    {{"share": 0.3, "parts": {{"own": {OWN}}}}}}}"""
ANCHOR = ["--model.anchor=lit_consistency.methods.KLAnchor", f"--model.anchor.init_args.samples={OWN}"]
REPLAYED = ["--model.anchor=lit_consistency.methods.KLAnchor", "--model.anchor.init_args.on=replayed", REPLAY]
DOUBLE = "--trainer.precision=64-true"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("base")) / "model"


def logged(root: Path, tag: str) -> list[float]:
    found = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line[tag] for line in found if tag in line]


def test_a_run_is_anchored_and_its_loss_stays_the_datas(base: Path, tmp_path: Path) -> None:
    for name, options in (("none", []), ("on", ANCHOR)):
        fit(tmp_path / name, *options, base=base, data="SFTData")
    without, losses = (logged(tmp_path / name, "train/loss") for name in ("none", "on"))
    assert losses[0] == without[0]
    assert losses[-1] != without[-1]
    anchors = logged(tmp_path / "on", "train/anchor")
    assert anchors[0] == pytest.approx(0, abs=1e-6)
    assert all(value > 1e-6 for value in anchors[1:])
    assert not logged(tmp_path / "none", "train/anchor")


@pytest.mark.slow
def test_with_strength_zero_it_is_the_run_without(base: Path, tmp_path: Path) -> None:
    fit(tmp_path / "none", base=base, data="SFTData")
    fit(tmp_path / "off", *ANCHOR, "--model.anchor.init_args.strength=0", base=base, data="SFTData")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("none", "off")))
    assert not logged(tmp_path / "off", "train/anchor")


def test_replayed_own_samples_are_learned_and_anchored(base: Path, tmp_path: Path) -> None:
    """The same texts; an anchor along them, with adapters: the base is the model without."""
    cli = fit(tmp_path, *REPLAYED, "--model.method=lit_consistency.methods.LoRA", base=base, data="SFTData")
    data = cli.trainer.datamodule
    assert data.stats()["train"]["n_replayed"] > 0
    assert data.fingerprint()["replay/own"]["sha256"] == data._shards["replay/own"].meta["sha256"]["tokens.bin"]
    anchors = logged(tmp_path, "train/anchor")
    assert anchors[0] == pytest.approx(0, abs=1e-6)
    assert max(anchors) > 1e-6


def test_without_a_base_both_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.anchor without a base, .*: expected model.checkpoint_dir"):
        LitLanguageModel(lambda groups: torch.optim.SGD(groups, lr=0.1), name="pythia-14m", anchor=KLAnchor())
    with pytest.raises(ValueError, match=r"data, train: OwnSamples without a base .*; expected model.checkpoint_dir"):
        PretrainData(OwnSamples()).prepare_data()
    with pytest.raises(ValueError, match=r"OwnSamples: expected as a part of a replay, or whole"):
        PretrainData(OwnSamples(), validation_share=0.1, tokenizer_dir=BASE).prepare_data()


def test_options_that_are_not_used_are_refused() -> None:
    with pytest.raises(ValueError, match="samples with on = learned: expected on = own"):
        KLAnchor(on="learned", samples=OwnSamples())
    with pytest.raises(ValueError, match="on = 'old'"):
        KLAnchor(on="old")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.anchor.on = replayed: expected data.replay"):
        KLAnchor(on="replayed").check_data(object())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "data"), [(ANCHOR, "SFTData"), (REPLAYED, "PretrainData")], ids=["own", "replayed"]
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_any_split_gives_the_same_run(options: list[str], data: str, size: int, base: Path, tmp_path: Path) -> None:
    for name, more in (("four", []), ("other", [f"--data.init_args.micro_batch_size={size}"])):
        fit(tmp_path / name, *options, *more, DOUBLE, base=base, data=data)
    assert largest_difference(*(weights(tmp_path / name / "run" / "model") for name in ("four", "other"))) < 1e-12
    one, two = (logged(tmp_path / name, "train/anchor") for name in ("four", "other"))
    assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [ANCHOR, REPLAYED], ids=["own", "replayed"])
def test_stopped_and_resumed_equals_straight(options: list[str], base: Path, tmp_path: Path) -> None:
    for folder, stop, more in (
        ("straight", None, []),
        ("broken", Stop(at=5), []),
        ("broken", None, ["--ckpt_path=auto"]),
    ):
        given = [f"--model.checkpoint_dir={base}", *options, *more]
        cli = build(arguments(tmp_path / folder, *given, data="SFTData"))
        if stop is not None:
            cli.trainer.callbacks.insert(0, stop)
        cli.execute()
    assert equal(*(weights(tmp_path / root / "run" / "model") for root in ("straight", "broken")))
    assert lines(tmp_path / "straight") == lines(tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [ANCHOR, REPLAYED], ids=["own", "replayed"])
@pytest.mark.parametrize("method", ["Pull", "LoRA"])
def test_two_processes_equal_one(method: str, strategy: str, options: list[str], base: Path, tmp_path: Path) -> None:
    """With one text a step the second rank has none, and takes part all the same."""
    given = [f"--model.checkpoint_dir={base}", f"--model.method=lit_consistency.methods.{method}", *options, DOUBLE]
    given += ["--model.anchor.init_args.texts_per_step=1"] if options is ANCHOR else []
    process = start(tmp_path / "two", *given, devices=2, strategy=strategy, data="SFTData")
    fit(tmp_path / "one", *given[1:], base=base, data="SFTData")
    finish(process)
    assert largest_difference(*(weights(tmp_path / name / "run" / "model") for name in ("one", "two"))) < 1e-9
    one, two = (logged(tmp_path / name, "train/anchor") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-7, abs=1e-12)
