"""Parameter groups: every trainable parameter has exactly one role, and fused matrices say where their blocks end.

Roles are read from module types and names of LitGPT models (plain and LoRA), not from names alone: a name rule misses
what a new architecture calls otherwise, and then trains nothing without a word. A router of a mixture of experts
counts as ``head``: its rows are the logits of a small classifier and are read one by one, so an orthogonalized update
has no meaning for them. DoRA's magnitudes count as ``norm``: they, too, scale outputs and start where they belong, so
that they do not decay. Given up: parameters with more than three dimensions have no role of their own; name one in
``roles``.

Source: fused QKV layout, litgpt 0.5.13 litgpt/model.py, ``CausalSelfAttention``; LoRA blocks, litgpt/lora.py,
``LoRAQKVLinear``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from lit_consistency.optimizers.core.checks import check_choice, check_choices

Role = Literal["hidden", "adapter", "embedding", "head", "norm", "bias"]
ROLES: tuple[str, ...] = get_args(Role)
Split = tuple[int, ...]
QKV = Literal["split", "head", "fused"]
QKVS: tuple[str, ...] = get_args(QKV)
MATRIX_DIMENSIONS = (2, 3)  # a matrix, or a stack of them (one for each expert)
MATRIX_ROLES = ("hidden", "adapter")  # what Muon orthogonalizes


class _NamedParameter(NamedTuple):
    """A parameter under one of its names, and the module that owns it."""

    name: str
    parameter: nn.Parameter
    path: str  # of the owning module, without the `.linear` that LitGPT's LoRA layers put in between
    module: nn.Module

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


def parameter_groups(
    model: nn.Module,
    qkv: QKV = "split",
    roles: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group; a group has one role and one split.

    Args:
        model: a LitGPT model, plain or with LoRA.
        qkv: ``split``: a fused query-key-value matrix is three blocks (sizes by query groups), and so are its LoRA
            factors; ``head``: one block of head_size rows for each head of q and each query group of k and v, and so
            is lora_B, while lora_A stays in three; ``fused``: it is one.
        roles: regular expression, searched in the parameter's name -> role; the first that matches decides.

    Returns:
        Groups in the order of ``ROLES``, each with ``params`` (list of (name, parameter)), ``role``, and ``split``:
        rows of each block of its matrices, or None where a matrix is one block.

    Raises:
        ValueError: nothing is trainable, a pattern matches nothing, a role is unknown or impossible for a parameter,
            or a fused matrix does not have the rows that its attention module promises.
    """
    check_choice("qkv", qkv, QKVS)
    by_name = _trainable_roles(model)
    _reroute(model, by_name, roles or {})
    groups: dict[tuple[str, Split | None], list[tuple[str, nn.Parameter]]] = {}
    for entry in _named_parameters(model):
        if entry.name in by_name:
            split = _split(model, entry, by_head=qkv == "head") if qkv != "fused" else None
            groups.setdefault((by_name[entry.name], split), []).append((entry.name, entry.parameter))
    ordered = sorted(groups.items(), key=lambda item: (ROLES.index(item[0][0]), item[0][1] or ()))
    result = [{"params": params, "role": role, "split": split} for (role, split), params in ordered]
    _assert_partition(model, result)
    return result


def roles(model: nn.Module) -> dict[str, str]:
    """Name in the base model's format -> role, for every parameter, frozen ones and LoRA's factors included.

    LoRA's ``.linear.`` is left out of the names, so that they are those of a saved base model. Both names of a tied
    weight are there, with the one role.
    """
    by_parameter = _roles_by_parameter(model)
    return {
        entry.name.replace(".linear.", "."): by_parameter[id(entry.parameter)] for entry in _named_parameters(model)
    }


def group_table(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per group, fit for JSON: role, split, number of tensors and of parameters, and the names.

    Args:
        groups: of ``parameter_groups``, or an optimizer's ``param_groups``.
    """
    rows = []
    for group in groups:
        named = named_parameters(group)
        split = group.get("split")
        rows.append(
            {
                "role": group.get("role"),
                "split": list(split) if split else None,
                "tensors": len(named),
                "parameters": sum(parameter.numel() for _, parameter in named),
                "names": group.get("param_names") or [name for name, _ in named if name is not None],
            }
        )
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``group_table`` as lines of text, names left out."""
    header = f"{'role':<10} {'blocks (rows)':<22} {'tensors':>8} {'parameters':>15}"
    lines = [
        f"{row['role'] or '-':<10} {' + '.join(map(str, row['split'] or [])) or '-':<22} "
        f"{row['tensors']:>8,} {row['parameters']:>15,}"
        for row in rows
    ]
    total = f"{'all':<33} {sum(r['tensors'] for r in rows):>8,} {sum(r['parameters'] for r in rows):>15,}"
    return "\n".join([header, *lines, total])


def blocks(tensor: Tensor, split: Split | None) -> list[Tensor]:
    """Views of the blocks of a parameter, or of anything of its shape.

    Args:
        tensor: of any shape; where it has three dimensions it is a stack of matrices, each with blocks of its own.
        split: rows of each block, or None for one block.

    Returns:
        Matrices (rows of the block, columns); a tensor of fewer than two dimensions as it is.
    """
    matrices = list(tensor) if tensor.ndim == 3 else [tensor]
    if split is None:
        return matrices
    return [block for matrix in matrices for block in matrix.split(list(split))]


def named_parameters(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Names and parameters of a group, before and after an optimizer took it; their numbers where they have no name."""
    names = group.get("param_names") or range(len(group["params"]))
    entries = zip(names, group["params"], strict=True)
    return [entry if isinstance(entry, tuple) else (str(name), entry) for name, entry in entries]


def check_matrices(group: Mapping[str, Any]) -> None:
    """Refuse to orthogonalize what is no matrix, and to move it by AdamW without a word.

    Args:
        group: of hidden matrices or adapters.

    Raises:
        ValueError: it holds no parameter, one that is no matrix or has no elements (on all ranks together), or only
            frozen ones.
    """
    where = f"role {group['role']}"
    if not group["params"]:
        raise ValueError(f"Muon: a group of {where} is empty: expected a matrix in each, got\n{table_of([group])}")
    for name, param in named_parameters(group):
        if param.ndim not in MATRIX_DIMENSIONS or param.numel() == 0:
            raise ValueError(
                f"Muon: parameter {name} of {where} has shape {list(param.shape)}: expected a matrix or a stack of "
                f"matrices, whole or a DTensor whose shape is that of the whole; got\n{table_of([group])}"
            )
    if not any(param.requires_grad for _, param in named_parameters(group)):
        raise ValueError(f"Muon: a group of {where} is frozen: expected one to train, got\n{table_of([group])}")


def table_of(groups: Sequence[Mapping[str, Any]]) -> str:
    """The table of groups as an error shows it."""
    return format_table(group_table(groups))


def dry_build(factory: Callable[[list[dict[str, Any]]], Any]) -> Any:
    """The optimizer, built once on a few numbers, so that a wrong hyperparameter is refused before any work.

    There is a parameter of every role: what the model lacks is found out when there is one.
    """
    groups: list[dict[str, Any]] = []
    for role in ROLES:
        names = ("lora_A", "lora_B") if role == "adapter" else ("weight",)
        shape = (2,) if role in ("norm", "bias") else (2, 2)
        named = [(f"{role}.{name}", nn.Parameter(torch.zeros(shape))) for name in names]
        groups.append({"params": named, "role": role, "split": None})
    return factory(groups)


def _named_parameters(model: nn.Module) -> Iterator[_NamedParameter]:
    """Every parameter under every name it has."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield _NamedParameter(f"{path}.{leaf}" if path else leaf, parameter, path.removesuffix(".linear"), module)


def _roles_by_parameter(model: nn.Module) -> dict[int, str]:
    """Id of a parameter -> role; a weight tied to an embedding is an embedding."""
    routers = {
        f"{path}.gate".removeprefix(".")
        for path, module in model.named_modules()
        if hasattr(module, "gate") and hasattr(module, "experts")
    }
    by_parameter: dict[int, str] = {}
    for entry in _named_parameters(model):
        role = _role(entry, routers)
        if by_parameter.get(id(entry.parameter)) != "embedding":
            by_parameter[id(entry.parameter)] = role
    return by_parameter


def _role(entry: _NamedParameter, routers: set[str]) -> str:
    if entry.leaf.startswith("lora_"):
        return "adapter" if entry.parameter.ndim >= 2 else "norm"
    if isinstance(entry.module, nn.Embedding):
        return "embedding"
    if entry.parameter.ndim < 2:
        return "bias" if entry.leaf.endswith("bias") else "norm"
    if entry.path.rpartition(".")[2] == "lm_head" or entry.path in routers:
        return "head"
    return "hidden"


def _trainable_roles(model: nn.Module) -> dict[str, str]:
    """Name -> role of what takes a gradient; a tied weight once, under the name that ``named_parameters`` gives it."""
    by_parameter = _roles_by_parameter(model)
    by_name = {name: by_parameter[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    if not by_name:
        raise ValueError("no parameter of the model takes a gradient: expected at least one; see the method's prepare")
    return by_name


def _reroute(model: nn.Module, by_name: dict[str, str], roles: Mapping[str, str]) -> None:
    """Put the roles that ``roles`` gives into ``by_name``, and see that every role is possible."""
    check_choices("roles", roles.values(), ROLES)
    original = dict(by_name)
    for pattern, role in reversed(list(roles.items())):
        try:
            matching = [name for name in by_name if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"roles = {pattern!r}: expected a regular expression: {error}") from None
        if not matching:
            raise ValueError(f"roles = {pattern!r}: matches no trainable parameter, e.g. {next(iter(by_name))!r}")
        by_name.update(dict.fromkeys(matching, role))
    parameters = dict(model.named_parameters())
    for name, role in by_name.items():
        _check_hidden(name, parameters[name], original[name], role)


def _check_hidden(name: str, parameter: nn.Parameter, original: str, role: str) -> None:
    """Refuse what must not be orthogonalized as ``hidden``: vectors, embeddings, the output head, deep stacks."""
    if role != "hidden":
        return
    if parameter.ndim not in MATRIX_DIMENSIONS:
        raise ValueError(f"{name} has shape {list(parameter.shape)}: expected 2 or 3 dimensions for hidden; use roles")
    if original == "embedding" or (original == "head" and "lm_head" in name):
        raise ValueError(f"roles: {name} = hidden: expected embedding or head, its rows are tokens")


def _split(model: nn.Module, entry: _NamedParameter, by_head: bool) -> Split | None:
    """Rows of the blocks of a fused query-key-value weight or of its LoRA factors; None for everything else."""
    head_size = None
    if entry.leaf in ("lora_A", "lora_B") and hasattr(entry.module, "qkv_shapes"):
        adapted = tuple(cast(list[int], entry.module.qkv_shapes))
        if entry.leaf == "lora_A":
            split: Split = (cast(int, entry.module.r),) * len(adapted)
        else:
            split, head_size = adapted, cast(int, entry.module.head_size)
    elif entry.leaf == "weight" and entry.path.rpartition(".")[2] == "qkv":
        config = getattr(model.get_submodule(entry.path.rpartition(".")[0]), "config", None)
        try:
            heads = (config.n_head, config.n_query_groups, config.n_query_groups)  # type: ignore[union-attr]
            head_size = cast(int, config.head_size)  # type: ignore[union-attr]
            split = tuple(n * head_size for n in heads)
        except AttributeError:
            raise ValueError(
                f"{entry.name}: expected an attention module whose config has n_head, n_query_groups and head_size; "
                "use qkv = 'fused'"
            ) from None
    else:
        return None
    if sum(split) != entry.parameter.shape[-2]:
        raise ValueError(f"{entry.name} has {entry.parameter.shape[-2]} rows: expected {' + '.join(map(str, split))}")
    if by_head and head_size is not None:
        split = tuple(head_size for rows in split for _ in range(rows // head_size))
    return split if len(split) > 1 else None


def _assert_partition(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> None:
    grouped = [id(parameter) for group in groups for _, parameter in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}, "a parameter is in no group"
