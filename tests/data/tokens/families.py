"""Small tokenizers that are made as those of two families are, and therefore behave as those do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tests.data.conftest import byte_level_tokenizer


def write_folder(folder: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def llama3_like(folder: Path, **config: Any) -> Path:
    """No ``add_bos_token``, a general class, BOS in the post-processor; so LitGPT goes by the folder's name."""
    tokenizer = byte_level_tokenizer()
    bos = "<|begin_of_text|>"
    template = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B:1"}
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(**template, special_tokens=[(bos, tokenizer.token_to_id(bos))]),
        ]
    )
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "<|endoftext|>", **config}
    return write_folder(folder, tokenizer, **given)


def llama2_like(folder: Path, **config: Any) -> Path:
    """A space begins a word, also the first one, which loses it when decoded; characters not known are bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = "▁abcdefghijklmnopqrstuvwxyz():.,=+0123456789"
    words = ["▁re", "▁▁", "▁▁▁▁", "turn", "▁return", "=+", "▁x"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("r", "e"), ("▁", "re"), ("t", "u"), ("r", "n"), ("tu", "rn")]
    merges += [("▁re", "turn"), ("=", "+"), ("▁", "x")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *letters, "re", "tu", "rn", *words])}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    given = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", **config}
    return write_folder(folder, tokenizer, **given)


def metaspace(folder: Path) -> Path:
    """As ``llama2_like``, with the pre-tokenizer and decoder that sentencepiece models of later releases have."""
    tokenizer = tokenizers.Tokenizer.from_file(str(llama2_like(folder) / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return write_folder(folder, tokenizer, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>")
