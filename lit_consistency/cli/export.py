"""``python -m lit_consistency export --checkpoint_dir DIR --to hf --out_dir OUT``; adapters, and models between two.

Which of several models is written may be left to a budget on forgetting, see dial.py. The rooms below are imported when
the options have been read, so that ``--help`` and a mistake do not wait for torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lit_consistency.cli.parser import ShortErrors, command_parser
from lit_consistency.records.model_folder import MAX_SHARD_SIZE, VOCABULARIES

COMMAND = "python -m lit_consistency export"
OF_BUDGET = ("learn", "retain", "most", "dial_dir", "limit")
"""Options that a budget alone asks for."""


def main(argv: list[str]) -> None:
    """Write what ``argv``, all that follows ``export``, asks for; a user's error exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    checkpoint_dir, out_dir, overwrite = arguments.checkpoint_dir, arguments.out_dir, arguments.overwrite
    try:
        _check_choice(arguments)
        if arguments.budget is not None:
            from lit_consistency.cli.dial import export_best  # the evaluation's imports are not for every export

            print(f"wrote {export_best(arguments, ' '.join([COMMAND, *argv]), _turn_ends)}", file=sys.stderr)
            return
        from lit_consistency.methods.base_folder import base_folder
        from lit_consistency.model.export import export_hf
        from lit_consistency.model.interpolation import export_interpolated

        base_dir, shares = arguments["with"], _shares(arguments.interpolate)
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


def _shares(texts: list[str] | None) -> list[float] | None:
    try:
        return None if texts is None else [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"interpolate = {' '.join(texts or [])}: expected numbers from 0 to 1, or auto") from None


def _turn_ends(checkpoint_dir: Path) -> tuple[int, ...]:
    """The token with which the chat template ends a turn; transformers and vLLM go on past it unless they are told."""
    if not any((checkpoint_dir / name).is_file() for name in VOCABULARIES):
        return ()
    from lit_consistency.data.tokens.prompts import chat_template, end_of_turn
    from lit_consistency.data.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer(checkpoint_dir)
    if tokenizer.chat_template is None or tokenizer.backend != "huggingface":
        return ()
    return end_of_turn(tokenizer, chat_template(tokenizer))


def _export_adapters(arguments: Any) -> bool:
    """Write adapters merged, or for PEFT; false where the call asks for neither."""
    from lit_consistency.methods.adapters import is_adapters, merge_adapters
    from lit_consistency.methods.base_folder import base_folder
    from lit_consistency.methods.peft import export_peft

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
        nargs="+",
        metavar="A",
        help="WiSE-FT: the weights (1 - A) * base + A * checkpoint_dir, so 0 is the base and 1 the finetuned model. "
        "Several numbers write OUT/A for each. Needs --with. With --budget, auto or several numbers: the best of them.",
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
    _add_choice(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replace a model that stands at out_dir.")
    return parser


def _add_choice(parser: ShortErrors) -> None:
    """The options that choose, on the parser of ``export``."""
    parser.add_argument(
        "--budget",
        help="Choose by measuring: bounds on how much worse retained sets may be than in the base, as "
        "'old_people<=0.05, old_text<=0.1' (and on how much better learned ones must be, as 'new_people>=0.5'). Of "
        "--interpolate auto (A = 0.2, 0.4, 0.6, 0.8, 1, or the numbers given) or --steps auto, the model is written "
        "that learned most of those whose changes do not lie beyond a bound with their whole 95%% interval; where "
        "there is none, nothing is written and the exit status is 3. Table, picture and items go to OUT-dial.",
    )
    parser.add_argument(
        "--steps",
        choices=("auto",),
        help="With --budget, and a run's folder as checkpoint_dir: choose among the models of its series, of its "
        "checkpoints, and its last one.",
    )
    for kind in ("learn", "retain"):
        parser.add_argument(
            f"--{kind}",
            nargs="+",
            metavar="TASK",
            help=f"With --budget: tasks that are to be {kind}ed, as names of configs/evaluation or task files; not "
            "given, those that the run watched.",
        )
    parser.add_argument("--limit", type=int, metavar="N", help="With --learn and --retain: questions of each at most.")
    parser.add_argument(
        "--most", metavar="NAME", help="With --budget: the learned set by which the best is taken; the first."
    )
    parser.add_argument(
        "--dial_dir",
        type=Path,
        metavar="DIR",
        help="With --budget: folder of dial.png, dial.svg, dial.csv, dial.json and of all items, in place of OUT-dial; "
        "what stands there is not measured again.",
    )


def _check_choice(arguments: Any) -> None:
    """ValueError for options that have no effect, or do not fit each other."""
    auto = arguments.interpolate == ["auto"]
    if arguments.budget is None:
        if auto or arguments.steps is not None:
            option = "interpolate" if auto else "steps"
            raise ValueError(f"{option} = auto: expected --budget too, by which one is chosen; see --help")
        if idle := [key for key in OF_BUDGET if arguments[key] is not None]:
            raise ValueError(f"{idle[0]}: expected --budget too; without it nothing is measured")
        return
    if (arguments.steps is None) == (arguments.interpolate is None):
        raise ValueError(f"budget = {arguments.budget!r}: expected either --interpolate auto or --steps auto with it")
    if not auto:
        _shares(arguments.interpolate)
    if arguments.to == "peft":
        raise ValueError("to = peft with --budget: expected --to litgpt or --to hf")
    if arguments.limit is not None and (arguments.limit < 1 or arguments.learn is arguments.retain is None):
        raise ValueError(f"limit = {arguments.limit}: expected at least 1, with --learn or --retain")
