"""Imports that are dear and of no use here, left out or made cheaper: a third of the time until a command begins.

Lightning imports torchmetrics, and torchmetrics, for metrics of texts, sounds and pictures and for their plots, imports
transformers (with scikit-learn), matplotlib and scipy.signal wherever they are installed. While torchmetrics is being
imported it is told that they are not; the first metric that asks for one of them afterwards, as ``BERTScore`` or
``plot()`` in a callback of one's own, has it imported as ever. Given up: ``scipy.signal.hamming``, an old name that
torchmetrics brings back for another library.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, reload
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("transformers", "matplotlib", "scipy")
LACKING = {"transformers": "torchmetrics.functional.text.bert", "matplotlib": "torchmetrics.utilities.plot"}
"""Package -> module that is executed again once the package is asked for; the others import it where they use it."""
OFFERS = {
    "torchmetrics.text": ("BERTScore", "InfoLM"),
    "torchmetrics.functional.text": ("bert_score", "infolm"),
    "torchmetrics.functional": ("bert_score", "infolm"),
    "torchmetrics.functional.multimodal": ("clip_score", "clip_image_quality_assessment"),
}
"""Module -> names that it has where transformers is installed."""


def import_at_once(name: str) -> ModuleType:
    """Import a command's module, without looking for garbage meanwhile, nor ever among what has been imported.

    Half a million objects are made, which live as long as the process; to look through them again and again takes a
    fifth of the time of importing, and a quarter of a second each time afterwards. Given up: some 10,000 objects that
    are garbage by then, 8 MB.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def import_torchmetrics_leanly() -> None:
    """Have torchmetrics imported without what is not used of it, whenever that will be; nothing is imported now."""
    if "torchmetrics" not in sys.modules:
        sys.meta_path.insert(0, _LeanTorchmetrics())


class _LeanTorchmetrics(MetaPathFinder):
    """Finds torchmetrics as usual, once, and has it executed with packages missing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_leanly(module: ModuleType) -> None:
                with _missing(UNUSED):
                    execute(module)
                _bring_back_when_asked()

            spec.loader.exec_module = execute_leanly  # type: ignore[method-assign]
        return spec


@contextmanager
def _missing(packages: Sequence[str]) -> Iterator[None]:
    """Let lightning_utilities, whom torchmetrics asks what is installed, answer that these packages are not."""
    imports: Any = import_module("lightning_utilities.core.imports")
    check: Callable[[Any], None] = imports.RequirementCache._check_requirement
    available: Callable[[str], bool] = imports.package_available

    def check_requirement(requirement: Any) -> None:
        check(requirement)
        if _package(requirement) in packages:
            requirement.available, requirement.message = False, "not asked for yet"

    imports.RequirementCache._check_requirement = check_requirement
    imports.package_available = lambda name: name not in packages and available(name)
    try:
        yield
    finally:
        imports.RequirementCache._check_requirement = check
        imports.package_available = available


def _package(requirement: Any) -> str:
    """``transformers`` of ``transformers>=4.4.0``."""
    return re.split(r"[^\w-]", requirement.requirement or "")[0]


def _bring_back_when_asked() -> None:
    """Of what torchmetrics has been told was missing: whoever asks from now on is told what is true, and has it."""
    told = vars(import_module("torchmetrics.utilities.imports")).values()
    for flag in {id(flag): flag for flag in told if _package_of_flag(flag) in UNUSED}.values():
        _ask_again(flag)
    for name, offered in OFFERS.items():
        if module := sys.modules.get(name):
            module.__getattr__ = _late_names(module, offered)  # type: ignore[method-assign]


def _package_of_flag(flag: Any) -> str:
    return _package(flag) if hasattr(flag, "requirement") else ""


def _ask_again(flag: Any) -> None:
    """The flag is an object that many modules share, and keeps its answer: the next one is looked up."""
    for answer in ("available", "message"):
        vars(flag).pop(answer, None)

    def check() -> None:
        del flag._check_available  # which uncovers that of its class
        flag._check_available()
        lacking = sys.modules.get(LACKING.get(_package(flag), ""))
        if flag.available and lacking is not None:
            reload(lacking)  # in place: its functions, wherever they are known, find the package from now on

    flag._check_available = check


def _late_names(module: ModuleType, offered: Sequence[str]) -> Callable[[str], Any]:
    """``__getattr__`` of a module that has some names once they are asked for."""

    def late(name: str) -> Any:
        if name in offered:
            vars(module).pop("__getattr__", None)
            reload(module)
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    return late
