"""All cells of a study for TensorBoard: the HParams page compares them, the scalars page shows their curves.

``tensorboard --logdir REPORT/tensorboard`` needs no run folder. Events are made by tensorboard's own messages, without
torch; a cell's file is written only if its numbers changed, so that a redraw costs little and a TensorBoard that is
open sees no files vanish.
"""

from __future__ import annotations

import math
import re
import shutil
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lit_consistency.records.fingerprints import fingerprint_of, sha256_of_text
from lit_consistency.study.report.content import CellRow, Content
from lit_consistency.study.report.embedded import cell_axes, cell_metrics

FILE = "events.out.tfevents.0.report"
"""TensorBoard takes files with ``tfevents`` in their names."""
VERSION = 1
"""Of what this file writes; a new one makes redraws write all files anew."""
FINAL = "final/"
"""Stands before the final numbers, the metrics of the HParams page; curves have the names of their numbers."""


def write_tensorboard(content: Content, folder: Path) -> None:
    """Write one file of events per cell that has numbers, and one that says which coordinates and metrics there are.

    Args:
        content: with the cells.
        folder: ``tensorboard`` of the report; folders of cells that are gone are removed from it.
    """
    cells = {folder_name(cell.name): cell for cell in content.runs if cell.metrics or cell.curve}
    # only what this file wrote is removed: somebody may have put more there
    if folder.is_dir():
        for path in folder.glob(f"*/{FILE}"):
            if path.parent.name not in cells:
                shutil.rmtree(path.parent)
    whole = fingerprint_of([VERSION, content.axes, [(c.stage, c.coordinates, list(c.metrics)) for c in content.runs]])
    files = {}
    if not _is_written(folder / FILE, whole):
        files[folder / FILE] = _stamped(whole, [_experiment(content)])
    for name, cell in cells.items():
        fingerprint = _fingerprint(cell)
        if not _is_written(folder / name / FILE, fingerprint):
            files[folder / name / FILE] = _stamped(fingerprint, _events(cell))
    _write(files)


def folder_name(name: str) -> str:
    """A cell's name as the name of one folder: no separators, none of ``.`` and ``..``."""
    safe = re.sub(r"[^\w.,=+@ -]", "_", name).strip(". ") or "_"
    if safe == name and len(safe.encode()) <= 120:
        return safe
    # names that become equal, or are cut, are told apart by what they were
    return f"{safe.encode()[:110].decode(errors='ignore')}-{sha256_of_text(name)[:8]}"


# -------------------- messages


def _experiment(content: Content) -> bytes:
    """Which hyperparameters (axes) and metrics the HParams page shows, and their values."""
    from tensorboard.plugins.hparams import summary_v2 as hp

    stated = {axis: {c.coordinates[axis] for c in content.runs if axis in c.coordinates} for axis in cell_axes(content)}
    hparams = [hp.HParam("stage", hp.Discrete(sorted({cell.stage for cell in content.runs} or {""})))]
    hparams += [hp.HParam(_axis(axis), hp.Discrete(sorted(values))) for axis, values in stated.items() if values]
    metrics = [hp.Metric(FINAL + name, display_name=name) for name in cell_metrics(content)]
    return _event(summary=hp.hparams_config_pb(hparams, metrics, time_created_secs=0.0))


def _events(cell: CellRow) -> Iterable[bytes]:
    from tensorboard.plugins.hparams import summary_v2 as hp

    values = {"stage": cell.stage, **{_axis(axis): value for axis, value in cell.coordinates.items()}}
    yield _event(summary=hp.hparams_pb(values, trial_id=cell.name, start_time_secs=0.0))
    # final numbers stand at the last step, where a curve of them would end
    last = 0.0
    for row in cell.curve:
        step = row.get("step", math.nan)
        if math.isfinite(step):
            last = max(last, step)
            yield _scalars({name: value for name, value in row.items() if name != "step"}, step)
    yield _scalars({FINAL + name: value for name, value in cell.metrics.items()}, last)
    yield _event(summary=_session_end(cell.state))


def _axis(axis: str) -> str:
    """The stage is a hyperparameter of every session; an axis of that name would overwrite it."""
    return f"axis.{axis}" if axis == "stage" else axis


def _session_end(state: str) -> Any:
    """How the cell ended, as the page shows it: success, failure, running or unknown."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = {"finished": api_pb2.STATUS_SUCCESS, "running": api_pb2.STATUS_RUNNING, "missing": api_pb2.STATUS_UNKNOWN}
    info = plugin_data_pb2.SessionEndInfo(status=status.get(state, api_pb2.STATUS_FAILURE), end_time_secs=0.0)
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _scalars(numbers: dict[str, float], step: float) -> bytes:
    """One event with every number that is one; TensorBoard has no place for the others."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    # one event of many values: time and step are not repeated with each
    values = [Summary.Value(tag=name, simple_value=v) for name, v in numbers.items() if not math.isnan(v)]
    return _event(summary=Summary(value=values), step=round(step))


def _event(**fields: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    # no time: what is equal is written equally, and TensorBoard draws over steps
    return Event(wall_time=0.0, **fields).SerializeToString()


# -------------------- files


def _fingerprint(cell: CellRow) -> str:
    """Of all that a cell's file of events depends on."""
    return fingerprint_of([VERSION, cell.name, cell.stage, cell.coordinates, cell.state, cell.metrics, cell.curve])


def _is_written(path: Path, fingerprint: str) -> bool:
    """Whether the file was finished with this fingerprint, which stands in its first and in its last event."""
    if not path.is_file():
        return False
    # reading is cheap beside making the events: a redraw of the same numbers loads no protocol buffers at all
    content = path.read_bytes()
    return content.count(fingerprint.encode()) == 2


def _stamped(fingerprint: str, events: Iterable[bytes]) -> list[bytes]:
    """The events of a file between a first and a last one that say what they were made of."""
    from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

    stamp = SourceMetadata(writer=fingerprint)
    ends = [Event(file_version="brain.Event:2", source_metadata=stamp), Event(source_metadata=stamp)]
    first, last = (event.SerializeToString() for event in ends)
    return [first, *events, last]


def _write(files: dict[Path, list[bytes]]) -> None:
    """Write files of events.

    They are not brought to the disk one by one, which takes seconds for a thousand: a file that a kill cuts short lacks
    its last event and is written anew by the next redraw, and TensorBoard reads it as far as it goes.

    A record is the length of an event, its checksum, the event, its checksum: TFRecord
    (https://www.tensorflow.org/tutorials/load_data/tfrecord).
    """
    events = [event for rows in files.values() for event in rows]
    lengths = [struct.pack("<Q", len(event)) for event in events]
    checks = [
        struct.pack("<I", ((c >> 15 | c << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)
        for c in crc32c([*lengths, *events])
    ]
    records = map(b"".join, zip(lengths, checks[: len(events)], events, checks[len(events) :], strict=True))
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(islice(records, len(rows))))


def crc32c(rows: Sequence[bytes]) -> list[int]:
    """Checksums of many texts at once, byte by byte over all of them: thirty times as fast as one by one.

    Castagnoli's polynomial, reflected (RFC 3720, appendix B.4).
    """
    # rows of falling length: those that still have a byte are a block at the top
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    lengths = np.array([len(rows[i]) for i in order])
    data = np.zeros((len(rows), int(lengths.max(initial=0))), np.uint8)
    for k, i in enumerate(order):
        data[k, : len(rows[i])] = np.frombuffer(rows[i], np.uint8)
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    table = _table()
    for column in range(data.shape[1]):
        n = int(np.searchsorted(-lengths, -column, side="left"))
        crc[:n] = table[(crc[:n] ^ data[:n, column]) & 0xFF] ^ (crc[:n] >> 8)
    found = np.empty(len(rows), np.uint32)
    found[order] = ~crc
    return [int(value) for value in found]


@cache
def _table() -> np.ndarray:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return np.array(table, np.uint32)
