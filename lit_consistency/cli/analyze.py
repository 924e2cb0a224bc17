"""``python -m lit_consistency analyze``: the options. What they do stands in analysis/core/run.py.

Options are parsed in two steps: the analyses that ``--what`` names bring their own options (``--updates.rank 8``), so
only these are imported.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from lit_consistency.cli.parser import ShortErrors, command_parser, plain_options

DESCRIPTION = """\
Why a model forgets: what a training did to its weights, activations, predictions and to the loss around it.

  analyze --model checkpoints/runs/NAME/model --what updates kl --text biographies/old_people --output results/NAME
  analyze --models RUN_A/model RUN_B/model --base BASE --what landscape --text markov/old --output results/both
  analyze --series checkpoints/runs/NAME --what attention_rank --output results/series
  analyze --what updates --help        (the options of this analysis too)
"""
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("what", list[str], [], "which analyses; each is one file in lit_consistency/analysis"),
    ("model", Path, None, "model folder in LitGPT's format, or a step of a run, as RUN/checkpoints/step-100"),
    ("models", list[Path], [], "further models, analysed alike; --model is the last one"),
    ("series", Path, None, "folder of a run: all models of its series (checkpoint.series), and its last one"),
    ("base", Path, None, "model from which they were trained; when not given, the one that their provenance names"),
    (
        "text",
        list[str],
        [],
        "tasks of configs/evaluation (as biographies/old_people), task files, or files of text; the first is what the "
        "models should retain",
    ),
    ("limit", int, 0, "items of each text at most, drawn by the seed (of documents the first windows); 0: all"),
    ("world", dict[str, Any] | None, None, "fields of the world that texts of a world come from, as '{seed: 1}'"),
    ("data_dir", Path | None, None, "takes the place of the folder data/ of the task files"),
    ("batch_tokens", int, 16384, "padded tokens in one forward; lower it when memory runs out"),
    ("device", str, "auto", "auto, cpu, cuda, cuda:1, ..."),
    ("precision", str, "auto", "of loaded models: auto (that of the weights file), float32, bfloat16, float16"),
    ("seed", int, 0, "of all draws"),
    ("title", str, "Why it forgets", "of the page"),
    (
        "output",
        Path | None,
        None,
        "folder for tables, figures, index.html and TensorBoard; an interrupted run goes on there",
    ),
)


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2, an interrupt with 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = parser(argv)
    given = command.parse_args(_lists_joined(argv)).as_dict()
    given.pop("config")
    names = _split(given["what"])
    try:
        _run(command, given, names, argv)
    except KeyboardInterrupt:
        kept = f"; what is finished stands in {given['output']}" if given["output"] and given["output"].exists() else ""
        print(f"interrupted{kept}", file=sys.stderr)
        sys.exit(130)


def checked(argv: list[str]) -> dict[str, Any]:
    """Complete options of a call, those of its analyses checked; nothing is read.

    Raises:
        ValueError: an option of an analysis is out of its range.
    """
    from lit_consistency.analysis.core.find import find

    given = parser(argv).parse_args(_lists_joined(argv)).as_dict()
    for name in _split(given["what"]):
        find(name)(**plain_options(given.get(name) or {}))
    return given


def parser(argv: list[str]) -> ShortErrors:
    """All options, those of the named analyses among them."""
    command = _plain_parser()
    names = _named(argv)
    if not names:
        return command
    from lit_consistency.analysis.core.find import find

    for name in names:
        try:
            command.add_class_arguments(find(name), name, fail_untyped=True)
        except ValueError as error:
            command.error(str(error))
    return command


def _plain_parser() -> ShortErrors:
    command = command_parser("analyze", DESCRIPTION + "\nanalyses:\n" + _analyses())
    command.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    for name, kind, default, text in OPTIONS:
        several: dict[str, Any] = {"nargs": "*"} if getattr(kind, "__origin__", None) is list else {}
        kind = kind.__args__[0] if several else kind
        command.add_argument(f"--{name}", type=kind, default=default, help=text, **several)
    return command


def _analyses() -> str:
    import ast

    folder = Path(__file__).resolve().parent.parent / "analysis"
    lines = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem != "__init__":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines[path.stem] = text.partition("\n")[0]
    return "".join(f"  {name:<20} {line}\n" for name, line in lines.items())


def _named(argv: list[str]) -> list[str]:
    """The analyses that the command line or its configuration files name, before the rest is parsed."""
    import yaml

    found: list[str] = []
    option = ""
    for word in argv:
        if word.startswith("--"):
            option, _, word = word.partition("=")
            if option == "--what":
                found = []
        if option == "--what" and word and not word.startswith("--"):
            found += _split(yaml.safe_load(word) if word.startswith("[") else [word])
        if option == "--config" and word and Path(word).is_file():
            content = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
            named = content.get("what") if isinstance(content, dict) else None
            found = _split([named] if isinstance(named, str) else named or found)
    return list(dict.fromkeys(found))


def _lists_joined(argv: list[str]) -> list[str]:
    """``--NAME.FIELD a b`` as ``--NAME.FIELD=["a", "b"]``, which jsonargparse reads, where an analysis has a list."""
    import json
    from typing import get_args, get_origin, get_type_hints

    if not _named(argv):
        return argv  # without an analysis nothing is imported: --help is there at once
    from lit_consistency.analysis.core.find import find, names

    wanted = [name for name in _named(argv) if name in names()]
    lists = {
        f"--{name}.{key}"
        for name in wanted
        for key, kind in get_type_hints(find(name)).items()
        if list in [get_origin(one) for one in (kind, *get_args(kind))]
    }
    joined: list[str] = []
    words: list[str] | None = None
    for word in [*argv, "--"]:
        if word.startswith("--") and words:
            # what is written as YAML already stays as it is
            is_yaml = len(words) == 1 and (words[0].startswith("[") or words[0] == "null")
            joined[-1] += "=" + (words[0] if is_yaml else json.dumps(words))
        if word.startswith("--"):
            words = [] if word in lists else None
            joined.append(word)
        elif words is not None:
            words.append(word)
        else:
            joined.append(word)
    return joined[:-1]


def _split(names: list[str]) -> list[str]:
    return [name for text in names for name in text.split(",") if name]


def _run(command: ShortErrors, given: dict[str, Any], names: list[str], argv: list[str]) -> None:
    if not names:
        command.error(f"what: expected at least one analysis\n{_analyses()}")
    if given["output"] is None:
        command.error("output: expected a folder")
    from lit_consistency.analysis.core.find import find
    from lit_consistency.analysis.core.run import Options, analyze

    try:
        what = {name: find(name)(**plain_options(given.pop(name, {}) or {})) for name in names}
        given["what"] = what
        analyze(Options(**given, command=shlex.join(["python", "-m", "lit_consistency", "analyze", *argv])))
    except (ValueError, OSError) as error:
        command.error(str(error))
