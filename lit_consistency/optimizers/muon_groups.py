"""Which groups Muon orthogonalizes, at which rate, and which it refuses.

Nothing is moved to AdamW without a word: a group of matrices that cannot be trained with Muon is an error that shows
the table of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_consistency.optimizers.core.checks import check_at_least, check_choices
from lit_consistency.optimizers.core.optimizer import check_present
from lit_consistency.optimizers.groups import MATRIX_DIMENSIONS, ROLES, format_table, group_table

MATRIX_ROLES = ("hidden", "adapter")


def rated(
    groups: Sequence[Mapping[str, Any]], rates: Mapping[str, float], role_lr: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Copies of the groups with their learning rates; a group that already has one keeps it.

    Args:
        groups: with a role each.
        rates: learning rate of the ``matrices`` and of the ``rest``.
        role_lr: role -> factor, at least 0.

    Raises:
        ValueError: a role is unknown or has no group, or a factor is negative.
    """
    check_choices("role_lr", list(role_lr), ROLES)
    check_present("role_lr", role_lr, groups)
    for role, factor in role_lr.items():
        check_at_least(f"role_lr.{role}", factor, 0)
    result = []
    for group in groups:
        rate = rates["matrices" if group["role"] in MATRIX_ROLES else "rest"]
        result.append({"lr": rate * role_lr.get(group["role"], 1.0)} | dict(group))
    return result


def check_matrices(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to train nothing with Muon, and to orthogonalize what is no matrix.

    Args:
        groups: as an optimizer is given them, with lists of (name, parameter) or of parameters.

    Raises:
        ValueError: there is no matrix, or a group of matrices holds none, one of other dimensions, one without
            elements (on all ranks together), or only frozen ones.
    """
    matrices = [group for group in groups if group["role"] in MATRIX_ROLES]
    if not any(group["params"] for group in matrices):
        raise ValueError(f"Muon: expected a hidden matrix or an adapter among the parameters, got\n{_table(groups)}")
    for group in matrices:
        where = f"role {group['role']}"
        if not group["params"]:
            raise ValueError(f"Muon: a group of {where} is empty: expected a matrix in each, got\n{_table(groups)}")
        named = [entry if isinstance(entry, tuple) else (i, entry) for i, entry in enumerate(group["params"])]
        for name, param in named:
            if param.ndim not in MATRIX_DIMENSIONS or param.numel() == 0:
                raise ValueError(
                    f"Muon: parameter {name} of {where} has shape {list(param.shape)}: expected a matrix or a stack of "
                    f"matrices, whole or a DTensor whose shape is that of the whole; got\n{_table(groups)}"
                )
        if not any(param.requires_grad for _, param in named):
            raise ValueError(f"Muon: a group of {where} is frozen: expected one to train, got\n{_table(groups)}")


def names_of(group: Mapping[str, Any]) -> list[str]:
    """Names of a group's parameters; their numbers where they have none."""
    return group.get("param_names") or [str(i) for i in range(len(group["params"]))]


def _table(groups: Sequence[Mapping[str, Any]]) -> str:
    return format_table(group_table(groups))
