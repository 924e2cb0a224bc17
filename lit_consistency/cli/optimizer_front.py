"""Learned against forgotten of one optimizer at three rates beside AdamW: short runs of configs/quickstart.yaml."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.processes import bind_children
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.shipped import shipped

CONFIG = Path("configs/quickstart.yaml")
FACTORS = (1 / 3, 1.0, 3.0)
ADAMW = ("lit_consistency.optimizers.AdamW", {"lr": 3e-4})  # configs/optimizers/adamw.yaml
LEARNED, FORGOTTEN, TEXT = "learn/new_people", "retain/old_people", "retain/old_text"


def print_front(class_path: str, options: Mapping[str, Any], steps: int) -> bool:
    """Run and print a line for every rate.

    Args:
        class_path: of the optimizer.
        options: of its constructor; ``lr`` is the middle one of the rates.
        steps: of every run.

    Returns:
        Whether all runs have finished.

    Raises:
        ValueError: there is no rate to vary, or no quickstart here.
    """
    if not isinstance(options.get("lr"), int | float) or options["lr"] <= 0:
        raise ValueError(f"front: lr = {options.get('lr')}: expected a rate above 0, whose third and triple are tried")
    if steps < 1:
        raise ValueError(f"front_steps = {steps}: expected at least 1")
    if not Path(shipped(CONFIG)).is_file():
        raise ValueError(f"front: {CONFIG} is neither here nor in the package, which was installed without it")
    print(f"\n{2 * len(FACTORS)} runs of {CONFIG}, {steps} steps each:", flush=True)
    print(
        f"{'optimizer':<16} {'lr':>8}  {'new people learned':>18}  {'old people kept':>17}  old text, nats", flush=True
    )
    finished = True
    with tempfile.TemporaryDirectory() as folder:
        for path, given in ((class_path, dict(options)), ADAMW):
            for factor in FACTORS:
                lr = float(f"{given['lr'] * factor:.3g}")
                name = path.rpartition(".")[2]
                record, said = _fit(Path(folder), f"{name}-{lr:g}", path, {**given, "lr": lr}, steps)
                finished &= bool(record)
                print(f"{name:<16} {lr:>8.2g}  {_numbers(record) if record else f'failed: {said}'}", flush=True)
    return finished


def _fit(root: Path, name: str, path: str, options: Mapping[str, Any], steps: int) -> tuple[dict[str, Any], str]:
    """The record of a finished run, or nothing and the last line that it has said."""
    overlay = root / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"optimizer": {"class_path": path, "init_args": _plain(options)}}}))
    command = [sys.executable, "-m", "lit_consistency", "fit", f"--config={CONFIG}", f"--config={overlay}"]
    command += [f"--run.root={root}", f"--run.name={name}", f"--trainer.max_steps={steps}", "--checkpoint.at_end=false"]
    command += ["--forgetting.every_n_steps=0", "--trainer.enable_progress_bar=false"]
    # what can be imported here can be there: the class may lie in the working folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    bind_children(signal.SIGTERM, environment)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    folder = RunFolder(root / name)
    if run.returncode == 0 and folder.is_finished:
        return folder.read_record(), ""
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return {}, (errors or lines or [f"exit status {run.returncode}"])[-1]


def _plain(value: Any) -> Any:
    """Tuples as lists, as a configuration writes them."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _numbers(record: Mapping[str, Any]) -> str:
    now, before = record["final_metrics"], record["base_metrics"]
    pairs = [f"{now[key]:.3f} ± {now[f'{key}.stderr']:.3f}" for key in (LEARNED, FORGOTTEN)]
    return f"{pairs[0]:>18}  {pairs[1]:>17}  {now[TEXT] - before[TEXT]:+.2f}"
