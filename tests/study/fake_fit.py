"""A command in the place of training: ``python -m tests.study.fake_fit fit ...`` learns more at larger rates.

What is kept of old facts is less at larger rates, and more where base and finetuner are of one kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lit_consistency.records.run_folder import RunFolder


def main() -> None:
    given = dict(part.removeprefix("--").partition("=")[::2] for part in sys.argv[1:] if part.startswith("--"))
    run = RunFolder(Path(given["run.root"]) / given["run.name"])
    base, own = given.get("model.checkpoint_dir"), "muon" if any("muon.yaml" in part for part in sys.argv) else "adamw"
    rate = float(given.get("model.optimizer.init_args.lr", 1)) / (2 if own == "muon" else 1)
    if rate == 0.4 and given["seed_everything"] == "1":
        raise RuntimeError("this one fails")
    matched = base is not None and (Path(base) / own).is_file()
    numbers = {"learn/new": rate * 2.5, "retain/old": 0.9 - rate + 0.1 * matched, "forget/old.stderr": 0.01}
    if given["run.save_model"] == "true":
        run.model.mkdir(parents=True, exist_ok=True)
        (run.model / own).touch()
    judged = {key: {"metric": "exact", "items": 200} for key in ("learn/new", "retain/old")}
    run.write_config("seed_everything: 0\n")
    for step in (5, 10):
        run.append_metrics(step, {key: value * step / 10 for key, value in numbers.items()})
    times = {"started": "2026-01-01T00:00:00+0000", "ended": "2026-01-01T00:00:09+0000"}
    base_numbers = {"learn/new": 0.0, "retain/old": 1.0}
    record = {"status": "finished", "final_metrics": numbers, "base_metrics": base_numbers, "judged_by": judged}
    run.write_record({**record, **times, "losses": {"val/loss": 1 - rate}})


if __name__ == "__main__":
    main()
