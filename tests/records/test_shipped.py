"""Paths in a file: the working directory goes first, then what stands beside the file, then the package."""

from __future__ import annotations

from pathlib import Path

import yaml

from lit_consistency.records.shipped import beside, looked_in

ROOT = Path(__file__).parents[2]


def test_only_what_stands_beside_the_file_and_not_here_is_changed(tmp_path: Path) -> None:
    """Names, words, patterns without a file, and what is written stay, whatever folders there are by chance."""
    here, folder = tmp_path / "here", tmp_path / "project"
    (here / "both").mkdir(parents=True)
    for name in ("rows.jsonl", "both/rows.jsonl", "base/model/lit_model.pth", "quiz.yaml", "run/checkpoints/x.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (here / "both/rows.jsonl").touch()
    found = {
        "data": {"path": "rows.jsonl", "pattern": ["both/*.json", "./*.jsonl"]},
        "dotted.init_args.path": "base",
        "learn": {"quiz": {"task": "quiz.yaml/easy"}},
        "checkpoint_dir": "run/checkpoints/step-20",
    }
    kept = {
        "path": "both/rows.jsonl",
        "config": ["configs/quickstart.yaml", "none.yaml"],
        "base": "base",
        "run": {"root": "base/model", "name": "rows.jsonl"},
        "class_path": "lit_consistency.data.RowFiles",
        "budget": "forget/*<=0.05",
        "rate": 0.5,
    }
    assert beside(found, folder, here) == {
        "data": {"path": str(folder / "rows.jsonl"), "pattern": ["both/*.json", str(folder / "*.jsonl")]},
        "dotted.init_args.path": str(folder / "base"),
        "learn": {"quiz": {"task": f"{folder}/quiz.yaml/easy"}},
        "checkpoint_dir": str(folder / "run/checkpoints/step-20"),
    }
    assert beside(kept, folder, here) == kept
    assert beside(found, here, here) == found
    assert looked_in("none.yaml") == (
        f"; looked for in the working directory, beside the file that names it, in {folder}"
    )
    assert f"in {folder}, in the package, in {ROOT}" in looked_in("configs/quickstart.yaml")
    assert looked_in("never/named.txt") == ""


def test_the_shipped_configurations_mean_the_same_as_before() -> None:
    for file in (ROOT / "configs").rglob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert beside(content, file.parent, ROOT) == content, file
