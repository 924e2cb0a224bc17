"""Two gloo processes give every rank what one process gives, also with weights sharded over them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.inference.decoding import Decoding, Request
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.model import GPT
from tests.inference.test_generate import make_prompts, write
from tests.inference.test_kl import answers, compared, two_models
from tests.model.tiny_models import tiny_model, tiny_tokenizer

# 3 prompts for 2 ranks, one long: a rank is idle while the other goes on
OPTIONS = {"max_new_tokens": 9, "temperature": 1.0, "n_samples": 2}
# answers of the items whose divergences are taken; a single one leaves a rank idle
LENGTHS = [[5, 9, 2, 30, 4], [3]]


def shard(model: GPT) -> GPT:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def divergences(sharded: bool, lengths: list[int]) -> list[list[float]]:
    models = [shard(model) if sharded else model for model in two_models()]
    terms = compared(*models, answers(lengths))
    return [terms.forward.tolist(), terms.reverse.tolist()]


def texts(folder: Path, sharded: bool, n_prompts: int) -> list[list[list[int]]]:
    model = tiny_model("Llama-3.2-1B")
    if sharded:
        shard(model)
    found = write(model, make_prompts(n_prompts), Tokenizer(folder), 40, **OPTIONS)
    return [[sample.tokens for sample in samples] for samples in found]


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    results = {
        "texts": [texts(folder, sharded, n) for sharded in (False, True) for n in (1, 3)],
        "divergences": [divergences(sharded, lengths) for sharded in (False, True) for lengths in LENGTHS],
    }
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_in_step_an_idle_rank_forwards_as_often_as_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank is played by a collective that says: five forwards in all, whatever this one has to do."""
    forwards, agreed = [], []

    def all_reduce(flag: torch.Tensor, op: object) -> None:
        agreed.append(int(flag))
        flag.fill_(int(len(agreed) <= 5))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    model, tokenizer = tiny_model("Llama-3.2-1B"), Tokenizer(tiny_tokenizer(tmp_path))
    model.register_forward_hook(lambda *_: forwards.append(1))
    options = GenerationOptions(max_new_tokens=3)
    decoding = Decoding(model, make_prompts(1), options, tokenizer, 40, torch.device("cpu"), in_step=True)
    with torch.no_grad():
        found = decoding.run([Request(0, (0,))])
    assert len(found[0, 0][1]) == 3
    assert len(forwards) == 5
    assert agreed == [1, 1, 1, 0, 0, 0]


@pytest.mark.slow
def test_two_ranks_give_what_one_gives_plain_and_sharded(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.inference.test_generate_distributed", str(tmp_path)]
    root = Path(__file__).parents[2]
    ranks = [subprocess.Popen(command, cwd=root, env={**common, "RANK": str(rank)}) for rank in range(2)]
    try:
        one = [texts(tmp_path, False, n) for n in (1, 3)]
        terms = [divergences(False, lengths) for lengths in LENGTHS]
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for rank in range(2):
        results = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert results["texts"] == one + one
        for of_rank, of_one in zip(results["divergences"], terms + terms, strict=True):
            torch.testing.assert_close(torch.tensor(of_rank), torch.tensor(of_one), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
