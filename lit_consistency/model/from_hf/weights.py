"""The weights of a folder in transformers' format, read one at a time; nothing in it is executed.

Safetensors are preferred. Pickled files are read with ``weights_only=True`` and mapped, so that of each only what is
asked for comes into memory; files from before torch 1.6 cannot be mapped and are read a shard at a time. The names of
shards stand in an index, which is a file that came from elsewhere: a name that leads out of the folder is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_consistency.model.tensors import read_tensor

KINDS = (("model.safetensors", "model*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))
"""File and shards of each kind, the preferred one first."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class HFWeights:
    """Name -> weight, of which each call reads one.

    Args:
        folder: with ``model.safetensors`` or ``pytorch_model.bin``, or shards of one of them.

    Attributes:
        files: that hold the weights.
        file_of: name of a weight -> its file.

    Raises:
        ValueError: a file is damaged or asks to run code, or an index does not fit its files.
        FileNotFoundError: there are no weights, or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        # a shard or two stay open: query, key and value of one layer may lie in two
        self._pickled = lru_cache(maxsize=2)(self._load_pickled)
        self.file_of = self._index() or {name: file for file in self._whole() for name in self._names(file)}
        self.files = sorted(set(self.file_of.values()))

    def __getitem__(self, name: str) -> Tensor:
        """The weight, in the type of the file; ValueError where it cannot be read or is no floating-point number."""
        file = self.file_of[name]
        if file.suffix == ".safetensors":
            tensor = read_tensor(file, name)
        else:
            content = self._pickled(file)
            if name not in content:
                raise ValueError(f"{file}: no weight {name}, which its index promises")
            tensor = content[name]
        if tensor.dtype not in FLOATS and not _is_buffer(name):
            raise ValueError(f"{file}: {name} is {tensor.dtype}: expected float32, bfloat16 or float16, not quantized")
        return tensor

    def groups(self) -> Iterator[tuple[str, ...]]:
        """Names of the weights that become one of LitGPT's, in the order of the file; buffers are left out."""
        together: dict[str, list[str]] = {}
        for name in self.file_of:
            if not _is_buffer(name):
                together.setdefault(re.sub(r"\.[qkv]_proj\.(weight|bias)$", r".qkv_proj.\1", name), []).append(name)
        yield from (tuple(names) for names in together.values())

    def _index(self) -> dict[str, Path] | None:
        """Name of a weight -> its shard, where the weights lie in shards."""
        for whole, _ in KINDS:
            file = self.folder / f"{whole}.index.json"
            if (self.folder / whole).is_file() or not file.is_file():
                continue
            try:
                shards = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
                assert all(isinstance(shard, str) and Path(shard).name == shard for shard in shards.values())
            except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
                raise ValueError(
                    f"{file}: expected `weight_map`, names of weights to names of files beside it"
                ) from None
            if missing := sorted({shard for shard in shards.values() if not (self.folder / shard).is_file()}):
                raise FileNotFoundError(f"{file}: missing {', '.join(missing)}, {len(missing)} of its shards")
            return {name: self.folder / shard for name, shard in shards.items()}
        return None

    def _whole(self) -> list[Path]:
        """The files, where no index says what they hold."""
        for whole, shards in KINDS:
            if (self.folder / whole).is_file():
                return [self.folder / whole]
            if files := sorted(self.folder.glob(shards)):
                return files
        raise FileNotFoundError(
            f"{self.folder}: no weights; expected {' or '.join(whole for whole, _ in KINDS)}, or shards of one of them"
        )

    def _names(self, file: Path) -> list[str]:
        if file.suffix != ".safetensors":
            return list(self._pickled(file))
        try:
            with safe_open(file, framework="pt") as opened:
                return list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read, expected a whole file of weights ({error})") from None

    def _load_pickled(self, file: Path) -> dict[str, Tensor]:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{file}: refused, expected tensors only (weights_only); the file is damaged or asks to run code"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"{file}: cannot be read, expected a whole file of weights ({error})") from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise ValueError(f"{file}: expected a mapping of names to tensors")
        return content


def _is_buffer(name: str) -> bool:
    """What old releases store and every model computes anew: rotary frequencies, and masks of attention."""
    return bool(re.search(r"\.rotary_emb\.\w+$|\.attention\.(bias|masked_bias)$", name))
