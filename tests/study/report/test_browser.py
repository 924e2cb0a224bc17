"""The page in a real browser: no error, no overflow, nothing clipped, and it does what it promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.study.report.page import write_page
from tests.study.report.synthetic import HOSTILE, content

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# stands before everything else of the page, so that no error escapes it
WATCH = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
for (const name of ["error", "warn"]) console[name] = (...words) => errors.push(words.join(" "));
</script>"""
CHECK = (Path(__file__).parent / "check_page.js").read_text(encoding="utf-8")
# headless Chromium gives no window narrower than 500, a frame may have any width
OUTER = """<!doctype html><meta charset="utf-8"><body style="margin: 0">
<iframe src="page.html" width="{width}" height="900" style="border: 0"></iframe><pre id="found"></pre><script>
addEventListener("message", (event) => {{ document.getElementById("found").textContent = event.data; }});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_in_a_browser(tmp_path: Path, width: int, theme: str) -> None:
    study = content(seeds=10)
    html = write_page(study, tmp_path).read_text(encoding="utf-8")
    page = html.replace("<head>", "<head>" + WATCH, 1).replace(
        "</body>", f"<script>{CHECK.replace('THEME', theme)}</script></body>"
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "outer.html").write_text(OUTER.format(width=width), encoding="utf-8")
    found = in_browser(tmp_path / "outer.html", width)

    assert found.get("failed") is None
    assert found["errors"] == []
    assert found["hostile"]
    assert found["width"] == width
    assert (found["overflow"], found["overflowOpen"]) == (0, 0)
    assert (found["clipped"], found["overlapping"]) == ([], [])
    assert found["font"] > 10  # height of the line of the smallest text
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[theme]
    other = {"light": ["dark", "rgb(20, 23, 28)"], "dark": ["light", "rgb(255, 255, 255)"]}[theme]
    assert found["theme"] == other

    assert (found["rows"], found["count"]) == (50, "500 cells")
    assert sorted(found["filtered"]) == sorted(
        c.name for c in study.cells if all(w in c.name for w in ("muon", "lr0.002", "s7")) and c.name.endswith("s7")
    )
    diverged = sum(c.state == "diverged" for c in study.cells)
    assert found["diverged"] == [f"{diverged} of 500 cells", 1]
    finished = sorted(
        c.metrics["forget/old_people"] for c in study.cells if c.state == "finished" and c.stage == "finetune"
    )
    assert found["ascending"] == pytest.approx(finished[:50], rel=1e-3)
    assert found["descending"] == pytest.approx(finished[::-1][:50], rel=1e-3)
    assert found["sorted"] == "forget/old_people"

    failed = next(c for c in study.cells if c.state == "failed")
    is_open, text, right, scrolls = found["dialog"]
    assert is_open
    assert (right, scrolls) == (0, 0)
    for part in (failed.name, failed.error, failed.config, failed.command, HOSTILE):
        assert part in text
    assert found["hash"] == "#cell/"
    assert found["curves"] == 6
    assert found["dimmed"]


def in_browser(page: Path, width: int) -> dict[str, Any]:
    """What the page's own check found."""
    command = [
        str(BROWSER),
        "--headless",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={max(width, 500)},1000",
    ]
    command += ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    command += [
        f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        page.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    text = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert text, result.stderr
    assert text[1], f"the check gave no answer: {result.stderr[-2000:]}"
    return json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
