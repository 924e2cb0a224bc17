"""``prepare``: a tokenizer of a folder of text, with which pretraining on that folder works at the first try."""

from __future__ import annotations

from pathlib import Path

import litgpt.tokenizer
import pytest

from lit_consistency.__main__ import main
from lit_consistency.cli.fit import build
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.data.tokens.train_tokenizer import train_tokenizer
from tests.data.helpers import write_jsonl
from tests.runs import ROOT

TEXT = "\n\n".join(f"Größe number {i} of the street\tis {i * i} → steps.  Then it ends." for i in range(150))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.md").write_text("# The street\n\nwords")
    write_jsonl(folder / "c.jsonl", [{"text": "the street of the steps"}])
    return folder


def test_from_a_folder_of_text_to_a_pretrained_model(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tmp_path / "tokenizer"
    main(["prepare", "--text", str(texts), "--vocab_size", "300", "--to", str(tokenizer)])
    said = capsys.readouterr().out
    assert f"{tokenizer}: 300 tokens, of 153 documents" in said
    own = Tokenizer(tokenizer)
    assert own.vocab_size == 300
    ids = own.encode(TEXT).tolist()
    assert own.decode_tokens(ids) == TEXT, "every byte is there again"
    assert len(ids) < len(TEXT.encode())
    assert litgpt.tokenizer.Tokenizer(tokenizer).encode(TEXT).tolist() == ids
    assert own.eos_id == own.token_to_id("<|endoftext|>")
    # the command that comes next, as it is printed
    (line,) = (line for line in said.splitlines() if " fit " in line)
    words = line.split()[3:]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    short = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--forgetting.kl_positions=0"]
    small = [
        "--data.init_args.global_batch_size=8",
        "--model.overrides.n_layer=1",
        "--run.name=run",
        f"--run.root={tmp_path}",
        "--run.save_model=false",
    ]
    cli = build([*words, *short, *small, f"--data.init_args.cache_dir={tmp_path / 'cache'}"])
    cli.execute()
    assert cli.trainer.global_step == 2
    stats = cli.datamodule.stats()
    assert stats["train"]["n_documents"] + stats["validation"]["n_documents"] == 153
    assert {"learn/validation", "val/loss"} <= cli.trainer.callback_metrics.keys()


def test_the_same_text_gives_the_same_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"{TEXT[i:]} {i * 7919} {chr(0x4E00 + i)}" for i in range(0, 400, 20)]
    trained = []
    for parallel in ("true", "false", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        trained.append(train_tokenizer(iter(documents), 600).to_str())
    assert trained[0] == trained[1] == trained[2]


def test_a_short_text_gives_fewer_tokens() -> None:
    assert train_tokenizer(["aaa aaa"], 1000).get_vocab_size() < 300
    with pytest.raises(ValueError, match="vocab_size = 256: expected at least 257"):
        train_tokenizer(["a"], 256)


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *map(str, options)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_mistake_is_named(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "text: expected files or folders" in refused(capsys)
    assert "to: expected the folder" in refused(capsys, "--text", texts)
    assert "path = nowhere: nothing found" in refused(capsys, "--text", "nowhere", "--to", tmp_path / "to")
    call = ("--text", texts, "--to", tmp_path / "to", "--vocab_size")
    assert "vocab_size = 3: expected at least 257" in refused(capsys, *call, 3)
    (tmp_path / "empty.txt").write_text(" \n")
    message = refused(capsys, "--text", tmp_path / "empty.txt", "--to", tmp_path / "to")
    assert "text: nothing to learn from: path = " in message
    assert not (tmp_path / "to").exists()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "tokenizer.json").touch()
    assert "holds a tokenizer" in refused(capsys, *call, 300)
    (tmp_path / "to" / "model_config.yaml").touch()
    assert "holds a model (model_config.yaml)" in refused(capsys, *call, 300, "--overwrite")
