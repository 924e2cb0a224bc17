"""Every optimizer takes the way written for CUDA and arrives where the CPU does; see ``tests/simulated_cuda.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_consistency.model import GPT, model_config
from lit_consistency.optimizers import SGD, AdamW, FilteredMuon, Lion, MoFO, Muon, parameter_groups
from lit_consistency.optimizers.core.optimizer import GroupOptimizer
from tests.simulated_cuda import Simulated, simulated_cuda, to_cuda

OPTIMIZERS: dict[str, tuple[type[GroupOptimizer], dict]] = {
    "adamw": (AdamW, {"weight_decay": 0.1}),
    "adamw, stochastic": (AdamW, {"low_precision": "stochastic"}),
    "sgd": (SGD, {"momentum": 0.9}),
    "lion": (Lion, {"weight_decay": 0.1}),
    "muon, direct": (Muon, {"ns_form": "direct", "ns_dtype": "float32"}),
    "muon, gram": (Muon, {"ns_form": "gram", "ns_dtype": "float32"}),
    "muon, every option": (
        Muon,
        {"normuon": True, "cautious_decay": True, "weight_decay": 0.1, "momentum_warmup_steps": 2}
        | {"ns_dtype": "float32"},
    ),
    "filtered muon": (FilteredMuon, {"ns_dtype": "float32"}),
    "mofo, sampled": (MoFO, {"selection": "sampled"}),
    "mofo, exact": (MoFO, {"selection": "exact"}),
    "mofo, random": (MoFO, {"filter": "random"}),
    "mofo, stochastic": (MoFO, {"low_precision": "stochastic"}),
}


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 128, "block_size": 32, "padded_vocab_size": 256}
    return GPT(model_config("pythia-14m", None, sizes, None)).to(dtype)


def after_steps(make: Callable[[list[dict]], GroupOptimizer], dtype: torch.dtype, *, cuda: bool) -> list[Tensor]:
    """Parameters after three steps; the optimizer's state has gone through a file's worth of dicts in between."""
    net = to_cuda(model(dtype)) if cuda else model(dtype)
    optimizer = make(parameter_groups(net))
    for step in range(3):
        torch.manual_seed(step)
        for parameter in net.parameters():
            grad = torch.randn(parameter.shape).to(dtype)
            parameter.grad = Simulated(grad) if cuda else grad
        if cuda and optimizer.heeds_found_inf:  # as a run on CUDA does, see distributed/step_report.py
            optimizer.found_inf = torch.zeros((), device="cuda")
        optimizer.step()
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
    found = [parameter.data for parameter in net.parameters()]
    return [values.inner if isinstance(values, Simulated) else values for values in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_written_for_cuda_does_what_the_cpu_does(name: str, dtype: torch.dtype) -> None:
    kind, options = OPTIMIZERS[name]
    start = [parameter.data for parameter in model(dtype).parameters()]
    expected = after_steps(lambda groups: kind(groups, lr=0.01, **options), dtype, cuda=False)
    with simulated_cuda():
        found = after_steps(lambda groups: kind(groups, lr=0.01, **options), dtype, cuda=True)
    assert not all(torch.equal(a, b) for a, b in zip(start, found, strict=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_muon_takes_bfloat16_on_cuda() -> None:
    with simulated_cuda():
        layer = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(64, 128, bias=False))
        named = list(to_cuda(layer).named_parameters())
        optimizer = Muon([{"params": named, "role": "hidden", "split": None}], lr=0.01)
        for _, parameter in named:
            parameter.grad = Simulated(torch.randn(parameter.shape))
        optimizer.step()
        rows = [(row["shape"], row["form"], row["dtype"]) for row in optimizer.choices]
    assert rows == [([300, 300], "direct", "bfloat16"), ([128, 64], "gram", "bfloat16")]


def test_tensors_of_two_devices_do_not_meet() -> None:
    with simulated_cuda():
        a = torch.ones(3, device="cuda")
        assert a.device.type == "cuda"
        assert (a + torch.tensor(1.0)).sum().item() == 6
        with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
            a + torch.ones(3)
