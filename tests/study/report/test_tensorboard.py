from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer as PluginMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from lit_consistency.study.report.tensorboard import FILE, crc32c, folder_name, write_tensorboard
from tests.study.report.synthetic import FORGETTING, LEARNING, content


def test_tensorboard_finds_every_session_with_its_coordinates_and_numbers(tmp_path: Path) -> None:
    study = content(seeds=2)
    write_tensorboard(study, tmp_path)
    multiplexer = PluginMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    tags = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, tags, [])
    assert {info.name for info in experiment.hparam_infos} == {
        "stage",
        "optimizer",
        "base_seed",
        "base",
        "finetuner",
        "lr",
    }
    assert {f"final/{m}" for m in (LEARNING, FORGETTING, "val/loss")} <= {m.name.tag for m in experiment.metric_infos}
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[0, 1, 2, 3],
        slice_size=1000,
        col_params=[api_pb2.ColParams(metric=m.name) for m in experiment.metric_infos],
    )
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    known = {cell.name: cell for cell in study.cells if cell.metrics or cell.curve}
    assert {group.name for group in groups} == set(known)
    for group in groups:
        cell = known[group.name]
        values = {name: value.string_value for name, value in group.hparams.items()}
        assert values == {"stage": cell.stage, **cell.coordinates}
        assert group.sessions[0].status == (1 if cell.state == "finished" else 2)
        found = {m.name.tag: m.value for m in group.sessions[0].metric_values}
        assert found == {f"final/{k}": pytest.approx(v, rel=1e-6) for k, v in cell.metrics.items() if v == v}


def test_curves_are_read_back(tmp_path: Path) -> None:
    study = content(seeds=1)
    write_tensorboard(study, tmp_path)
    cell = next(c for c in study.cells if c.name == "finetune-muon-muon-lr0.002-s0")
    events = EventAccumulator(str(tmp_path / cell.name)).Reload()
    read = [(e.step, e.value) for e in events.Scalars(FORGETTING)]
    assert read == [(row["step"], pytest.approx(row[FORGETTING], rel=1e-6)) for row in cell.curve]


def test_a_redraw_writes_what_changed_or_was_cut_short(tmp_path: Path) -> None:
    study = content(seeds=1)
    write_tensorboard(study, tmp_path)
    files = sorted(tmp_path.rglob(FILE))
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        os.utime(path, (1, 1))
    cut, gone, changed = study.cells[0], study.cells[1], study.cells[2]
    (tmp_path / cut.name / FILE).write_bytes(whole[tmp_path / cut.name / FILE][:-40])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "note.txt").write_text("somebody's own")
    cells = [
        replace(c, metrics={**c.metrics, LEARNING: 0.5}) if c is changed else c for c in study.cells if c is not gone
    ]
    write_tensorboard(replace(study, cells=cells), tmp_path)
    assert not (tmp_path / gone.name).exists()
    assert (tmp_path / "kept" / "note.txt").is_file()
    rewritten = {path for path in tmp_path.rglob(FILE) if path.stat().st_mtime > 1}
    assert rewritten == {tmp_path / name / FILE for name in ("", cut.name, changed.name)}
    assert (tmp_path / cut.name / FILE).read_bytes() == whole[tmp_path / cut.name / FILE]


def test_names_of_cells_are_names_of_folders() -> None:
    names = ["a", "a/b", "a_b", "../x", "..", ".", "", "日本語", "x" * 500, "x" * 501, "</script>", "a b=0.1,c"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(f not in (".", "..", "") and "/" not in f and len(f.encode()) < 200 for f in folders)
    assert folder_name("finetune-muon-lr0.002-s0") == "finetune-muon-lr0.002-s0"


def test_checksums_are_those_of_the_standard() -> None:
    # RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRC algorithms
    rows = [b"123456789", bytes(32), b"\xff" * 32, bytes(range(32)), b"", bytes(range(31, -1, -1))]
    assert crc32c(rows) == [0xE3069283, 0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0, 0x113FDB5C]


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.study.report.synthetic import content
from lit_consistency.study.report.write import write_report
assert write_report(content(seeds=1), Path(sys.argv[1])) == []
assert not {"torch", "tensorflow", "lightning", "pandas"} & set(sys.modules)
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=root, timeout=120)
    assert {p.name for p in tmp_path.iterdir()} == {
        "index.html", "figures", "results.csv", "results.parquet", "steps.csv.gz", "tensorboard",
    }  # fmt: skip
