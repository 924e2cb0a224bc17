"""Keep of a study's report what its claims rest on, as a table that is committed beside this file.

python -m tests.study.findings.keep mechanisms_markov --also activations/effective_rank/all kl/forward/markov/old
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(__file__).resolve().parent


def study(name: str) -> dict[str, Any]:
    """The file of a study."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "studies" / f"{name}.yaml").read_text("utf-8"))
    return content


def numbers_of_claims(content: dict[str, Any]) -> set[str]:
    """Names of the numbers that a study's claims are about."""
    read = content.get("read") or {}
    names = {read[key] for key in ("learning", "forgetting") if key in read}
    for claim in content["claims"].values():
        names |= {claim["metric"]} if "metric" in claim else set()
        names |= set((claim.get("columns") or {}).get("metric", []))
    return names | {name.replace("retain/", "forget/", 1) for name in names}


def main() -> None:
    """Write ``NAME.csv.gz``: a row for every finished cell of a stage that a claim reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--also", nargs="*", default=[], help="further numbers")
    given = parser.parse_args()
    name = given.name
    content = study(name)
    stages = {claim.get("stage") or content["read"]["stage"] for claim in content["claims"].values()}
    wanted = numbers_of_claims(content) | set(given.also)
    with open(ROOT / content["output"] / "report" / "results.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "finished" and row["stage"] in stages]
    columns = [c for c in rows[0] if c in ("name", "stage") or c.startswith("axis.") or c in wanted]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = FOLDER / f"{name}.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode("utf-8"), mtime=0))
    print(f"wrote {path}: {len(rows)} rows, {len(columns)} columns, {path.stat().st_size} bytes")
    if content.get("read", {}).get("level") is not None:
        keep_fronts(name, content, {row["name"] for row in rows})


def keep_fronts(name: str, content: dict[str, Any], cells: set[str]) -> None:
    """Write ``NAME.fronts.csv.gz``: learned, kept and lost at every measured step and share of the way."""
    read = content["read"]
    names = [read["learning"], read["forgetting"], read["forgetting"].replace("retain/", "forget/", 1)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "point", *names])
    n_points = 0
    with gzip.open(ROOT / content["output"] / "report" / "steps.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ways = {key.split("/")[1] for key in row if key.startswith("interpolated/")}
            prefixes = {
                f"step {row['step']}": "",
                **{f"{way} of the way": f"interpolated/{way}/" for way in sorted(ways)},
            }
            for point, prefix in prefixes.items():
                numbers = [row.get(prefix + wanted, "") for wanted in names]
                if row["name"] in cells and all(numbers):
                    writer.writerow([row["name"], point, *numbers])
                    n_points += 1
    path = FOLDER / f"{name}.fronts.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode("utf-8"), mtime=0))
    print(f"wrote {path}: {n_points} points, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
