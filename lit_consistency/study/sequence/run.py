"""A sequence of tasks: train on one after the other, ask all of them after each, and fill the matrix of scores.

Every training and every evaluation is a process of the command line. A run's folder bears a fingerprint of its
configuration, its data and the model before it, so what is finished is found again, what was interrupted is continued
by ``fit --ckpt_path auto``, and a changed plan never touches the runs of another. Given up: several runs at a time.

Source: Wang et al. 2023, TRACE, arXiv 2310.06762 (the protocol); Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lit_consistency import __version__
from lit_consistency.records.atomic import plain, write_json, write_text
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.model_folder import model_fingerprint
from lit_consistency.records.results import Result, read_result
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.shipped import shipped
from lit_consistency.study.execute.local import run_command
from lit_consistency.study.report.heat_map import draw_heat_map
from lit_consistency.study.sequence.matrix import FILE, Matrix, as_json, print_matrix, transfer
from lit_consistency.study.sequence.plan import SequencePlan, Stage, merged
from lit_consistency.study.sequence.tasks import OpenTasks, data_folder, open_tasks, result_keys

TASK_ROWS = "lit_consistency.tasks.TaskRows"


def _print(line: str) -> None:
    print(line, flush=True)  # a file shows it at once too


class Sequence:
    """A plan with its tasks opened; ``run`` does what is left to do.

    Args:
        plan: the sequence.
        say: takes one line for every stage.

    Raises:
        FileNotFoundError, ValueError: see ``open_tasks``.
    """

    def __init__(self, plan: SequencePlan, say: Callable[[str], None] = _print) -> None:
        self.plan = plan
        self.say = say
        self.tasks: OpenTasks = open_tasks(plan)
        names = [task.name for task in self.tasks.columns]
        stages = [task.name for task in self.tasks.stages]
        self.matrices = {
            name: Matrix(stages, names, [""] * len(names), {}) for name in result_keys(self.tasks.columns[0], plan)
        }
        self.lines: list[dict[str, Any]] = []

    def run(self) -> dict[str, Matrix]:
        """Train and evaluate every stage of every seed; the files are written anew after each."""
        for seed in self.plan.seeds:
            model = shipped(self.plan.base)
            self._add(seed, 0, self._evaluate(model, "base"))
            for k, stage in enumerate(self.plan.stages):
                started = time.monotonic()
                model, name = self._train(seed, k, stage, model)
                trained = time.monotonic()
                self._add(seed, k + 1, self._evaluate(model, name))
                self._write()
                self.say(self._line(seed, k, trained - started, time.monotonic() - trained))
        for name, matrix in self.matrices.items():
            print_matrix(name, matrix)
            picture = self.plan.output / f"matrix.{name.replace('/', '.')}.png"
            draw_heat_map(matrix, f"scores ({name}), more is better; seeds: {len(matrix.finished)}", picture)
        return self.matrices

    # -------------------- training

    def _train(self, seed: int, k: int, stage: Stage, model: Path) -> tuple[Path, str]:
        """The model of a stage and the name of its run; trained unless it stands there already."""
        config = self._config(seed, k, stage)
        mark = fingerprint_of(self._identity(seed, k, config, model))
        name = f"seed{seed}-{k + 1}-{self.tasks.stages[k].name[:50]}-{mark[:8]}"
        runs = self.plan.output / "runs"
        folder = RunFolder(runs / name)
        if folder.has_model:
            return folder.model, name
        # first the data, so that the files may add to them; last all of it, so that no file trains on other rows
        first, last = (self.plan.output / "configs" / f"{name}{ending}.yaml" for ending in (".data", ""))
        write_text(first, yaml.safe_dump({"data": config["data"]}, sort_keys=False))
        write_text(last, yaml.safe_dump(config, sort_keys=False))
        # what is kept is asked after every stage; a run of it watches only what the files name
        arguments = ["fit", "--forgetting.retain={}"]
        arguments += [f"--config={file}" for file in (first, *map(shipped, self.plan.fit.config), last)]
        arguments += [f"--seed_everything={seed}", f"--model.checkpoint_dir={model}", f"--run.root={runs}"]
        arguments += [f"--run.name={name}", "--ckpt_path=auto"]
        run_command(arguments, self.plan.output / "logs" / f"{name}.log")
        return folder.model, name

    def _config(self, seed: int, k: int, stage: Stage) -> dict[str, Any]:
        """What the stage adds to the files of ``fit.config``."""
        data: dict[str, Any] = {"rows": self._rows(k, seed)}
        if self.tasks.chat:
            data["prompt_style"] = "chat_template"
        if replay := self._replay(seed, k):
            data["replay"] = replay
        own = {"data": {"class_path": "lit_consistency.data.SFTData", "init_args": data}}
        return merged(own, self.plan.fit.options, stage.fit)

    def _rows(self, k: int, seed: int) -> dict[str, Any]:
        return {"class_path": TASK_ROWS, "init_args": {**self.tasks.rows[k], "seed": seed}}

    def _replay(self, seed: int, k: int) -> dict[str, Any] | None:
        """Earlier stages and text of pretraining, each with its share."""
        replay = self.plan.replay
        replayed: dict[str, Any] = {}
        shares: dict[str, float] = {}
        if replay.earlier_tasks:
            replayed = {self.tasks.stages[i].name: self._rows(i, seed) for i in range(k)}
            shares = dict.fromkeys(replayed, replay.earlier_tasks / max(k, 1))
        if replay.source is not None:
            replayed["pretraining"], shares["pretraining"] = replay.source, replay.pretraining
        if not replayed:
            return None
        return {"class_path": "lit_consistency.data.Replay", "init_args": {"parts": replayed, "share": shares}}

    def _identity(self, seed: int, k: int, config: dict[str, Any], model: Path) -> dict[str, Any]:
        """All that the stage's weights depend on."""
        return {
            "config": config,
            "files": [shipped(path).read_text(encoding="utf-8") for path in self.plan.fit.config],
            "rows": self.tasks.row_fingerprints[k],
            "replayed": self.tasks.row_fingerprints[:k] if self.plan.replay.earlier_tasks else [],
            "source": self.tasks.source_fingerprint,
            "seed": seed,
            "model": model_fingerprint(model),
            "version": __version__,
        }

    # -------------------- evaluation

    def _evaluate(self, model: Path, name: str) -> dict[str, list[Result]]:
        """Results of all tasks, by the names of the matrices; measured unless they stand there already."""
        options = self.plan.evaluation
        folder = self.plan.output / "evaluations" / name
        mark = fingerprint_of(
            {
                "asked": self.tasks.fingerprint,
                "options": {key: value for key, value in asdict(options).items() if key not in ("general", "device")},
                "model": model_fingerprint(model),
                "version": __version__,
            }
        )
        if _read(folder / "sequence.json").get("fingerprint") != mark:
            arguments = ["evaluate", f"--model={model}", "--tasks", *self.tasks.names, f"--output={folder}"]
            arguments += ["--format", *options.format, "--shots", *map(str, options.shots)]
            for key in ("limit", "seed", "batch_tokens", "device", "precision"):
                arguments.append(f"--{key}={getattr(options, key)}")
            arguments += data_folder(self.plan.data_dir)
            run_command(arguments, self.plan.output / "logs" / f"{name}.evaluate.log")
            write_json(folder / "sequence.json", {"fingerprint": mark})
        keys = [result_keys(task, self.plan) for task in self.tasks.columns]
        return {
            matrix: [read_result(folder / "results" / f"{by_matrix[matrix]}.json") for by_matrix in keys]
            for matrix in self.matrices
        }

    def _add(self, seed: int, row: int, results: dict[str, list[Result]]) -> None:
        """A row of every matrix, and a line of scores.jsonl for each of its numbers."""
        stage = self.tasks.stages[row - 1].name if row else "base"
        for name, by_task in results.items():
            matrix = self.matrices[name]
            matrix.metrics[:] = [
                result.metric if result.higher_is_better else f"-{result.metric}" for result in by_task
            ]
            scores = [result.value if result.higher_is_better else -result.value for result in by_task]
            matrix.scores.setdefault(seed, []).append(scores)
            for result, score in zip(by_task, scores, strict=True):
                line = {"matrix": name, "seed": seed, "row": row, "stage": stage, "task": result.task, "n": result.n}
                self.lines.append({**line, "score": score, "metric": result.metric, **result.metrics[result.metric]})

    # -------------------- output

    def _write(self) -> None:
        """``matrix.json`` and ``scores.jsonl``, each whole or not at all."""
        finished = all(len(matrix.finished) == len(self.plan.seeds) for matrix in self.matrices.values())
        content = {
            "base": str(self.plan.base),
            "seeds": self.plan.seeds,
            "finished": finished,
            "replay": asdict(self.plan.replay),
            "matrices": as_json(self.matrices),
        }
        write_json(self.plan.output / FILE, content)
        lines = (json.dumps(plain(line)) for line in self.lines)
        write_text(self.plan.output / "scores.jsonl", "".join(f"{line}\n" for line in lines))

    def _line(self, seed: int, k: int, fit_s: float, evaluation_s: float) -> str:
        """How far it is, by the first matrix."""
        matrix = next(iter(self.matrices.values()))
        rows = matrix.scores[seed]
        numbers = transfer(rows)
        transferred = f", BWT {numbers['backward_transfer']:+.3f}" if k else ""
        stage = f"seed {seed}, stage {k + 1} of {len(matrix.stages)}, {matrix.stages[k]}"
        scores = f"{rows[k][k]:.3f} -> {rows[k + 1][k]:.3f}, OP {numbers['overall_performance']:.3f}{transferred}"
        return f"{stage}: {scores} (fit {fit_s:.0f} s, evaluation {evaluation_s:.0f} s)"


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
