"""``export --budget``: choose a model by measuring, between base and finetuned or among the steps of a run.

What is asked is what the run itself watched, read from the ``config.yaml`` beside its model by the parser of ``fit``'s
keys, with its world, limits and formats; or what the call names by ``--learn`` and ``--retain``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace

from lit_consistency.cli.overlays import OverlayParser, last_part
from lit_consistency.cli.parser import reason
from lit_consistency.cli.world import with_world
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.data.worlds import World
from lit_consistency.evaluation.dial import ALPHAS, Budget, Dial, DialSet, between, in_folders, steps_of, turn
from lit_consistency.evaluation.dial_report import write_dial
from lit_consistency.evaluation.tables import print_dial
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model import check_checkpoint_dir, export_hf, export_interpolated, model_config, weights_hash
from lit_consistency.model.to_hf import hf_config
from lit_consistency.records.atomic import check_free, new_folder
from lit_consistency.records.model_folder import OPTIMIZER_STATE
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.tasks.suite import NAME as SUITE
from lit_consistency.tasks.suite import OWN_SAMPLES
from lit_consistency.tasks.watched import WatchedTask, held_out_task

OUTSIDE = 3
"""Exit status where no candidate keeps to the budget."""


def export_best(arguments: Namespace, command: str, turn_ends: Any) -> Path:
    """Measure the candidates, say what each learned and forgot, and write the best; exits with 3 where there is none.

    Args:
        arguments: of ``export``.
        command: for the provenance.
        turn_ends: of a model folder, see ``export_hf``.
    """
    to, out_dir = arguments.to, Path(arguments.out_dir)
    check_free(out_dir, arguments.overwrite)
    run = _run_of(Path(arguments.checkpoint_dir))
    base = _base(arguments, run)
    folders: dict[str, Path] = {}
    if arguments.steps is not None:
        if run is None or Path(arguments.checkpoint_dir).resolve() != run.path.resolve():
            raise ValueError(f"checkpoint_dir = {arguments.checkpoint_dir}: expected the folder of a run with --steps")
        folders = steps_of(run, base)
        finetuned = list(folders.values())[-1]
    else:
        finetuned = base_folder(arguments.checkpoint_dir)
        check_checkpoint_dir(finetuned)
    if to == "hf":  # refuses before anything is measured
        hf_config(model_config(None, finetuned, {}, None))
    sets = _sets(arguments, run, finetuned)
    budget, most = Budget(arguments.budget, sets), _most(arguments.most, sets)
    alphas = ALPHAS if arguments.interpolate == ["auto"] else sorted(map(float, arguments.interpolate or []))
    candidates = in_folders(folders) if folders else between(base, finetuned, alphas)
    folder = arguments.dial_dir or out_dir.with_name(f"{out_dir.name}-dial")
    dial = turn(candidates, sets, budget, most, finetuned, folder, say=_say)
    axis = "step" if folders else "alpha"
    print_dial(dial, f"{axis}, against {base}")
    about = {"base": str(base), "checkpoint_dir": str(arguments.checkpoint_dir), "command": command}
    for line in [*write_dial(dial, folder, axis, about), f"wrote {folder}"]:
        _say(line)
    _stop_outside(dial, axis)
    assert dial.best is not None
    chosen = dial.best.candidate
    _say(f"{chosen.name if folders else f'alpha {chosen.name}'} learned most of {most} within the budget")
    if not folders:
        export_interpolated(
            base,
            finetuned,
            [chosen.at],
            out_dir,
            to,
            arguments.overwrite,
            command=command,
            turn_ends=turn_ends(finetuned) if to == "hf" else (),
            max_shard_size=arguments.max_shard_size,
        )
    elif to == "hf":
        model = folders[chosen.name]
        export_hf(model, out_dir, arguments.overwrite, turn_ends(model), arguments.max_shard_size)
    else:
        with new_folder(out_dir, arguments.overwrite) as unfinished:
            ignored = shutil.ignore_patterns(OPTIMIZER_STATE, ".*")
            shutil.copytree(folders[chosen.name], unfinished, dirs_exist_ok=True, ignore=ignored)
    return out_dir


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _stop_outside(dial: Dial, axis: str) -> None:
    """Exit with 3 where no candidate keeps to the budget."""
    if dial.best is not None:
        return
    nearest = dial.nearest
    over = [
        f"{name} by {nearest.changes[name].value:.4g} ({bound})"
        for name, judged in nearest.verdicts.items()
        for bound, verdict in judged
        if verdict == "breached"
    ]
    _say(
        f"no {axis} keeps to the budget, nothing is written; the nearest is {nearest.candidate.name}: {', '.join(over)}"
    )
    sys.exit(OUTSIDE)


def _run_of(path: Path) -> RunFolder | None:
    """The run whose folder, model, adapters, or model of a step this is; None where it is no run's."""
    path = path.resolve()
    for folder in (path, path.parent, path.parent.parent):
        run = RunFolder(folder)
        if run.record_file.is_file() and run.config_file.is_file():
            return run
    return None


def _base(arguments: Namespace, run: RunFolder | None) -> Path:
    """The base that the call names, else the one that the run started from, if it is still there."""
    if arguments["with"] is not None:
        base = base_folder(arguments["with"], "with")
        check_checkpoint_dir(base, option="with")
        return base
    record = run.read_record() if run is not None else {}
    if not record.get("base"):
        raise ValueError(f"with: {arguments.checkpoint_dir} knows no base; expected --with BASE")
    base = base_folder(Path(record["base"]), "with")
    check_checkpoint_dir(base, option="with")
    if (digest := weights_hash(base)) != record.get("base_hash"):
        raise ValueError(
            f"with: {base} has weights of SHA-256 {digest}, and the run started from {record.get('base_hash')}; "
            "expected --with BASE, where it is now"
        )
    return base


def _most(name: str | None, sets: list[DialSet]) -> str:
    learned = [entry.name for entry in sets if entry.kind == "learn"]
    if name is not None and name not in learned:
        raise ValueError(f"most = {name!r}: expected one of {', '.join(learned)}")
    return learned[0] if name is None else name


# -------------------- what is asked


def _sets(arguments: Namespace, run: RunFolder | None, model: Path) -> list[DialSet]:
    """The sets that the call names, and of the kind that it does not name those of the run."""
    config = run.read_config() if run is not None else {}
    forgetting = dict(config.get("forgetting") or {})
    watched = {kind: forgetting.get(kind) for kind in ("learn", "retain")}
    if run is not None:
        watched["retain"] = _without_own_samples(watched["retain"], run.read_record().get("judged_by") or {})
    for kind in watched:
        if (named := arguments[kind]) is not None:
            by_name = {last_part(task): {"task": task, "limit": arguments.limit or 0} for task in named}
            watched[kind] = by_name
            if len(by_name) < len(named):
                raise ValueError(f"{kind} = {named}: expected tasks whose last parts differ, by which they are called")
    is_held_out = watched["learn"] is None and run is not None
    built = _built({"world": config.get("world"), "data": config.get("data"), "forgetting": watched}, is_held_out)
    sets = [_set(kind, name, how) for kind in watched for name, how in (built["forgetting"][kind] or {}).items()]
    data = built["data"]
    if data is not None and data.validation is not None:  # as the run itself has done
        prepared = held_out_task(data, Tokenizer(model), model_config(None, model, {}, None).block_size)
        sets.insert(0, DialSet("learn", prepared.task.name, prepared.watched, prepared.task))
    names = {kind: [entry.name for entry in sets if entry.kind == kind] for kind in watched}
    for kind, there in names.items():
        if not there:
            raise ValueError(f"{kind}: the run watched no such set; expected --{kind} TASK")
    if twice := sorted({*names["learn"]} & {*names["retain"]}):
        raise ValueError(f"learn, retain: {twice[0]} stands in both; expected a name in one of the two")
    return sets


def _without_own_samples(retain: Any, judged_by: Mapping[str, Any]) -> Any:
    """The retained sets of a run; of the package's suite those that can be asked of one model after the other.

    Args:
        retain: ``forgetting.retain`` of the run; None: the suite, of which the run's record names what was watched.
        judged_by: of run.json.
    """
    if retain is None:
        names = [key.removeprefix("retain/") for key in judged_by if key.startswith("retain/")]
        retain = {name: {"task": f"{SUITE}/{name.removeprefix(f'{SUITE}_')}"} for name in names}
    tasks = {name: (how or {}).get("task") or name for name, how in retain.items()}
    own = [name for name, task in tasks.items() if task in (OWN_SAMPLES, f"{SUITE}/{OWN_SAMPLES}")]
    if own:
        _say(f"{own[0]}: not asked here, the base's own texts belong to a run; see forget/{own[0]} of the run")
    return {name: how for name, how in retain.items() if name not in own}


def _set(kind: Any, name: str, how: WatchedTask) -> DialSet:
    try:
        return DialSet(kind, name, how, replace(how.load(name), name=name))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{kind}.{name}: {error}") from None


def _built(config: dict[str, Any], with_data: bool) -> Any:
    """World, watched tasks and, where asked for, data of a run's configuration, built as ``fit`` builds them."""
    parser = OverlayParser(exit_on_error=False)
    parser.add_argument("--world", type=World | None)
    parser.add_argument("--data", type=TokenData | None)
    for kind in ("learn", "retain"):
        parser.add_argument(f"--forgetting.{kind}", type=dict[str, WatchedTask] | None)
    try:
        parsed = with_world(parser.parse_object(config))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"learn, retain: {reason(str(error))}") from None
    if not with_data:
        parsed["data"] = None
    return parser.instantiate_classes(parsed)
