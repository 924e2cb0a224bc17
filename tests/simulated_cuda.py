"""Tensors that say they lie on CUDA and are computed on the CPU, to run what is written for CUDA where there is none.

A tensor of the simulated device refuses to meet one of the CPU unless the latter is a single number or an index, as on
CUDA. Kernels, their precision and their speed are not simulated, nothing is compiled, and gradients do not flow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
PLACES = {"device": CUDA, "is_cuda": True, "is_cpu": False}
# kept by the wrapper itself
OWN = ("grad", "requires_grad", "is_leaf", "_backward_hooks", "__hash__", "__deepcopy__", "requires_grad_")
MOVES = ("to", "cpu", "cuda", "copy_", "_foreach_copy_", "tolist", "numpy", "item")
INDEXED = ("__getitem__", "__setitem__", "index_put_")


class Simulated(Tensor):
    """A tensor whose numbers lie in ``inner``, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        found = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CUDA)
        found.inner = inner
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Simulated({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__"):
            name = func.__self__.__name__
            if name in PLACES:
                return PLACES[name]
        if name in OWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return compute(func, name, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, func.__name__.partition(".")[0], args, kwargs or {})


def compute(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run the function on what lies inside, and wrap what comes out of the simulated device."""
    leaves = tree_leaves((args, kwargs))
    wrappers = {id(x.inner): x for x in leaves if isinstance(x, Simulated)}
    strangers = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Simulated) and x.ndim]
    if wrappers and strangers and name not in MOVES + INDEXED:
        raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, the latter of shape {list(strangers[0].shape)}")
    devices = [x for x in leaves if isinstance(x, torch.device | str) and str(x).partition(":")[0] in ("cpu", "cuda")]
    on_cuda = torch.device(devices[0]).type == "cuda" if devices else bool(wrappers)
    if name == "cpu" or (name in ("copy_", "_foreach_copy_") and not isinstance(tree_leaves(args)[0], Simulated)):
        on_cuda = False

    def inside(x: Any) -> Any:
        if isinstance(x, Simulated):
            return x.inner
        return "cpu" if isinstance(x, torch.device | str) and str(x).partition(":")[0] == "cuda" else x

    moved = name == "to" and bool(devices) and on_cuda != bool(wrappers)
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*tree_map(inside, args), **tree_map(inside, kwargs))
        if moved and isinstance(found, Tensor):
            found = found.clone()
    if not on_cuda:
        return found

    def outside(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return wrappers[id(x)] if id(x) in wrappers else Simulated(x)

    return tree_map(outside, found)


class Factories(TorchFunctionMode):
    """What is made on CUDA is made on the simulated device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        to_cuda = getattr(func, "__name__", "") in ("to", "cuda") and any("cuda" in str(x) for x in args[1:2])
        if (device is not None and torch.device(device).type == "cuda") or to_cuda:
            return compute(func, func.__name__, args, kwargs)
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """A generator of the CPU that remembers the device it was asked for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.asked = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.asked


class Event:
    """A CUDA event; a millisecond lies between any two."""

    def __init__(self, **kwargs: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 1.0


def to_cuda(module: nn.Module) -> nn.Module:
    """Move all parameters and buffers."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved.setdefault(id(parameter), nn.Parameter(Simulated(parameter.detach()), parameter.requires_grad))
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else Simulated(buffer)
    return module


@contextlib.contextmanager
def simulated_cuda() -> Iterator[None]:
    """Within, ``cuda`` is the simulated device."""
    torch._C._ensureCUDADeviceGuardSet()
    with (
        mock.patch("torch.Generator", Generator),
        mock.patch("torch.cuda.Event", Event),
        mock.patch("torch.cuda.synchronize"),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("torch.compile", lambda function, **kwargs: function),
        Factories(),
    ):
        yield
