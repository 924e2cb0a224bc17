"""One bit of a file is flipped, or a disk is full: it is said which file, and no number is made of it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from lit_consistency.cli.fit import build
from lit_consistency.data.tokens.token_files import DamagedShard, ShardWriter, open_shard
from lit_consistency.model import load_weights
from lit_consistency.records.results import Result, check_items, write_result
from lit_consistency.records.run_folder import RunFolder
from tests.faults.injections import KILLS, damaged_file, flipped
from tests.model.tiny_models import tiny_checkpoint, tiny_provenance, tiny_tokenizer
from tests.runs import SCRATCH, arguments, equal, fit, weights

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600)]

Record = Callable[[str, Any], None]
EACH = "--checkpoint.every_n_steps=1"


@pytest.mark.parametrize("name", ["lit_model.pth", "lit_model.safetensors"])
def test_flipped_bits_of_weights(name: str, tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "base"
    tiny_checkpoint(folder, "pythia-14m", tiny_tokenizer(tmp_path / "tokenizer"))
    if name.endswith("safetensors"):
        save_file(load_weights(folder), folder / name)
        (folder / "lit_model.pth").unlink()
        tiny_provenance().write(folder)
    chance = random.Random(0)
    for _ in range(KILLS):
        damage = damaged_file(folder / name, flipped((folder / name).read_bytes(), chance))
        with damage, pytest.raises(ValueError, match=f"{name}: sha256"):
            load_weights(folder)
    load_weights(folder)
    record_property("fault", (f"a bit of `{name}` flipped", KILLS, "refused by its name before a weight is used"))


def test_flipped_bits_of_tokens(tmp_path: Path, record_property: Record) -> None:
    fingerprint = {"a": 1}
    with ShardWriter(tmp_path, 500, masked=True) as writer:
        for n in range(100):
            writer.add(list(range(n + 1)), [True] * (n + 1))
        writer.finish({"fingerprint": fingerprint})
    chance = random.Random(1)
    for i in range(KILLS):
        file = tmp_path / ("tokens.bin", "supervised.bin", "offsets.npy")[i % 3]
        with damaged_file(file, flipped(file.read_bytes(), chance)), pytest.raises(DamagedShard, match=file.name):
            open_shard(tmp_path, fingerprint)
    assert open_shard(tmp_path, fingerprint) is not None
    record_property("fault", ("a bit of tokens in the cache flipped", KILLS, "named, and tokenized anew"))


def test_flipped_bits_of_items(tmp_path: Path, record_property: Record) -> None:
    result = Result("rte", "choice", "default", 0, 50, {"accuracy": {"value": 0.5}}, {}, {}, [], 0, "ab")
    write_result(tmp_path, result, [{"id": str(i), "score": float(i % 2)} for i in range(50)])
    (file,) = (tmp_path / "items").iterdir()
    written = json.loads((tmp_path / "results" / "rte.default.0shot.json").read_text())
    result = Result(**written)
    chance = random.Random(2)
    for _ in range(KILLS):
        with damaged_file(file, flipped(file.read_bytes(), chance)), pytest.raises(ValueError, match=file.name):
            check_items(tmp_path, result)
    record_property("fault", ("a bit of the items of a result flipped", KILLS, "`--compare` refuses them by name"))


def test_flipped_bits_of_a_runs_folder(tmp_path: Path, record_property: Record) -> None:
    """Whatever file of a killed run it is, the resume says so, goes on from what is whole, and ends the same."""
    fit(tmp_path / "calm")
    killed = tmp_path / "killed" / "run"
    fit(tmp_path / "killed", EACH, "--run.save_model=false", "--checkpoint.keep=3")
    record = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**record, "status": "running"}))
    files = ["run.json", "metrics.jsonl", "config.yaml"]
    files += [f"checkpoints/step-00000004.ckpt{ending}" for ending in ("", ".manifest.json")]
    chance = random.Random(3)
    named = 0
    for i in range(KILLS):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(killed, tmp_path / "again" / "run")
        file = tmp_path / "again" / "run" / files[i % len(files)]
        file.write_bytes(flipped(file.read_bytes(), chance))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            build(arguments(tmp_path / "again", *SCRATCH, EACH, "--ckpt_path=auto")).execute()
        named += any(file.name in str(warning.message) for warning in said)
        assert RunFolder(tmp_path / "again" / "run").is_finished
        assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("calm", "again")))
    survived = f"all resumes end bit-equal; {named} damages named (a flipped digit of a log is no damage to see)"
    record_property("fault", ("a bit of a run's records, checkpoint or manifest flipped", KILLS, survived))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def failure(act: Callable[[], object]) -> Exception | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act()
        except (ValueError, OSError) as error:
            return error
    return None


def test_a_full_disk(small_disk: Path, tmp_path: Path, record_property: Record) -> None:
    """Found out before the first step; filled during the run, the error names path and cause, and nothing is lost."""
    filler = small_disk / "filler"
    fit(tmp_path / "calm")
    count = refused = resumed = 0
    for free in range(0, 40 * KILLS, 40):
        filler.write_bytes(bytes((2 << 20) - (free << 10)))
        final = ["--run.final_dir=" + str(small_disk / "model"), "--run.overwrite=true"]
        root = tmp_path / f"run{free}"
        error = failure(lambda root=root, final=final: fit(root, *final))
        if isinstance(error, ValueError):
            assert "run.final_dir" in str(error)
            assert "are free" in str(error)
            assert not (root / "run" / "run.json").exists()
            refused += 1
        elif error is not None:
            assert isinstance(error, OSError)
            assert error.errno == 28
            assert str(small_disk / "model") in str(error)
            filler.unlink()
            build(arguments(root, *SCRATCH, *final, "--ckpt_path=auto")).execute()
            resumed += 1
        if (small_disk / "model").exists():
            assert equal(weights(tmp_path / "calm" / "run" / "model"), weights(small_disk / "model"))
            shutil.rmtree(small_disk / "model")
        filler.unlink(missing_ok=True)
        count += 1
    survived = f"{refused} refused before the first step, {resumed} resumed from the end, the others had room"
    record_property("fault", ("a full disk at `run.final_dir`", count, survived))
