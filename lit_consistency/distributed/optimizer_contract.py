"""What a run on several devices expects of an optimizer: two processes, with gloo on the CPU, end where one does.

Each process computes its half of a batch in float64, under DDP with whole parameters and averaged gradients, under
FSDP2 with shards of both. An optimizer that needs all of a matrix and looks at its shard, draws numbers that differ
between ranks, or keeps state of another layout than its parameter's, shows here. Given up: HSDP, and more ranks.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lit_consistency.distributed.dtensors import full_tensor
from lit_consistency.distributed.fsdp import shard
from lit_consistency.model import GPT, model_config
from lit_consistency.optimizers import parameter_groups
from lit_consistency.optimizers.contract import Broken, Build, first_line

LAYOUTS = ("DDP", "FSDP2")
RANKS, STEPS, ROWS, TOKENS = 2, 4, 4, 8
# of how far the weights went: what is computed in float32 somewhere is apart by 1e-6, what is wrong by a tenth and more
TOLERANCE = 1e-3
SIZES = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 4,
    "padded_vocab_size": 48,
    "block_size": TOKENS,
    "intermediate_size": 30,
}


def small_model() -> GPT:
    """The same small model on every rank; 30 rows of the MLP and vectors of 16 leave blocks cut by the shards."""
    torch.manual_seed(0)
    return GPT(model_config("Llama-3.2-1B", None, {**SIZES, "n_query_groups": 2, "head_size": 4}, None))


def on_two_processes(build: Build, seconds: float = 600) -> dict[str, str | None]:
    """Train on one process, and in every layout on two.

    Args:
        build: can be pickled, as a class or a ``functools.partial`` of one.
        seconds: after which the processes are ended.

    Returns:
        Layout -> what is wrong, None where nothing is.
    """
    whole = _train(small_model().double(), build, slice(0, ROWS))
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(_on_rank, (folder, build, _weights(whole)), RANKS, join=False)
        end, failure = time.monotonic() + seconds, "the processes did not end"
        try:
            while time.monotonic() < end:
                if context.join(timeout=5):
                    failure = "a rank ended without a word"
                    break
        except mp.ProcessRaisedException as error:
            failure = first_line(error)
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.terminate()
        said = {layout: [Path(folder) / f"{layout}-{rank}" for rank in range(RANKS)] for layout in LAYOUTS}
        return {layout: _verdict(files, failure) for layout, files in said.items()}


def _verdict(files: list[Path], failure: str) -> str | None:
    """The first complaint of the ranks; a rank that has written nothing has failed."""
    texts = [file.read_text(encoding="utf-8") if file.is_file() else None for file in files]
    for rank, text in enumerate(texts):
        if text:
            return f"rank {rank}: {text}"
    return failure if None in texts else None


def _on_rank(rank: int, folder: str, build: Build, expected: dict[str, Tensor]) -> None:
    """Every layout on one rank; what is wrong is written into a file, and nothing where all is well."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    for layout in LAYOUTS:
        # a rank that waits for one that has failed gives up after two minutes
        store = f"file://{folder}/store-{layout}"
        dist.init_process_group("gloo", store, timedelta(seconds=120), RANKS, rank)
        try:
            LAYOUT[layout](rank, build, expected)
            complaint = ""
        except Broken as error:
            complaint = str(error)
        except Exception as error:  # the user's class may raise anything
            complaint = f"{type(error).__name__}: {first_line(error)}"
        Path(folder, f"{layout}-{rank}").write_text(complaint, encoding="utf-8")
        dist.destroy_process_group()


def _ddp(rank: int, build: Build, expected: dict[str, Tensor]) -> None:
    model = small_model().double()
    _train(DistributedDataParallel(model), build, _half(rank))
    _compare(_weights(model), expected)


def _fsdp2(rank: int, build: Build, expected: dict[str, Tensor]) -> None:
    model = small_model().double()
    shard(model, init_device_mesh("cpu", (RANKS,)), "64-true")
    _compare(_weights(_train(model, build, _half(rank), check=_check_layout)), expected)


LAYOUT: dict[str, Callable[[int, Build, dict[str, Tensor]], None]] = {"DDP": _ddp, "FSDP2": _fsdp2}


def _half(rank: int) -> slice:
    return slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)


def _train(
    model: nn.Module, build: Build, rows: slice, check: Callable[[torch.optim.Optimizer], None] | None = None
) -> nn.Module:
    """Some steps on some rows of random tokens; DDP and FSDP2 average gradients over the ranks."""
    # the names of the groups are those of the model, with or without DDP around it
    optimizer = build(parameter_groups(getattr(model, "module", model)))
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(SIZES["padded_vocab_size"], (ROWS, TOKENS + 1), generator=generator)[rows]
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if check is not None:
        check(optimizer)
    return model


def _check_layout(optimizer: torch.optim.Optimizer) -> None:
    """State lies as its parameter does, so that a checkpoint of shards can be laid out anew."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value, DTensor):
                    raise Broken(
                        f"{key} of {name} is a plain tensor {list(value.shape)} beside a sharded parameter; expected a "
                        "DTensor (torch.zeros_like(p)): a checkpoint cannot lay it out for other devices"
                    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: full_tensor(p).detach().clone() for name, p in model.named_parameters()}


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Differences in units of how far the parameter went."""
    start = _weights(small_model().double())
    for name, value in expected.items():
        far = float((value - start[name]).norm())
        apart = float((found[name] - value).norm())
        if not apart <= TOLERANCE * far:
            raise Broken(
                f"{name} ends elsewhere than on one process, {apart:.2g} apart where it went {far:.2g}; expected a "
                "step that is a function of the whole parameter and gradient, the same on every rank"
            )
