"""Large corpora: CPU time of a token beside ``tokenizers`` alone, memory, and what the start of a run costs.

    LIT_CONSISTENCY_TEST_DATA=DATA python -m tests.benchmarks.corpora --check --json corpora.json

Every measurement is a process of its own, forked when all is imported: its CPU seconds, those of its children with
them, and how far its resident memory has risen. Documents are pieces of books in a file of JSON lines, rows are
Dolly's; ours is everything from the file to the shard on disk, ``tokenizers`` gets the texts as lists of 1,024. Rounds
are interleaved, medians are shown. The corpus of 100 GB is a sparse file, which is opened as in the second start of a
run; nothing of it is read. DATA holds text/books_fiction/*.txt, sft/dolly_1k/*.jsonl and tokenizers/gptneox20b.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.data.loading.order import Order
from lit_consistency.data.sources.documents import JsonLines
from lit_consistency.data.sources.rows import RowFiles
from lit_consistency.data.tokens import many_processes
from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.data.tokens.token_files import FORMAT, open_shard
from lit_consistency.data.tokens.token_rows import StreamRows
from lit_consistency.data.tokens.tokenize import write_conversations, write_documents
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.records.fingerprints import sha256, sha256_of_text, stamp
from lit_consistency.records.known_hashes import cache_folder
from lit_consistency.study.summary import processor
from tests.benchmarks.measure import Bar

PIECE = 600  # characters of a document, few: what is done once for each weighs more
GIGABYTES = 100
BLOCK = 2048


class Cost(NamedTuple):
    """Of one piece of work: CPU seconds with those of children, seconds, MiB by which memory has risen, its result."""

    cpu: float
    wall: float
    memory: float
    result: Any


def cost(work: Callable[[], Any]) -> Cost:
    """Do it in a forked process."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        before, began = resident(), time.perf_counter()
        result = work()
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu = sum(of.ru_utime + of.ru_stime for of in (own, children))
        peak = max(own.ru_maxrss, children.ru_maxrss) / 1024
        with os.fdopen(writes, "wb") as stream:
            pickle.dump(Cost(cpu, time.perf_counter() - began, peak - before, result), stream)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        content = stream.read()
    os.waitpid(child, 0)
    return pickle.loads(content)


def resident() -> float:
    """MiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def tokenizing(folder: Path, data: Path, characters: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of a million tokens: ``tokenizers``, and ours with one process and with two."""
    book = "".join(file.read_text("utf-8") for file in sorted((data / "text" / "books_fiction").glob("*.txt")))
    texts = [book[i : i + PIECE] for i in range(0, characters, PIECE)]
    corpus, longer = folder / "corpus.jsonl", folder / "longer.jsonl"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    corpus.write_text(lines, "utf-8")
    longer.write_text(lines * 4, "utf-8")
    rows = RowFiles(str(next((data / "sft" / "dolly_1k").glob("*.jsonl"))))
    tokenizer = Tokenizer(data / "tokenizers" / "gptneox20b")
    encoder = PromptEncoder(tokenizer, "default")

    def alone(name: str) -> int:
        encode = getattr(tokenizer.processor, name)
        batches = [texts[i : i + 1024] for i in range(0, len(texts), 1024)]
        return sum(len(one.ids) for batch in batches for one in encode(batch, add_special_tokens=False))

    def ours(file: Path, processes: int) -> int:
        many_processes.n_processes = lambda: processes
        return written(lambda out: write_documents(out, JsonLines(str(file)), tokenizer, "text"))

    def ours_rows(processes: int) -> int:
        many_processes.n_processes = lambda: processes
        return written(lambda out: write_conversations(out, rows, encoder, tokenizer, 512, "truncate", "rows"))

    def written(write: Callable[[Path], None]) -> int:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            write(Path(out))
            return json.loads((Path(out) / "meta.json").read_text())["n_tokens"]

    works: dict[str, Callable[[], int]] = {
        "encode_batch": lambda: alone("encode_batch"),
        "encode_batch_fast": lambda: alone("encode_batch_fast"),
        "ours, one process": lambda: ours(corpus, 1),
        "ours, two processes": lambda: ours(corpus, 2),
        "ours, two processes, four times the text": lambda: ours(longer, 2),
        "rows, one process": lambda: ours_rows(1),
        "rows, two processes": lambda: ours_rows(2),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            costs[name].append(cost(work))
    seconds = {name: statistics.median(one.cpu / one.result for one in all_of) * 1e6 for name, all_of in costs.items()}
    shares = [
        [one.cpu / one.result for one in costs[name]]
        for name in ("encode_batch", "ours, one process", "ours, two processes")
    ]
    return {
        "seconds_per_million": seconds,
        "memory": {name: statistics.median(one.memory for one in all_of) for name, all_of in costs.items()},
        "one_process": statistics.median(a / b for a, b in zip(shares[0], shares[1], strict=True)),
        "two_processes": statistics.median(a / b for a, b in zip(shares[0], shares[2], strict=True)),
    }


def opening(folder: Path) -> dict[str, Any]:
    """What the second start of a run on 100 GB of tokens costs, and on 100 GB of text; both are sparse files."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    size, n_documents = GIGABYTES * 10**9, 50_000_000
    n_tokens = size // 2
    tokens = folder / "tokens"
    tokens.mkdir()
    text = folder / "text.jsonl"
    for file in (text, tokens / "tokens.bin"):
        with open(file, "wb") as stream:
            stream.truncate(size)
    np.save(tokens / "offsets.npy", np.linspace(0, n_tokens, n_documents + 1).astype(np.int64))
    files = [tokens / "tokens.bin", tokens / "offsets.npy"]
    hashes = {"tokens.bin": "0" * 64, "offsets.npy": sha256(files[1])}
    sizes = {file.name: file.stat().st_size for file in files}
    counts = {"n_documents": n_documents, "n_tokens": n_tokens, "dtype": "uint16"}
    meta = {"format": FORMAT, "fingerprint": {}, "sizes": sizes, "sha256": hashes, **counts}
    (tokens / "meta.json").write_text(json.dumps(meta))
    for file, digest in (*((file, hashes[file.name]) for file in files), (text, "1" * 64)):
        index = cache_folder() / "hashes" / f"{sha256_of_text(str(file.parent))[:24]}.json"
        index.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(index.read_text()) if index.exists() else {}
        index.write_text(json.dumps({**known, file.name: [*stamp(file), digest]}))

    def first_batch() -> int:
        shard = open_shard(tokens, {})
        assert shard is not None
        rows = StreamRows(shard, BLOCK)
        order = Order(len(rows), 32, 32, 1, 0, seed=0)
        return sum(len(rows[i].tokens) for i in next(order.epoch(0)).rows)

    costs = {"tokens": cost(first_batch), "text": cost(lambda: len(JsonLines(str(text)).fingerprint()))}
    return {name: one._asdict() for name, one in costs.items()}


def main() -> int:
    """Measure, print, write the JSON; 1 where ``--check`` misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=6_000_000, help="of text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not (data := os.environ.get("LIT_CONSISTENCY_TEST_DATA")):
        parser.error("LIT_CONSISTENCY_TEST_DATA is not set: expected a folder with books, Dolly's rows and a tokenizer")
    os.environ |= {
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # CPU time of threads that wait is noise
    with tempfile.TemporaryDirectory() as folder:
        content = {
            "processor": processor(),
            "tokenizing": tokenizing(Path(folder), Path(data), given.characters, given.rounds),
        }
        content["opening"] = opening(Path(folder))
    print(json.dumps(content, indent=1))
    memory = content["tokenizing"]["memory"]
    bars = [
        Bar("tokenizing, one process", content["tokenizing"]["one_process"], 0.8, at_least=True),
        Bar("tokenizing, two processes", content["tokenizing"]["two_processes"], 0.8, at_least=True),
        Bar(
            "memory, four times the text",
            memory["ours, two processes, four times the text"] / memory["ours, two processes"],
            1.2,
        ),
        # most of it sorts 24 million rows into the order of the epoch
        Bar("100 GB of tokens, CPU seconds to the first batch", content["opening"]["tokens"]["cpu"], 20),
        Bar("100 GB of tokens, bytes of memory a token", content["opening"]["tokens"]["memory"] * 2**20 / 5e10, 0.05),
        Bar("100 GB of text, CPU seconds until it is known", content["opening"]["text"]["cpu"], 0.5),
    ]
    missed = [bar for bar in bars if not bar.met]
    print("\n".join(f"{'missed' if bar in missed else 'met'}: {bar.text}" for bar in bars))
    if given.json:
        given.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return int(bool(missed) and given.check)


if __name__ == "__main__":
    sys.exit(main())
