"""What is watched where the user names nothing: the suite, and texts that the base writes at the start."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.callbacks import Forgetting, retained
from lit_consistency.cli.fit import ConsistencyCLI
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.load import load_model
from lit_consistency.stats.intervals import estimate, ratio
from lit_consistency.tasks import WatchedTask
from lit_consistency.tasks.suite import OWN_SAMPLES, SETS
from tests.runs import changed_on_purpose, equal, fit, weights
from tests.tasks.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:task .*(constant|truncated)", "ignore:.*was pretrained with")
MORE = ["--trainer.max_steps=4", "--model.optimizer.init_args.lr=0.02", "--checkpoint.every_n_steps=2"]


def callback(cli: ConsistencyCLI) -> Forgetting:
    return next(c for c in cli.trainer.callbacks if isinstance(c, Forgetting))


def lines(root: Path) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if "distance/all" in line]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows some chains, in a context of 32 tokens."""
    root = tmp_path_factory.mktemp("base")
    fit(root, "--trainer.max_steps=15", "--model.optimizer.init_args.lr=0.01")
    return root / "run" / "model"


@pytest.fixture(scope="module")
def watched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forgetting]:
    """A finetuning that names nothing to retain, on some sets of the suite: all of them take longer."""
    root = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retained, "SETS", ("maths", "orders", "json", OWN_SAMPLES))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cli = fit(root, "--forgetting.retain=null", *MORE, base=base, data="SFTData")
    said = " ".join(str(warning.message) for warning in caught)
    assert "the suite is watched without orders: most of its questions do not fit into the base's context" in said
    assert "the suite is watched without json: task suite_json: generation.max_new_tokens = 32: expected less" in said
    assert set(callback(cli).judges()) == {"retain/maths", "retain/own_samples"}
    return root, callback(cli)


def test_own_samples_move_by_the_divergence_of_a_plain_loop(base: Path, watched: tuple[Path, Forgetting]) -> None:
    before, after = (load_model(folder, "cpu").model for folder in (base, watched[0] / "run" / "model"))
    sums, counts = [], []
    texts = watched[1].retained.texts
    assert texts is not None
    assert len(texts) == 64
    assert len({tuple(text) for text in texts}) > 32, "draws, not one text"
    for text in texts:
        with torch.no_grad():
            p, q = (torch.log_softmax(model(torch.tensor([text[:-1]]))[0].double(), -1) for model in (before, after))
        sums.append(float(sum((p[t].exp() * (p[t] - q[t])).sum() for t in range(len(p)))))
        counts.append(float(len(p)))
    expected = estimate(ratio(sums, counts))
    first, last = lines(watched[0])[0], lines(watched[0])[-1]
    assert (first["retain/own_samples"], first["forget/own_samples"]) == (0.0, 0.0)
    assert last["forget/own_samples"] == last["retain/own_samples"] == pytest.approx(expected.value, rel=1e-4)
    assert last["forget/own_samples.stderr"] == pytest.approx(expected.stderr, rel=1e-3)
    assert expected.value > 0.01


def test_the_run_equals_one_that_watches_nothing(base: Path, watched: tuple[Path, Forgetting], tmp_path: Path) -> None:
    bare = callback(fit(tmp_path, *MORE, base=base, data="SFTData"))
    assert bare.retain == {}
    assert not any(name.startswith(("retain/", "forget/")) for name in bare.latest)
    assert equal(*(weights(root / "run" / "model") for root in (tmp_path, watched[0])))


def test_a_resumed_run_watches_the_same_texts(
    base: Path, watched: tuple[Path, Forgetting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sorted((watched[0] / "run" / "checkpoints").glob("*.ckpt"))[0]
    resume = [f"--ckpt_path={checkpoint}", "--run.final_dir", str(tmp_path / "model")]
    arguments = ["--forgetting.retain=null", *MORE, *resume, "--allow_changes=true"]
    monkeypatch.setattr(retained, "SETS", (OWN_SAMPLES,))
    resumed = callback(fit(watched[0], *arguments, base=base, data="SFTData"))
    assert resumed.retained.texts == watched[1].retained.texts
    names = [name for name in watched[1].latest if OWN_SAMPLES in name]
    assert {name: resumed.latest[name] for name in names} == pytest.approx(
        {name: watched[1].latest[name] for name in names}, rel=1e-9
    )


def test_a_run_from_scratch_has_nothing_to_forget(tmp_path: Path) -> None:
    assert callback(fit(tmp_path, "--forgetting.retain=null")).retain == {}


def test_the_suite_is_asked_with_what_the_user_adds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a tokenizer of bytes, by a model with adapters, whose base is itself at the start."""
    base = tiny_model(tmp_path / "tiny", block_size=256)
    mine = {
        "suite": {"limit": 3},
        "mine": {"task": "suite/pairs", "limit": 5},
        "facts": {"task": "suite/facts", "limit": 9},
    }
    options = [f"--forgetting.retain={json.dumps(mine)}", "--model.method=lit_consistency.methods.LoRA", *MORE]
    found = callback(fit(tmp_path, *options, base=base, data="SFTData"))
    assert set(found.retain) == {*SETS, "mine"}
    judged = found.judges()
    assert {key: entry["items"] for key, entry in judged.items()} == {
        **{f"retain/{name}": 3 for name in SETS},
        "retain/mine": 5,
        "retain/facts": 9,
    }
    assert found.base["retain/own_samples"] == 0.0
    assert found.latest["forget/own_samples"] > 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "changes that cannot be told from none are those below: prose" in printed
    assert "no better than chance, so nothing can be forgotten there: " in printed


def silent(folder: Path) -> Path:
    """The base, but that it ends every text at once."""
    base = tiny_model(folder)
    state = torch.load(base / "lit_model.pth", weights_only=True)
    state["transformer.ln_f.weight"].zero_()
    state["transformer.ln_f.bias"].fill_(1.0)
    state["lm_head.weight"].zero_()
    state["lm_head.weight"][Tokenizer(base).eos_id] = 10.0
    torch.save(state, base / "lit_model.pth")
    changed_on_purpose(base)
    return base


def test_a_base_that_writes_nothing_is_refused_or_left_out(tmp_path: Path) -> None:
    base = silent(tmp_path / "silent")
    named = ["--forgetting.retain=[suite/own_samples]", *MORE]
    with pytest.raises(
        ValueError, match=r"forgetting\.retain\.own_samples: the base writes nothing: it ends each of 64"
    ):
        fit(tmp_path / "named", *named, base=base, data="SFTData")
    assert not (tmp_path / "named" / "run" / "run.json").exists(), "before anything is written"
    watched = Forgetting()
    watched.retained.sets, watched.retained._own = {OWN_SAMPLES: WatchedTask()}, OWN_SAMPLES
    loaded = load_model(base, "cpu")
    watched.retained._tokenizer = loaded.tokenizer
    with pytest.warns(UserWarning, match="the suite is watched without own_samples: the base writes nothing"):
        watched.retained.draw(loaded.model, batch_tokens=512, device=torch.device("cpu"), block_size=128)


@pytest.mark.parametrize(
    ("retain", "message"),
    [
        ({"own": WatchedTask("suite/own_samples", shots=2)}, "forgetting.retain.own: expected no option but limit"),
        ({"x": WatchedTask("suite/grammar")}, "forgetting.retain.x: tasks: 'suite/grammar'"),
        ({"suite": WatchedTask(metric="exact")}, "forgetting.retain.prose: metrics: 'exact'"),
    ],
)
def test_what_is_wrong_with_a_set_of_the_suite_names_it(retain: dict[str, WatchedTask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forgetting(retain=retain)


def test_a_set_of_the_default_whose_name_is_taken_has_another() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forgetting = Forgetting(learn={"facts": WatchedTask("suite/facts")})
    assert list(forgetting.retained._default())[3:6] == ["pairs", "suite_facts", "arithmetic"]
