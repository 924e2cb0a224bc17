"""Jinja for templates that come with a model: sandboxed, of bounded size, and rendered in bounded time and memory."""

from __future__ import annotations

from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_consistency.records.bounded import HEADROOM, bounded

LONGEST = 1 << 20
"""Characters of a template; those of models have at most some tens of thousands."""


class BoundedTemplate(jinja2.Template):
    """A template whose rendering ends."""

    def render(self, *args: Any, **variables: Any) -> str:
        """As of Jinja; ValueError where it takes too long, or asks for too much memory."""
        with bounded("the chat template", headroom=HEADROOM):
            try:
                return super().render(*args, **variables)
            except (OverflowError, RecursionError) as error:
                raise ValueError(f"the chat template: {error}") from None


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox for foreign templates."""

    template_class = BoundedTemplate

    def from_string(self, source: Any, *args: Any, **options: Any) -> Any:
        """As of Jinja; ValueError for a source that is too long."""
        if isinstance(source, str) and len(source) > LONGEST:
            raise ValueError(f"the chat template has {len(source):,} characters; expected at most {LONGEST:,}")
        with bounded("the chat template", headroom=HEADROOM):  # constants are computed when it is compiled
            return super().from_string(source, *args, **options)
