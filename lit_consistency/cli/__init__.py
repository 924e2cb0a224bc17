"""The command line: one file a command. No other room owns one."""

from lit_consistency.cli.lean_imports import import_torchmetrics_leanly

import_torchmetrics_leanly()
