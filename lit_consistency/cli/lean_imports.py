"""Imports of other libraries that nothing here uses, left out: a third of the time until a command begins.

Lightning imports torchmetrics, and torchmetrics, for metrics of texts, sounds and pictures and for their plots, imports
transformers (with scikit-learn), matplotlib and scipy.signal wherever they are installed. While torchmetrics is being
imported it is told that they are not; whoever imports them afterwards has them as ever. Given up: torchmetrics'
``BERTScore``, ``InfoLM`` and ``CLIPScore``, and ``plot()`` of its metrics, in a callback of one's own; torchmetrics
then says that a package is missing. ``LIT_CONSISTENCY_WHOLE_TORCHMETRICS=1`` brings them back.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("transformers", "matplotlib", "scipy")
WHOLE = "LIT_CONSISTENCY_WHOLE_TORCHMETRICS"


def import_torchmetrics_leanly() -> None:
    """Have torchmetrics imported without what is not used of it, whenever that will be; nothing is imported now."""
    if "torchmetrics" not in sys.modules and not os.environ.get(WHOLE):
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
        if re.split(r"[^\w-]", requirement.requirement or "")[0] in packages:
            requirement.available, requirement.message = False, f"left out; {WHOLE}=1 brings it back"

    imports.RequirementCache._check_requirement = check_requirement
    imports.package_available = lambda name: name not in packages and available(name)
    try:
        yield
    finally:
        imports.RequirementCache._check_requirement = check
        imports.package_available = available
