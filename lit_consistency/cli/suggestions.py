"""What was probably meant: the full key of an option, the words of other libraries for ours, the classes of a key.

Options of classes (``lr`` of an optimizer, ``path`` of rows) are no options of the parser, which learns of them from a
configuration; here they are read from the signatures of the package's own classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib import import_module

CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "model.optimizer": (
        "lit_consistency.optimizers",
        ("AdamW", "Muon", "MoFO", "SGD", "Lion", "Signum", "FilteredMuon"),
    ),
    "model.schedule": ("lit_consistency.optimizers", ("Linear", "Cosine", "WarmupStableDecay", "Constant")),
    "model.method": ("lit_consistency.methods", ("Full", "LoRA", "HFT", "Pull")),
    "data": ("lit_consistency.data", ("SFTData", "PretrainData")),
    "data.init_args.rows": ("lit_consistency.data", ("RowFiles", "HubRows", "RowMixture")),
    "data.init_args.source": (
        "lit_consistency.data",
        ("TextFiles", "JsonLines", "Parquet", "HubDataset", "TextMixture"),
    ),
    "data.init_args.replay": ("lit_consistency.data", ("Replay",)),
}
"""Key -> where its classes are, and their names, the usual ones first."""
EQUIVALENTS = {
    "model_name_or_path": "model.checkpoint_dir",
    "base_model": "model.checkpoint_dir",
    "checkpoint": "model.checkpoint_dir",
    "learning_rate": "model.optimizer.init_args.lr",
    "optim": "model.optimizer",
    "weight_decay": "model.optimizer.init_args.weight_decay",
    "lr_scheduler_type": "model.schedule",
    "lr_scheduler": "model.schedule",
    "warmup_ratio": "model.schedule.init_args.warmup",
    "warmup_steps": "model.schedule.init_args.warmup",
    "lora_r": "model.method.init_args.r",
    "lora_alpha": "model.method.init_args.alpha",
    "lora_dropout": "model.method.init_args.dropout",
    "num_train_epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "max_grad_norm": "trainer.gradient_clip_val",
    "logging_steps": "trainer.log_every_n_steps",
    "per_device_train_batch_size": "data.init_args.micro_batch_size",
    "gradient_accumulation_steps": "data.init_args.global_batch_size",
    "batch_size": "data.init_args.global_batch_size",
    "max_seq_length": "data.init_args.block_size",
    "max_length": "data.init_args.block_size",
    "sequence_len": "data.init_args.block_size",
    "sample_packing": "data.init_args.packing",
    "group_by_length": "data.init_args.group_by_length",
    "gradient_checkpointing": "model.activation_checkpointing",
    "torch_compile": "model.compile",
    "chat_template": "data.init_args.prompt_style",
    "val_set_size": "data.init_args.validation_share",
    "val_split_fraction": "data.init_args.validation_share",
    "dataset_name": "data.init_args.rows.init_args.name",
    "dataset": "data.init_args.rows.init_args.path",
    "train_file": "data.init_args.rows.init_args.path",
    "output_dir": "run.root",
    "out_dir": "run.final_dir",
    "run_name": "run.name",
    "save_steps": "checkpoint.every_n_steps",
    "save_total_limit": "checkpoint.keep",
    "resume_from_checkpoint": "ckpt_path",
    "eval_steps": "forgetting.every_n_steps",
}
"""Words of TRL, axolotl and LitGPT -> our key."""
# in this order they are tried
UNKNOWN_OPTION = re.compile(r"Unrecognized arguments: --([\w.]+)")
UNKNOWN_KEY = re.compile(r"(?:^|\n)(?:([\w.]+): )?Key '([\w.]+)' is not expected")
NO_CLASS = re.compile(r"([\w.]+): Expected a dot import path string: (\S+)")
NO_CLASS_YET = re.compile(
    r"([\w.]+): Not a valid subclass of (\w+)\. Got value: NestedArg\(key='([\w.]+)', val='?(.*?)'?\)"
)


@cache
def class_options() -> dict[str, list[str]]:
    """Last name of an option -> the full keys under which classes of the package have it, the usual class first."""
    found: dict[str, list[str]] = {}
    for key, (package, names) in CLASSES.items():
        for name in names:
            for option in _options_of(package, name):
                full = f"{key}.init_args.{option}"
                if full not in found.setdefault(option, []):
                    found[option].append(full)
    return found


def _options_of(package: str, name: str) -> Iterator[str]:
    kind = getattr(import_module(package), name, None)
    for base in kind.__mro__ if kind is not None else ():  # what a class passes on as **kwargs is its parent's
        if "__init__" in vars(base):
            for option, parameter in inspect.signature(base.__init__).parameters.items():
                if option not in ("self", "groups") and parameter.kind == parameter.POSITIONAL_OR_KEYWORD:
                    yield option


def suggestion(message: str) -> str | None:
    """A line that says what was probably meant by a call that failed with ``message``; None where nothing is near."""
    if match := UNKNOWN_OPTION.search(message):
        return _option(match[1])
    if match := UNKNOWN_KEY.search(message):
        return _key(match[1] or "", match[2])
    if (match := NO_CLASS.search(message)) and match[1] in CLASSES:
        package, names = CLASSES[match[1]]
        near = get_close_matches(match[2], names, n=1, cutoff=0.5) or [
            n for n in names if n.lower() == match[2].lower()
        ]
        chosen = near[0] if near else names[0]
        return f"expected a class, one of {', '.join(names)}, as --{match[1]} {package}.{chosen}"
    return None


def _option(name: str) -> str | None:
    """Of an option that does not exist: its full key, or the nearest."""
    if name in EQUIVALENTS:
        return f"did you mean --{EQUIVALENTS[name]}?"
    options = class_options()
    if name in options:
        return f"did you mean --{' or --'.join(options[name][:2])}?"
    last = name.rpartition(".")[2]
    near = get_close_matches(last, [*options, *EQUIVALENTS], n=1, cutoff=0.75)
    if not near:
        return None
    return f"did you mean --{EQUIVALENTS.get(near[0]) or options[near[0]][0]}?"


def _key(where: str, name: str) -> str | None:
    """Of a key that a class does not have: the class that has it, or the nearest of its own."""
    if where not in CLASSES:
        return None
    package, names = CLASSES[where]
    of_class = {kind: list(_options_of(package, kind)) for kind in names}
    having = [kind for kind, options in of_class.items() if name in options]
    if having:
        return f"{name} is an option of {' and '.join(having)}: --{where} {package}.{having[0]} chooses it"
    near = get_close_matches(name, dict.fromkeys(o for options in of_class.values() for o in options), n=2)
    return f"did you mean {' or '.join(near)}?" if near else None
