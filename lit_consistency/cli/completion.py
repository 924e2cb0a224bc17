"""``python -m lit_consistency completion bash``: a script with which a shell completes commands, options and files.

The script is plain text, made once: nothing is imported while somebody types.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from lit_consistency.cli.commands import FILES, TRAINING

SHELLS = ("bash", "zsh")
USAGE = """\
usage: lit_consistency completion bash|zsh

Prints a script; to use it now, and in every shell from now on:

  source <(lit-consistency completion bash)
  lit-consistency completion bash >> ~/.bashrc
"""
SCRIPT = """\
_lit_consistency() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=( $(compgen -f -- "$word") ); fi
}}
complete -o filenames -F _lit_consistency lit-consistency
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main(argv: list[str]) -> None:
    """Print the script for a shell; exit status 2 for another."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        print(f"error: completion {' '.join(argv)}: expected one of {', '.join(SHELLS)}", file=sys.stderr)
        sys.exit(2)
    print((ZSH if argv[0] == "zsh" else "") + script(), end="")


def script() -> str:
    """The script for bash, which zsh runs too."""
    words = {command: _options(command) for command in FILES if command not in (*TRAINING, "completion")}
    words |= _training_options(TRAINING)
    cases = "\n".join(f'    {command}) words="{" ".join(options)}" ;;' for command, options in sorted(words.items()))
    return SCRIPT.format(commands=" ".join(FILES), cases=cases)


def _options(command: str) -> list[str]:
    module: Any = import_module(f"lit_consistency.cli.{FILES[command]}")
    if command == "analyze":
        return _words(module.parser([]))
    parser = getattr(module, "parser", None) or getattr(module, "_parser", None)
    return _words(parser()) if parser is not None else ["--help"]


def _training_options(commands: tuple[str, ...]) -> dict[str, list[str]]:
    """Of the commands of one parser, with the options of the package's own classes."""
    from lit_consistency.cli.fit import parsers
    from lit_consistency.cli.suggestions import class_options

    of_classes = sorted({f"--{key}" for keys in class_options().values() for key in keys})
    made = parsers()
    return {command: [*_words(made[command]), *of_classes] for command in commands}


def _words(parser: ArgumentParser) -> list[str]:
    return sorted({option for action in parser._actions for option in action.option_strings if option[:2] == "--"})
