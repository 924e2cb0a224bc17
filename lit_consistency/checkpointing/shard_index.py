"""The index of a checkpoint folder: a pickle, whose unpickler makes nothing but the classes of such an index."""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from lit_consistency.checkpointing.manifest import CheckpointError

INDEX = ".metadata"
INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
}
"""Module -> classes of plain values of which an index is made."""

# the one in C has no instruction to override; what is known of types of this one is known of that one
_Unpickler: Any = pickle._Unpickler


class _IndexUnpickler(_Unpickler):
    dispatch = dict(_Unpickler.dispatch)

    def load_build(self) -> None:
        """Set the state of a value; of a class it would change what the class does, here and everywhere."""
        if isinstance(self.stack[-2], type):
            raise pickle.UnpicklingError(f"{self.stack[-2].__name__}: an index sets values, not classes")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Only the classes of an index and plain values: it may name nothing that does something."""
        own = name in INDEX_CLASSES.get(module, ())
        expected = own or module in ("torch", "torch.serialization") or module.partition(".")[0] == "pathlib"
        # asked before: to look a name up imports its module, and importing runs code
        kind = super().find_class(module, name) if expected and "." not in name else None
        plain = module == "torch" and (kind is torch.Size or isinstance(kind, torch.dtype))
        path = module.partition(".")[0] == "pathlib" and isinstance(kind, type) and issubclass(kind, PurePath)
        # the name of a layout, as `strided`, to the layout
        if own or plain or path or (module, name) == ("torch.serialization", "_get_layout"):
            return kind
        raise pickle.UnpicklingError(f"{module}.{name}: not expected in the index of a checkpoint")


class ShardReader(FileSystemReader):
    """Reads a checkpoint folder whose index may come from anybody."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; as the parent's, but for the unpickler."""
        file = Path(self.path) / INDEX
        try:
            index = _IndexUnpickler(io.BytesIO(file.read_bytes())).load()
        except (
            OSError,
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            ImportError,
            LookupError,
            TypeError,
        ) as error:
            raise CheckpointError(f"{file}: {error}") from error
        return index
