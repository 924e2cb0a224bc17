"""``python -m lit_consistency export --checkpoint_dir DIR --to hf --out_dir OUT``; adapters, and models between two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lit_consistency.cli.parser import ShortErrors, command_parser
from lit_consistency.methods.adapters import is_adapters, merge_adapters
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.methods.peft import export_peft
from lit_consistency.model.export import export_hf
from lit_consistency.model.interpolation import export_interpolated

COMMAND = "python -m lit_consistency export"


def main(argv: list[str]) -> None:
    """Write what ``argv``, all that follows ``export``, asks for; a user's error exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    checkpoint_dir, out_dir, overwrite = arguments.checkpoint_dir, arguments.out_dir, arguments.overwrite
    base_dir, shares = arguments["with"], arguments.interpolate
    try:
        if arguments.base_model is not None and arguments.to != "peft":
            raise ValueError(f"base_model with --to {arguments.to}: expected --to peft, whose configuration names it")
        if shares is None and is_adapters(checkpoint_dir) and (arguments.to != "hf" or base_dir is not None):
            _export_adapters(arguments)
            folders = [out_dir]
        elif arguments.to == "peft":
            raise ValueError(
                f"to = peft, checkpoint_dir = {checkpoint_dir}: expected the adapters of a LoRA run, as RUN/adapters"
                + ("" if shares is None else ", and no --interpolate")
            )
        elif (base_dir is None) != (shares is None):
            given, other = ("--with", "--interpolate") if shares is None else ("--interpolate", "--with")
            raise ValueError(f"{given}: expected {other} too; see --help")
        elif shares is not None:
            folders = export_interpolated(
                base_folder(base_dir, "with"),
                base_folder(checkpoint_dir),
                shares,
                out_dir,
                arguments.to,
                overwrite,
                command=" ".join([COMMAND, *argv]),
            )
        elif arguments.to == "litgpt":
            raise ValueError("to = litgpt: expected --interpolate and --with too; checkpoint_dir is in that format")
        else:
            export_hf(base_folder(checkpoint_dir), out_dir, overwrite)
            folders = [out_dir]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    for folder in folders:
        print(f"wrote {folder}", file=sys.stderr)


def _export_adapters(arguments: Any) -> None:
    """Write adapters merged, or for PEFT."""
    adapters, out_dir, overwrite = arguments.checkpoint_dir, arguments.out_dir, arguments.overwrite
    base = base_folder(arguments["with"], "with") if arguments["with"] is not None else None
    if arguments.to == "hf":
        raise ValueError("to = hf with adapters and --with: expected --to litgpt first, and --to hf of what it writes")
    if arguments.to == "litgpt":
        merge_adapters(adapters, out_dir, base, overwrite)
    elif export_peft(adapters, out_dir, base, arguments.base_model, overwrite) is None:
        print(
            "adapter_config.json names no base, which was trained here: export it with --to hf, and give its folder as "
            "--base_model",
            file=sys.stderr,
        )


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
