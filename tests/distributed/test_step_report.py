"""The program does not wait for the device in a step, and what is not finite changes nothing all the same.

The way of CUDA is run on the CPU: whoever would make the program wait is seen by the operators that give it a number.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.distributed import step_report
from lit_consistency.module import NonFiniteError
from lit_consistency.optimizers import SGD, AdamW, FilteredMuon, Lion, Muon, Signum, parameter_groups
from lit_consistency.optimizers.core.optimizer import GroupOptimizer
from lit_consistency.optimizers.core.skipping import skips_on_device
from tests.runs import ROOT, SCRATCH, arguments, equal, weights
from tests.simulated_cuda import Simulated, simulated_cuda, to_cuda
from tests.test_module import Poison

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item")
"""Operators that hand the program a number of the device, or a shape that depends on one."""


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_report, "DEVICES", ("cuda", "cpu"))


class Seen(TorchDispatchMode):
    """Counts operators, by name and by the function of this package that calls them, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in WAITING or func.namespace == "c10d":
            frames = (
                frame for frame, _ in traceback.walk_stack(None) if "/lit_consistency/" in frame.f_code.co_filename
            )
            code = next(frames).f_code
            self.counts[name, f"{Path(code.co_filename).stem}.{code.co_name}"] += 1
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Looks at every step from a hook of the first callback on; what a batch is asked before is asked on the CPU."""

    def __init__(self, hook: str = "on_train_batch_start") -> None:
        self.steps: list[Counter[tuple[str, str]]] = []
        setattr(self, hook, self.enter)

    def enter(self, *_: Any) -> None:
        self.mode = Seen()
        self.mode.__enter__()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.steps.append(self.mode.counts)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_no_step_makes_the_program_wait(optimizer: str, later: None, tmp_path: Path) -> None:
    """Two micro-batches a step; the last of the six steps is logged and may wait."""
    more = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=6", "--trainer.gradient_clip_val=1"]
    cli = build(arguments(tmp_path, *SCRATCH, *more, optimizer=optimizer))
    watch = Watch()
    cli.trainer.callbacks.insert(0, watch)
    cli.execute()
    assert len(watch.steps) == 12
    # both ask only what lies on a CPU: whether a factor is 1, and the norm of a matrix
    on_a_cpu = {("_local_scalar_dense", "head_loss.backward"), ("_local_scalar_dense", "orthogonalizer.newton_schulz")}
    assert all(step.keys() <= on_a_cpu for step in watch.steps[2:10]), watch.steps  # the first step makes the state
    assert watch.steps[2]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "mofo"])
def test_reading_later_changes_no_number(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, devices in (("at_once", ()), ("later", ("cpu",))):
        monkeypatch.setattr(step_report, "DEVICES", devices)
        more = ["--trainer.max_steps=5", "--trainer.log_every_n_steps=2", "--forgetting.every_n_steps=3"]
        build(arguments(tmp_path / name, *SCRATCH, *more, optimizer=optimizer)).execute()
        lines = map(json.loads, (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines())
        found.append([{k: v for k, v in line.items() if not k.startswith(("speed", "evaluation"))} for line in lines])
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("at_once", "later")))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("what", "log_every"),
    [("gradient", 5), *(pytest.param(what, n, marks=pytest.mark.slow) for what, n in (("loss", 5), ("gradient", 1)))],
)
def test_what_is_not_finite_stops_with_the_same_words_and_the_same_state(
    what: str, log_every: int, later: None, tmp_path: Path
) -> None:
    """Nothing is measured or saved behind it, though both are due behind the next one."""
    due = ["--forgetting.every_n_steps=3", "--checkpoint.every_n_steps=3"]
    cli, poison = poisoned(tmp_path, what, 2, log_every, *due)
    after = dict(cli.model.named_parameters())
    assert all(torch.equal(after[name], p) or p.isnan().any() for name, p in poison.before.items())
    states = cli.trainer.optimizers[0].state.values()
    assert all(torch.equal(s["exp_avg"], old) for s, old in zip(states, poison.state, strict=True))
    assert {float(state["step"]) for state in states} == {2}
    assert cli.trainer.global_step == 2
    record = (tmp_path / "run" / "run.json").read_text()
    assert "NonFiniteError" in record
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) <= (2 if log_every == 1 else 0)


def poisoned(root: Path, what: str, at: int, log_every: int, *extra: str) -> tuple[ConsistencyCLI, Poison]:
    cli = build(arguments(root, *SCRATCH, f"--trainer.log_every_n_steps={log_every}", *extra))
    poison = Poison(what, at=at)
    cli.trainer.callbacks.insert(0, poison)
    with pytest.raises(NonFiniteError, match=f"step {at}: .*stopped before the optimizer moved"):
        cli.execute()
    return cli, poison


@pytest.mark.slow
def test_the_last_step_is_read_before_it_counts(later: None, tmp_path: Path) -> None:
    cli, _ = poisoned(tmp_path, "gradient", 3, 10)
    assert cli.trainer.global_step == 3
    assert not (tmp_path / "run" / "model").exists()


OPTIMIZERS: dict[str, tuple[type[GroupOptimizer], dict]] = {
    "adamw": (AdamW, {"weight_decay": 0.1}),
    "adamw, stochastic": (AdamW, {"low_precision": "stochastic"}),
    "sgd": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "lion": (Lion, {"weight_decay": 0.1}),
    "signum": (Signum, {"weight_decay": 0.1}),
    "muon": (Muon, {"weight_decay": 0.1, "cautious_decay": True, "normuon": True}),
    "muon, no nesterov": (Muon, {"weight_decay": 0.1, "nesterov": False}),
    "filtered muon": (FilteredMuon, {"weight_decay": 0.1}),
}


def small() -> nn.Module:
    from lit_consistency.model import GPT, model_config

    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 8, "padded_vocab_size": 32}
    return GPT(model_config("pythia-14m", None, sizes, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_no_bit_and_the_next_is_as_if_it_had_not_been(name: str, dtype: torch.dtype) -> None:
    kind, options = OPTIMIZERS[name]
    ends = []
    for gradients in ([1.0, 2.0], [1.0, math.nan, 2.0]):
        net = small().to(dtype)
        optimizer = kind(parameter_groups(net), lr=0.01, **options)
        assert skips_on_device(optimizer)
        for i, scale in enumerate(gradients):
            torch.manual_seed(0)
            for parameter in net.parameters():
                parameter.grad = scale * torch.randn(parameter.shape).to(dtype)
            optimizer.found_inf = torch.tensor(float(math.isnan(scale)))
            before = [*snapshot(net, optimizer)]
            optimizer.step()
            same = [torch.equal(a, b) for a, b in zip(before, snapshot(net, optimizer), strict=False)]
            assert all(same) == math.isnan(scale), i
            if math.isnan(scale):  # as the stop does
                for group in optimizer.param_groups:
                    group |= {key: group[key] - 1 for key in step_report.PROGRESS if group.get(key)}
        ends.append(snapshot(net, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def snapshot(net: nn.Module, optimizer: GroupOptimizer) -> list[Tensor]:
    tensors = [p.detach() for p in net.parameters()]
    tensors += [v for p in net.parameters() for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    return [tensor.clone() for tensor in tensors]


def test_who_does_not_skip_by_itself_is_read_at_once() -> None:
    net = small()
    assert not skips_on_device(torch.optim.AdamW(net.parameters()))
    assert skips_on_device(torch.optim.AdamW(net.parameters(), fused=True))
    adapters = [("layer.lora_A", nn.Parameter(torch.ones(2, 4))), ("layer.lora_B", nn.Parameter(torch.ones(4, 2)))]
    groups = [{"params": [pair], "role": "adapter", "split": None} for pair in adapters]
    assert not skips_on_device(Muon(groups, adapters="paired"))


@pytest.mark.parametrize("scale", [1.0, math.inf])
def test_on_cuda_the_program_reads_what_it_reads_on_the_cpu(scale: float) -> None:
    found = []
    for cuda in (False, True):
        with simulated_cuda() if cuda else contextlib.nullcontext():
            net = to_cuda(small()) if cuda else small()
            for i, parameter in enumerate(net.parameters()):
                gradient = torch.full(parameter.shape, scale * i)
                parameter.grad = Simulated(gradient) if cuda else gradient
            optimizer = AdamW(parameter_groups(net))
            loss, anchor = (torch.tensor(n, dtype=torch.float64) for n in (2.5, 0.25))
            if cuda:
                loss, anchor = Simulated(loss), Simulated(anchor)
            unread = step_report.UnreadReport(7, loss, anchor, optimizer, {"one": True, "none": False}, 1)
            assert unread.not_finite().device == loss.device
            found.append((unread.read(), float(unread.not_finite())))
    assert repr(found[0]) == repr(found[1])
    report, flag = found[0]
    assert (report.step, report.loss, report.anchor, report.votes) == (7, 2.5, 0.25, {"one": 1, "none": 0})
    assert flag == float(not math.isfinite(report.grad_norm)) == float(scale == math.inf)


# -------------------- two ranks


class SignalToOne(Callback):
    """The second rank gets a signal in its fourth step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(root: Path) -> None:
    """What a rank sees of a run of two."""
    step_report.DEVICES = ("cuda", "cpu")
    more = ["--trainer.max_steps=100", "--trainer.max_epochs=100", "--trainer.log_every_n_steps=9"]
    more += ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.micro_batch_size=2"]
    cli = build(arguments(root, *SCRATCH, *more))
    # DDP's own all-reduce of the gradients is behind it by then
    watch = Watch("on_before_optimizer_step")
    watch.on_train_batch_end = lambda trainer, *rest: (  # type: ignore[method-assign]
        Watch.on_train_batch_end(watch, trainer) if (rest[-1] + 1) % 2 == 0 else None
    )
    cli.trainer.callbacks[:0] = [watch, SignalToOne()]
    cli.execute()
    result = {"step": cli.trainer.global_step, "signal": cli.trainer.interrupted_by}
    result["collectives"] = [{name: n for (name, _), n in step.items()} for step in watch.steps]
    (root / f"rank{cli.trainer.global_rank}.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_a_step_of_two_ranks_has_one_message_beside_the_gradients_and_a_signal_stops_both(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.test_step_report", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    # it comes in step 3, is told with that step's numbers, and read with those of the next
    assert (ranks[0]["step"], ranks[0]["signal"]) == (5, signal.SIGTERM)
    assert ranks[0]["collectives"][1:] == [{"allreduce_": 1}] * 4
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.ckpt").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
