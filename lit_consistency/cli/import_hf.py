"""``python -m lit_consistency import ORG/MODEL``: a model of the hub, or of a folder, in LitGPT's format.

The rooms below are imported when the options have been read, so that ``--help`` and a mistake do not wait for torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_consistency.cli.parser import ShortErrors, command_parser

if TYPE_CHECKING:
    from lit_consistency.model.from_hf import Imported

COMMAND = "python -m lit_consistency import"
CHECKPOINTS = Path("checkpoints")


def main(argv: list[str]) -> None:
    """Write what ``argv``, all that follows ``import``, asks for; a user's error exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    from rich.console import Console
    from rich.progress import Progress

    from lit_consistency.model.from_hf import import_model
    from lit_consistency.model.from_hf.hub import REPOSITORY, fetch

    source, revision = arguments.source, arguments.revision
    try:
        if Path(source).is_dir():
            if revision is not None:
                raise ValueError(f"revision = {revision}: expected none with a folder; it is of a model of the hub")
            folder, name, organization = Path(source), Path(source).resolve().name, None
        elif REPOSITORY.fullmatch(source):
            folder, revision = fetch(source, revision)
            organization, name = source.split("/")
        else:
            raise ValueError(f"source = {source}: expected ORG/MODEL of the hub, or a folder; there is no such folder")
        out_dir = arguments.to or CHECKPOINTS / (organization or "") / name
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("weights")
            imported = import_model(
                folder,
                out_dir,
                name=name,
                organization=organization,
                revision=revision,
                overwrite=arguments.overwrite,
                command=" ".join([COMMAND, *argv]),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"wrote {out_dir}: {_summary(imported)}", file=sys.stderr)


def _summary(imported: Imported) -> str:
    from lit_consistency.model.tying import is_tied

    config = imported.config
    tied = ", embedding and head are one weight (tied)" if is_tied(config) else ""
    return f"{config.name}, {imported.n_parameters:,} parameters in {imported.dtype}{tied}"


def _parser() -> ShortErrors:
    parser = command_parser(
        "import",
        "Write a model of the Hugging Face hub, or of a folder that transformers loads, in LitGPT's format, so that "
        "--model.checkpoint_dir takes it. Nothing in it is executed.",
    )
    parser.add_argument("source", type=str, help="ORG/MODEL on the hub, or a folder with config.json and weights.")
    parser.add_argument(
        "--revision", type=str, default=None, help="Commit, branch or tag on the hub; the newest when not given."
    )
    parser.add_argument(
        "--to", type=Path, default=None, help="The folder to write; checkpoints/ORG/MODEL when not given."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a model that stands there.")
    return parser
