"""Output that nobody reads any more is dropped: ``fit ... | head -1`` is no reason to end a training.

A closed pipe raises ``BrokenPipeError`` where Python prints, and rich then ends the program. From the first such error
on the stream leads nowhere, for this process and those that it starts.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class PatientStream:
    """A stream that goes on when its reader has gone.

    Args:
        stream: with a file descriptor.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lead_nowhere()
            self._stream.flush()

    def _lead_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def outlive_readers() -> None:
    """Let this process go on when the reader of its output or of its messages ends."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # no stream of a notebook or a test
            setattr(sys, name, PatientStream(stream))
