"""What the model is trained on: sources of text and rows, tokens on disk, packing, the order of samples."""

from lit_consistency.data.choices import ChoiceSet, ClozeSet
from lit_consistency.data.hub import HubDataset, HubRows
from lit_consistency.data.loader import TokenLoader
from lit_consistency.data.pretrain_data import PretrainData
from lit_consistency.data.prompts import Example, PromptEncoder
from lit_consistency.data.replay import Replay
from lit_consistency.data.rows import Row, RowFiles, Rows
from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources import JsonLines, Parquet, Source, TextFiles
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.data.watch import RetainData, RowSet, TextSet, WatchedSet

__all__ = [
    "ChoiceSet",
    "ClozeSet",
    "Example",
    "HubDataset",
    "HubRows",
    "JsonLines",
    "Parquet",
    "PretrainData",
    "PromptEncoder",
    "Replay",
    "RetainData",
    "Row",
    "RowFiles",
    "RowSet",
    "Rows",
    "SFTData",
    "Source",
    "TextFiles",
    "TextSet",
    "TokenData",
    "TokenLoader",
    "Tokenizer",
    "WatchedSet",
    "write_tokenizer",
]
