"""The matrix and its numbers: those of stats/transfer.py, for every seed and as means."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_consistency.stats.seeds import mean_interval
from lit_consistency.stats.transfer import backward_transfer, forgetting, overall_performance, retained_share
from lit_consistency.study.report.heat_map import draw_heat_map
from lit_consistency.study.sequence.matrix import Matrix, as_json, over_seeds, print_matrix, read_matrices, transfer

SCORES = {
    0: [[0.1, 0.2, -1.0], [0.9, 0.2, -1.2], [0.5, 0.8, -1.5]],
    1: [[0.1, 0.2, -1.0], [0.7, 0.3, -1.1], [0.6, 0.7, -1.4]],
}


@pytest.fixture
def matrix() -> Matrix:
    return Matrix(["a", "b"], ["a", "b", "text"], ["accuracy", "accuracy", "-bits_per_byte"], dict(SCORES))


def test_the_numbers_of_a_seed_are_those_of_the_metrics() -> None:
    scores = torch.tensor(SCORES[0], dtype=torch.float64)
    found = transfer(SCORES[0])
    assert found["overall_performance"] == overall_performance(scores) == pytest.approx((0.5 + 0.8) / 2)
    assert found["backward_transfer"] == backward_transfer(scores) == pytest.approx(0.5 - 0.9)
    assert found["forgetting"] == forgetting(scores).tolist() == pytest.approx([0.4, -0.6, 0.5])
    assert found["retained_share"][:2] == retained_share(scores).tolist()[:2] == pytest.approx([0.5, 1.0])
    assert math.isnan(found["retained_share"][2]), "nothing was gained"


def test_before_the_second_stage_there_is_no_backward_transfer() -> None:
    assert math.isnan(transfer(SCORES[0][:2])["backward_transfer"])
    assert transfer(SCORES[0][:2])["overall_performance"] == 0.9


def test_means_are_over_the_finished_seeds(matrix: Matrix) -> None:
    matrix.scores[2] = SCORES[0][:2]
    summary = over_seeds(matrix)
    expected = mean_interval([transfer(SCORES[seed])["backward_transfer"] for seed in (0, 1)])
    assert summary["backward_transfer"] == expected._asdict()
    assert summary["backward_transfer"]["n"] == 2
    assert summary["scores"][1][0]["mean"] == pytest.approx(0.8)
    assert summary["forgetting"]["text"]["mean"] == pytest.approx(0.45)
    assert over_seeds(Matrix(["a"], ["a"], ["accuracy"], {0: [[0.1]]})) == {}


def test_what_is_written_is_read_again(matrix: Matrix, tmp_path: Path) -> None:
    matrix.scores[1][2][2] = math.nan
    content = {"matrices": as_json({"default/0": matrix})}
    text = json.dumps(content).replace("NaN", "null")
    (tmp_path / "matrix.json").write_text(text)
    found = read_matrices(tmp_path)["default/0"]
    assert found.stages == ["a", "b"]
    assert found.scores[0] == SCORES[0]
    assert math.isnan(found.scores[1][2][2])
    assert json.loads(text)["matrices"]["default/0"]["per_seed"]["0"]["forgetting"]["a"] == pytest.approx(0.4)
    with pytest.raises(FileNotFoundError, match="expected the output folder of a sequence"):
        read_matrices(tmp_path / "nowhere")


def test_the_table_shows_scores_and_summary(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    print_matrix("default/0", Matrix(matrix.stages, matrix.tasks, matrix.metrics, {0: SCORES[0]}))
    shown = capsys.readouterr().out
    for part in (
        "base",
        "1 a",
        "2 b",
        "stage 2",
        "-bits_per_byte",
        "0.900",
        "OP (overall performance): 0.6500 (one seed)",
    ):
        assert part in shown
    print_matrix("default/0", matrix)
    shown = capsys.readouterr().out
    assert "BWT (backward transfer): -0.2500, 95% interval -2.1559 .. 1.6559 (2 seeds)" in shown
    print_matrix("default/0", Matrix(["a"], ["a"], ["accuracy"], {0: [[0.1], [0.4]]}))
    assert "not defined for one stage" in capsys.readouterr().out


def test_a_matrix_is_shown_without_lightning() -> None:
    code = (
        "import sys, lit_consistency.study.sequence.matrix, lit_consistency.study.report.heat_map\n"
        "sys.exit(bool({'lightning', 'litgpt', 'lit_consistency.data'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_picture_is_drawn(matrix: Matrix, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_heat_map(matrix, "two seeds", tmp_path / "pictures" / "matrix.png")
    assert (tmp_path / "pictures" / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(
    matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.study.report.heat_map.find_spec", lambda name: None)
    assert not draw_heat_map(matrix, "two seeds", tmp_path / "matrix.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n_stages", "width"), [(2, 100), (4, 100), (15, 100), (15, 40)])
def test_every_number_is_printed_whatever_the_width(
    n_stages: int, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(key, value)
    names = [f"superni15_task{i}_sst2_polarity_classification" for i in range(n_stages)]
    rows = [[k + i / 100 for i in range(n_stages)] for k in range(n_stages + 1)]
    scores = {seed: [[value + 0.1 * seed for value in row] for row in rows] for seed in range(3)}
    print_matrix("default/0", Matrix(names, names, ["exact_match"] * n_stages, scores))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    if width == 100:
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    assert all(f"{value + 0.1:.3f}" in text for row in rows for value in row)
    headings = ["base", *(f"stage {k}" for k in range(1, n_stages + 1)), "forgetting", "retained", "exact_match"]
    assert all(heading in text for heading in headings)
    assert "± 0.248" in text
    folded = "".join(line[:31].strip() for line in text.splitlines())
    assert all(name in folded or name in text for name in names)
