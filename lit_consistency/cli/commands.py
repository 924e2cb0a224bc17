"""The commands, and in which file each is carried out; nothing is imported to know them."""

from __future__ import annotations

TRAINING = ("fit", "validate", "test", "predict")
"""Commands of one parser, which is told which of them it is."""
# `import` and `check-optimizer` are no names of modules
FILES = {**dict.fromkeys(TRAINING, "fit"), "import": "import_hf", "check-optimizer": "check_optimizer"}
OWN = ("init", "prepare", "data", "evaluate", "analyze", "sequence", "study", "export", "completion")
FILES |= {command: command for command in OWN}
"""Command -> the file of ``cli`` that carries it out, imported only then."""
