"""How a model is trained: parameter groups by role, optimizers over them, schedules. Imports only torch."""

from lit_consistency.optimizers.adamw import AdamW
from lit_consistency.optimizers.filtered_muon import FilteredMuon
from lit_consistency.optimizers.groups import dry_build, format_table, group_table, parameter_groups, roles
from lit_consistency.optimizers.lion import Lion
from lit_consistency.optimizers.mofo import MoFO
from lit_consistency.optimizers.muon import Muon
from lit_consistency.optimizers.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay
from lit_consistency.optimizers.sgd import SGD
from lit_consistency.optimizers.signum import Signum

__all__ = [
    "SGD",
    "AdamW",
    "Constant",
    "Cosine",
    "FilteredMuon",
    "Linear",
    "Lion",
    "MoFO",
    "Muon",
    "Schedule",
    "Signum",
    "WarmupStableDecay",
    "dry_build",
    "format_table",
    "group_table",
    "parameter_groups",
    "roles",
]
