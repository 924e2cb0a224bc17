"""The LitGPT model: configuration, masks of documents, loss, initial weights, folders, export, interpolation."""

from lit_consistency.model.checkpoint import check_finite, load_weights, save_model, write_model_files, write_weights
from lit_consistency.model.configuration import model_config, padding_multiple
from lit_consistency.model.export import export_hf
from lit_consistency.model.gpt import GPT, DocumentMask, check_documents, document_mask
from lit_consistency.model.head_loss import TokenNLL, linear_loss, plain_head
from lit_consistency.model.initialization import init_weights
from lit_consistency.model.interpolation import export_interpolated
from lit_consistency.model.loss import IGNORE, token_nll
from lit_consistency.model.spans import Spans, find_spans
from lit_consistency.model.tokenizer_files import copy_tokenizer
from lit_consistency.records.model_folder import check_checkpoint_dir, weights_hash

__all__ = [
    "GPT",
    "IGNORE",
    "DocumentMask",
    "Spans",
    "TokenNLL",
    "check_checkpoint_dir",
    "check_documents",
    "copy_tokenizer",
    "document_mask",
    "export_hf",
    "export_interpolated",
    "find_spans",
    "init_weights",
    "check_finite",
    "linear_loss",
    "load_weights",
    "model_config",
    "padding_multiple",
    "plain_head",
    "save_model",
    "token_nll",
    "weights_hash",
    "write_model_files",
    "write_weights",
]
