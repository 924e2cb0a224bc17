"""All cells of a study for TensorBoard: the HParams page compares them, the scalars page shows their curves.

``tensorboard --logdir REPORT/tensorboard`` needs no run folder. Events are made by tensorboard's own messages, without
torch; a cell's file is written only if its content changed, so that a redraw costs little and a TensorBoard that is
open sees no files vanish.
"""

from __future__ import annotations

import math
import re
import shutil
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import new_file
from lit_consistency.study.report.content import CellRow, Content
from lit_consistency.study.report.embedded import cell_axes, cell_metrics

FILE = "events.out.tfevents.0.report"
"""TensorBoard takes files with ``tfevents`` in their names."""
FINAL = "final/"
"""Stands before the final numbers, which are the metrics of the HParams page; curves have the names of their numbers."""


def write_tensorboard(content: Content, folder: Path) -> None:
    """Write one file of events per cell that has numbers, and one that says which coordinates and metrics there are.

    Args:
        content: with the cells.
        folder: ``tensorboard`` of the report; folders of cells that are gone are removed from it.
    """
    cells = {folder_name(cell.name): cell for cell in content.cells if cell.metrics or cell.curve}
    if folder.is_dir():
        for path in folder.glob(f"*/{FILE}"):
            if path.parent.name not in cells:
                shutil.rmtree(path.parent)
    _write(folder / FILE, [_experiment(content)])
    for name, cell in cells.items():
        _write(folder / name / FILE, _events(cell))


def folder_name(name: str) -> str:
    """A cell's name as the name of one folder: no separators, none of ``.`` and ``..``."""
    safe = re.sub(r"[^\w.,=+@ -]", "_", name).strip(". ") or "_"
    if safe == name and len(safe.encode()) <= 120:
        return safe
    # names that become equal, or are cut, are told apart by what they were
    return f"{safe.encode()[:110].decode(errors='ignore')}-{_crc32c(name.encode('utf-8', 'replace')):08x}"


# -------------------- messages


def _experiment(content: Content) -> bytes:
    """Which hyperparameters (axes) and metrics the HParams page shows, and their values."""
    from tensorboard.plugins.hparams import summary_v2 as hp

    stated = {axis: {c.coordinates[axis] for c in content.cells if axis in c.coordinates} for axis in cell_axes(content)}
    hparams = [hp.HParam("stage", hp.Discrete(sorted({cell.stage for cell in content.cells} or {""})))]
    hparams += [hp.HParam(_axis(axis), hp.Discrete(sorted(values))) for axis, values in stated.items() if values]
    metrics = [hp.Metric(FINAL + name, display_name=name) for name in cell_metrics(content)]
    return _event(summary=hp.hparams_config_pb(hparams, metrics, time_created_secs=0.0))


def _events(cell: CellRow) -> Iterable[bytes]:
    from tensorboard.plugins.hparams import summary_v2 as hp

    values = {"stage": cell.stage, **{_axis(axis): value for axis, value in cell.coordinates.items()}}
    yield _event(summary=hp.hparams_pb(values, trial_id=cell.name, start_time_secs=0.0))
    last = 0.0
    for row in cell.curve:
        step = row.get("step", math.nan)
        if math.isfinite(step):
            last = max(last, step)
            yield _scalars({name: value for name, value in row.items() if name != "step"}, step)
    yield _scalars({FINAL + name: value for name, value in cell.metrics.items()}, last)
    done = _event(summary=_session_end(cell.state))
    yield done


def _axis(axis: str) -> str:
    """The stage is a hyperparameter of every session; an axis of that name would overwrite it."""
    return f"axis.{axis}" if axis == "stage" else axis


def _session_end(state: str) -> Any:
    """How the cell ended, as the page shows it: success, failure, running or unknown."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary

    status = {"finished": api_pb2.STATUS_SUCCESS, "running": api_pb2.STATUS_RUNNING, "missing": api_pb2.STATUS_UNKNOWN}
    info = plugin_data_pb2.SessionEndInfo(status=status.get(state, api_pb2.STATUS_FAILURE), end_time_secs=0.0)
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _scalars(numbers: dict[str, float], step: float) -> bytes:
    """One event with every number that is one; TensorBoard has no place for the others."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=v) for name, v in numbers.items() if not math.isnan(v)]
    return _event(summary=Summary(value=values), step=round(step))


def _event(**fields: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    # no time: what is equal is written equally, and TensorBoard draws over steps
    return Event(wall_time=0.0, **fields).SerializeToString()


# -------------------- files


def _write(path: Path, events: Iterable[bytes]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    version = Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString()
    content = b"".join(map(_record, [version, *events]))
    if path.is_file() and path.read_bytes() == content:
        return
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def _record(data: bytes) -> bytes:
    """Length, its checksum, data, its checksum: TFRecord (https://www.tensorflow.org/tutorials/load_data/tfrecord)."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    crc = _crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    """Castagnoli's polynomial, reflected (RFC 3720, appendix B.4)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table
