"""``python -m lit_consistency export --checkpoint_dir DIR --to hf --out_dir OUT``; adapters, and models between two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lit_consistency.cli.parser import ShortErrors, command_parser
from lit_consistency.data.tokens.prompts import chat_template, end_of_turn
from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.methods.adapters import is_adapters, merge_adapters
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.methods.peft import export_peft
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
        if _export_adapters(arguments):
            print(f"wrote {out_dir}", file=sys.stderr)
            return
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


def _export_adapters(arguments: Any) -> bool:
    """Write adapters merged, or for PEFT; false where the call asks for neither."""
    to, adapters, base = arguments.to, arguments.checkpoint_dir, arguments["with"]
    if arguments.base_model is not None and to != "peft":
        raise ValueError(f"base_model with --to {to}: expected --to peft, whose configuration names it")
    if to == "peft" and (arguments.interpolate is not None or not is_adapters(adapters)):
        more = "" if arguments.interpolate is None else ", and no --interpolate"
        raise ValueError(f"to = peft, checkpoint_dir = {adapters}: expected adapters of LoRA, as RUN/adapters{more}")
    if arguments.interpolate is not None or not is_adapters(adapters) or (to == "hf" and base is None):
        return False
    if to == "hf":
        raise ValueError("to = hf with adapters and --with: expected --to litgpt first, and --to hf of what it writes")
    base = base_folder(base, "with") if base is not None else None
    if to == "litgpt":
        merge_adapters(adapters, arguments.out_dir, base, arguments.overwrite)
    elif export_peft(adapters, arguments.out_dir, base, arguments.base_model, arguments.overwrite) is None:
        print(
            "adapter_config.json names no base, which was trained here: export it with --to hf, and give its folder as "
            "--base_model",
            file=sys.stderr,
        )
    return True


def _parser() -> ShortErrors:
    parser = command_parser(
        "export", "Write a model in the format of another library, or one between a base and a finetuned model."
    )
    parser.add_argument(
        "--checkpoint_dir",
        type=Path,
        required=True,
        help="Model folder in LitGPT's format, the finetuned one; or a step of a run, as RUN/checkpoints/step-100; or "
        "the adapters of a LoRA run, RUN/adapters.",
    )
    parser.add_argument(
        "--to",
        choices=("hf", "litgpt", "peft"),
        default="hf",
        help="hf: a folder that transformers loads. litgpt: LitGPT's; adapters are merged onto their base. peft: "
        "adapters as PEFT loads them, onto the base that transformers loads.",
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
        "--with",
        type=Path,
        metavar="BASE",
        help="Folder of the base that checkpoint_dir started from; of adapters, if it is not where the run had it.",
    )
    parser.add_argument(
        "--base_model",
        metavar="NAME",
        help="With --to peft: what adapter_config.json names as the base, a name on the hub or a folder that "
        "transformers loads. Not given, the name from which the base was downloaded.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a model that stands at out_dir.")
    return parser
