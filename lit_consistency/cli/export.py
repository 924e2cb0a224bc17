"""``python -m lit_consistency export --checkpoint_dir DIR --to hf --out_dir OUT``, and models between two others."""

from __future__ import annotations

import sys
from pathlib import Path

from lit_consistency.cli.parser import ShortErrors, command_parser
from lit_consistency.data.tokens.prompts import chat_template, end_of_turn
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.model.export import MAX_SHARD_SIZE, export_hf
from lit_consistency.model.interpolation import export_interpolated
from lit_consistency.records.model_folder import VOCABULARIES

COMMAND = "python -m lit_consistency export"


def main(argv: list[str]) -> None:
    """Write what ``argv``, all that follows ``export``, asks for; a user's error exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    checkpoint_dir, out_dir, overwrite = arguments.checkpoint_dir, arguments.out_dir, arguments.overwrite
    base_dir, shares = arguments["with"], arguments.interpolate
    try:
        checkpoint_dir = base_folder(checkpoint_dir)
        if (base_dir is None) != (shares is None):
            given, other = ("--with", "--interpolate") if shares is None else ("--interpolate", "--with")
            raise ValueError(f"{given}: expected {other} too; see --help")
        turn_ends = _turn_ends(checkpoint_dir) if arguments.to == "hf" else ()
        if shares is not None:
            folders = export_interpolated(
                base_folder(base_dir, "with"),
                checkpoint_dir,
                shares,
                out_dir,
                arguments.to,
                overwrite,
                command=" ".join([COMMAND, *argv]),
                turn_ends=turn_ends,
                max_shard_size=arguments.max_shard_size,
            )
        elif arguments.to == "litgpt":
            raise ValueError("to = litgpt: expected --interpolate and --with too; checkpoint_dir is in that format")
        else:
            export_hf(checkpoint_dir, out_dir, overwrite, turn_ends, arguments.max_shard_size)
            folders = [out_dir]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    for folder in folders:
        print(f"wrote {folder}", file=sys.stderr)


def _turn_ends(checkpoint_dir: Path) -> tuple[int, ...]:
    """The token with which the chat template ends a turn; transformers and vLLM go on past it unless they are told."""
    if not any((checkpoint_dir / name).is_file() for name in VOCABULARIES):
        return ()
    tokenizer = Tokenizer(checkpoint_dir)
    if tokenizer.chat_template is None or tokenizer.backend != "huggingface":
        return ()
    return end_of_turn(tokenizer, chat_template(tokenizer))


def _parser() -> ShortErrors:
    parser = command_parser(
        "export", "Write a model in the format of another library, or one between a base and a finetuned model."
    )
    parser.add_argument(
        "--checkpoint_dir",
        type=Path,
        required=True,
        help="Model folder in LitGPT's format, the finetuned one; or a step of a run, as RUN/checkpoints/step-100.",
    )
    parser.add_argument(
        "--to", choices=("hf", "litgpt"), default="hf", help="hf: a folder that transformers loads. litgpt: LitGPT's."
    )
    parser.add_argument("--out_dir", type=Path, required=True, help="The folder to write.")
    parser.add_argument(
        "--max_shard_size",
        default=MAX_SHARD_SIZE,
        help=f"hf: of a file of weights, as {MAX_SHARD_SIZE}; a larger model is several files and an index.",
    )
    parser.add_argument(
        "--interpolate",
        type=float,
        nargs="+",
        metavar="A",
        help="WiSE-FT: the weights (1 - A) * base + A * checkpoint_dir, so 0 is the base and 1 the finetuned model. "
        "Several numbers write OUT/A for each. Needs --with.",
    )
    parser.add_argument(
        "--with", type=Path, metavar="BASE", help="Folder of the base that checkpoint_dir started from."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a model that stands at out_dir.")
    return parser
