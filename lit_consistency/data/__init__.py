"""What the model is trained on: sources of text and rows, tokens on disk, packing, the order of samples."""

from lit_consistency.data.loading.loader import TokenLoader
from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources.conversations import DetectedFormat, detected_formats
from lit_consistency.data.sources.documents import DocumentFiles, JsonLines, Parquet, Source, TextFiles
from lit_consistency.data.sources.hub import HubDataset, HubRows
from lit_consistency.data.sources.mixture import RowMixture, TextMixture
from lit_consistency.data.sources.own_samples import OwnSamples
from lit_consistency.data.sources.rows import Conversation, RowFiles, Rows
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.prompts import Example, PromptEncoder
from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer

__all__ = [
    "DetectedFormat",
    "DocumentFiles",
    "Example",
    "HubDataset",
    "HubRows",
    "OwnSamples",
    "JsonLines",
    "Parquet",
    "PretrainData",
    "PromptEncoder",
    "Replay",
    "Conversation",
    "RowFiles",
    "RowMixture",
    "Rows",
    "SFTData",
    "Source",
    "TextFiles",
    "TextMixture",
    "TokenData",
    "TokenLoader",
    "Tokenizer",
    "detected_formats",
    "write_tokenizer",
]
