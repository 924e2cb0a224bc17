"""The dial: a model whose interpolation is known, chosen by what it learned and forgot.

The base's head is zero, so it gives every token the probability 1 / V; on the way to a model that differs from it in
the head alone, the logits at alpha are alpha times those of the end.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lit_consistency.cli import export
from lit_consistency.cli.dial import _without_own_samples
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation import dial
from lit_consistency.inference.load import load_model
from lit_consistency.model import load_weights, model_config, save_model, weights_hash
from lit_consistency.records.provenance import Provenance
from tests.tasks.tiny import tiny_model, write_task

# some numbers stand in more new texts than others, one in none: texts of a set change by different amounts
NEW = [f"red things are here {i}" for i in (0, 1, 2, 3, 4, 4)]
OLD = [f"she ran to the tree {i}" for i in range(6)]
HEAD = "lm_head.weight"


class Way:
    """A base with a head of zeros, and the model whose head has learned the new texts; what lies between by hand."""

    def __init__(self, root: Path) -> None:
        self.root, self.base, self.tuned = root, root / "base", root / "run" / "model"
        made = tiny_model(root / "made")
        self.tokenizer, weights = Tokenizer(made), load_weights(made)
        loaded = load_model(made, "cpu")
        self.hidden: list[tuple[torch.Tensor, torch.Tensor]] = []
        keep: list[torch.Tensor] = []
        hook = loaded.model.lm_head.register_forward_pre_hook(lambda module, inputs: keep.append(inputs[0][0]))
        for text in [*NEW, *OLD]:
            tokens = torch.from_numpy(np.asarray(self.tokenizer.encode(text), dtype=np.int64))
            opening = torch.tensor([self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id])
            loaded.model(torch.cat([opening, tokens])[None, :-1])
            self.hidden.append((keep.pop(), tokens))
        hook.remove()
        head = torch.zeros_like(weights[HEAD]).requires_grad_(True)
        optimizer = torch.optim.Adam([head], lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            losses = [torch.nn.functional.cross_entropy(x @ head.T, y) for x, y in self.hidden[: len(NEW)]]
            torch.stack(losses).sum().backward()
            optimizer.step()
        self.head = head.detach()
        config = model_config(None, made, {}, None)
        stage: dict[str, Any] = {"model": "pythia-14m", "optimizer": "AdamW", "method": "full", "stage": "pretrain"}
        first = Provenance(**stage)
        save_model(self.base, {**weights, HEAD: torch.zeros_like(self.head)}, config, made, first)
        later = first.next_stage(**stage, base=str(self.base), base_hash=weights_hash(self.base))
        for folder, share in ((self.tuned, 1.0), (self.step(10), 0.3), (self.step(20), 0.6)):
            save_model(folder, {**weights, HEAD: share * self.head}, config, made, later)
        self.tasks = {
            name: write_task(root / f"{name}.yaml", kind="text", text="{p}", metrics=["nats_per_token"], data=rows)
            for name, rows in (("new", [{"p": text} for text in NEW]), ("old", [{"p": text} for text in OLD]))
        }

    def step(self, number: int) -> Path:
        return self.root / "run" / "series" / f"step-{number:08d}"

    def nats(self, alpha: float, texts: slice) -> float:
        """Nats per token of the texts at alpha, summed over their tokens."""
        sums = [
            torch.nn.functional.cross_entropy(alpha * (x @ self.head.T), y, reduction="sum")
            for x, y in self.hidden[texts]
        ]
        return float(sum(sums)) / sum(len(y) for _, y in self.hidden[texts])

    def learned(self, alpha: float) -> float:
        return math.log(len(self.head)) - self.nats(alpha, slice(0, len(NEW)))

    def forgotten(self, alpha: float) -> float:
        return self.nats(alpha, slice(len(NEW), None)) - math.log(len(self.head))

    def export(self, *args: object, asked: bool = True) -> None:
        names = ["--learn", self.tasks["new"], "--retain", self.tasks["old"]] if asked else []
        export.main([str(arg) for arg in ("--checkpoint_dir", self.tuned, "--to", "litgpt", *names, *args)])


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return Way(tmp_path_factory.mktemp("way"))


def rows(folder: Path, name: str) -> dict[float, dict[str, str]]:
    with open(folder / "dial.csv", encoding="utf-8", newline="") as file:
        return {float(row.get("alpha") or row["step"]): row for row in csv.DictReader(file) if row["set"] == name}


def test_the_most_learned_within_the_budget_is_written(
    way: Way, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "out", tmp_path / "out-dial"
    forgotten = {alpha: way.forgotten(alpha) for alpha in dial.ALPHAS}
    between = (forgotten[0.4] + forgotten[0.6]) / 2
    way.export("--with", way.base, "--interpolate", "auto", "--budget", f"old<={between}", "--out_dir", out)
    for name, expected in (("new", way.learned), ("old", way.forgotten)):
        found = rows(measured, name)
        assert list(found) == list(dial.ALPHAS)
        for alpha, row in found.items():
            assert float(row["base"]) == pytest.approx(math.log(len(way.head)), abs=1e-5)
            assert float(row["change"]) == pytest.approx(expected(alpha), abs=1e-4)
            assert float(row["low"]) < float(row["change"]) < float(row["high"])
    assert [row["verdict"] for row in rows(measured, "old").values()] == ["kept", "kept", *["breached"] * 3]
    assert json.loads((measured / "dial.json").read_text())["best"] == "0.4"
    written, base = load_weights(out), load_weights(way.base)
    assert torch.equal(written[HEAD], torch.lerp(base[HEAD], load_weights(way.tuned)[HEAD], 0.4))
    assert "0.4 <" in capsys.readouterr().out
    picture = (measured / "dial.svg").read_text()
    assert all(f">{alpha:g}</text>" in picture for alpha in dial.ALPHAS)
    # another budget, of what has been measured
    monkeypatch.setattr(dial, "model_of", lambda *args: pytest.fail("measured again"))
    wide = ("--with", way.base, "--interpolate", "auto", "--budget", "forget/old<=100, new>=0.01", "--out_dir", out)
    way.export(*wide, "--overwrite")
    assert torch.equal(load_weights(out)[HEAD], load_weights(way.tuned)[HEAD])
    # where none keeps to it, the model that stands there stays
    with pytest.raises(SystemExit) as stop:
        way.export("--with", way.base, "--interpolate", "auto", "--budget", "new>=100", "--out_dir", out, "--overwrite")
    assert stop.value.code == 3
    assert "no alpha keeps to the budget, nothing is written; the nearest is" in capsys.readouterr().err
    assert torch.equal(load_weights(out)[HEAD], load_weights(way.tuned)[HEAD])


def test_what_the_run_watched_is_asked_and_its_steps_are_chosen_from(way: Way, tmp_path: Path) -> None:
    run = way.root / "run"
    watched = {kind: {name: {"task": str(way.tasks[name])}} for kind, name in (("learn", "new"), ("retain", "old"))}
    (run / "config.yaml").write_text(yaml.safe_dump({"forgetting": watched, "world": None, "data": None}))
    record = {"base": str(way.base), "base_hash": weights_hash(way.base), "steps": 40, "status": "finished"}
    (run / "run.json").write_text(json.dumps(record))
    bound = (way.forgotten(0.6) + way.forgotten(1.0)) / 2
    of_run = ["--checkpoint_dir", str(run), "--steps", "auto", "--budget", f"old<={bound}", "--to", "litgpt"]
    export.main([*of_run, "--out_dir", str(tmp_path / "out"), "--dial_dir", str(tmp_path / "dial")])
    found = rows(tmp_path / "dial", "old")
    assert list(found) == [10, 20, 40]
    assert [float(row["change"]) for row in found.values()] == pytest.approx(
        [way.forgotten(share) for share in (0.3, 0.6, 1.0)], abs=1e-4
    )
    assert torch.equal(load_weights(tmp_path / "out")[HEAD], load_weights(way.step(20))[HEAD])
    # of the way from its base, which the run knows
    way.export("--interpolate", "0.5", "1", "--budget", "old<=100", "--out_dir", tmp_path / "between", asked=False)
    assert list(rows(tmp_path / "between-dial", "new")) == [0.5, 1]


WRONG: dict[str, tuple[list[str], str]] = {
    "no budget": (["--interpolate", "auto", "--with", "{base}"], "interpolate = auto: expected --budget too"),
    "no way": (["--budget", "old<=1"], "expected either --interpolate auto or --steps auto"),
    "no such set": (
        ["--interpolate", "auto", "--budget", "odl<=1", "--with", "{base}"],
        "odl<=1: at most so much worse",
    ),
    "a bound from above on learning": (
        ["--interpolate", "auto", "--budget", "new<=1", "--with", "{base}"],
        "new<=1: at most so much worse: a retained set is bounded; expected one of old",
    ),
    "no number": (["--interpolate", "auto", "--budget", "old<=little", "--with", "{base}"], "'little' of old"),
    "no such set to be learned": (
        ["--interpolate", "auto", "--budget", "old<=1", "--with", "{base}", "--most", "old"],
        "most = 'old': expected one of new",
    ),
    "no numbers": (["--interpolate", "half", "--with", "{base}"], "interpolate = half: expected numbers"),
    "the base": (["--interpolate", "0", "--budget", "old<=1", "--with", "{base}"], "interpolate = 0: expected 0 <"),
    "no run": (["--steps", "auto", "--budget", "old<=1", "--with", "{base}"], "expected the folder of a run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_measures_nothing(
    case: str, way: Way, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "model_of", lambda *args: pytest.fail("measured"))
    args, expected = WRONG[case]
    given = [arg.format(base=way.base) for arg in args]
    with pytest.raises(SystemExit) as stop:
        way.export(*given, "--out_dir", tmp_path / "out", asked="--budget" in args)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_the_suite_a_run_has_watched_what_can_be_asked_of_any_model(capsys: pytest.CaptureFixture[str]) -> None:
    judged = {"learn/validation": {}, "retain/prose": {}, "retain/suite_pairs": {}, "retain/own_samples": {}}
    assert _without_own_samples(None, judged) == {
        "prose": {"task": "suite/prose"},
        "suite_pairs": {"task": "suite/pairs"},
    }
    assert "own_samples: not asked here" in capsys.readouterr().err
    named = {"old": {"task": "biographies/old_people"}, "texts": {"task": "suite/own_samples"}}
    assert list(_without_own_samples(named, {})) == ["old"]
    assert _without_own_samples({}, judged) == {}
