"""lm-eval's Hugging Face path on an exported model: what our scores and our speed are compared with.

``HFLM`` imports accelerate, for several processes and for spreading a model over devices. One process that is handed a
loaded model uses none of it, so the names stand in where accelerate is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

NAMES = ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size")


def hugging_face_lm(folder: Path, batch_size: int) -> Any:
    """``HFLM`` on the CPU in float32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lm_class = _hflm()
    return lm_class(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")


def _hflm() -> Any:
    name = "lm_eval.models.huggingface"
    if name in sys.modules or importlib.util.find_spec("accelerate") is not None:
        return importlib.import_module(name).HFLM
    stand_in, utils = types.ModuleType("accelerate"), types.ModuleType("accelerate.utils")
    for attribute in NAMES:
        setattr(stand_in, attribute, lambda **_: lambda function: function)
    utils.get_max_memory = None
    sys.modules |= {"accelerate": stand_in, "accelerate.utils": utils}
    try:
        return importlib.import_module(name).HFLM
    finally:
        # transformers asks whether accelerate is installed, and is to be told the truth
        del sys.modules["accelerate"], sys.modules["accelerate.utils"]
