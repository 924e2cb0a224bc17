"""The script for MoFO's kernels, rehearsed where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.on_gpu import mofo_step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_a_rehearsal_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    assert mofo_step.main(["--device", "cpu", "--tiny", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert not [row for row in rows if "error" in row]
    cases = [row for row in rows if "ok" in row]
    assert len(cases) == len(mofo_step.MOMENTUM) + len(mofo_step.OTHERS)
    assert all(row["ok"] for row in cases)
    assert len([row for row in rows if "bar" in row]) == 4
    assert "MoFO exact / torch AdamW, fused, 1B" in capsys.readouterr().out
