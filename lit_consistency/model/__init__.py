"""The LitGPT model: configuration, masks of documents, loss, folders on disk, provenance, export, interpolation."""

from lit_consistency.model.checkpoint import (
    check_checkpoint_dir,
    copy_tokenizer,
    load_weights,
    save_model,
    weights_hash,
)
from lit_consistency.model.configuration import model_config, padding_multiple
from lit_consistency.model.export import export_hf
from lit_consistency.model.folder import check_free, new_folder
from lit_consistency.model.gpt import GPT, DocumentMask, check_documents, document_mask
from lit_consistency.model.initialization import init_weights
from lit_consistency.model.interpolation import export_interpolated
from lit_consistency.model.loss import IGNORE, token_nll
from lit_consistency.model.provenance import Provenance, current_versions, read_provenance

__all__ = [
    "GPT",
    "IGNORE",
    "DocumentMask",
    "Provenance",
    "check_checkpoint_dir",
    "check_documents",
    "check_free",
    "copy_tokenizer",
    "current_versions",
    "document_mask",
    "export_hf",
    "export_interpolated",
    "init_weights",
    "load_weights",
    "model_config",
    "new_folder",
    "padding_multiple",
    "read_provenance",
    "save_model",
    "token_nll",
    "weights_hash",
]
