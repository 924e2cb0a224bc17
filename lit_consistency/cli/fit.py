"""The command line of training: LightningCLI with the callbacks of every run, useful errors, and a guarded resume.

Overlays are composed left to right, ``LIT_CONSISTENCY_*`` environment variables come before configuration files. A
mistake in the call ends with exit status 2 and one line that names the key, before anything is written.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_consistency.callbacks import (
    ExactResume,
    Forgetting,
    KeptModel,
    PredictionWriter,
    Preemption,
    RunRecord,
    StepCheckpoint,
    Throughput,
)
from lit_consistency.callbacks.exact_resume import FinishingFitLoop
from lit_consistency.callbacks.front_picture import FrontPicture
from lit_consistency.callbacks.progress import bar_or_lines
from lit_consistency.callbacks.requeue import requeue, take_over_requeue
from lit_consistency.checkpointing.io import AtomicCheckpointIO
from lit_consistency.cli.branch import begin_branch, saved_branch
from lit_consistency.cli.fit_parser import Parser
from lit_consistency.cli.mistakes import check_environment, overridden, variables
from lit_consistency.cli.parser import reason
from lit_consistency.cli.prompt_style import settle_prompt_style
from lit_consistency.cli.resume import check_changes, find_checkpoint, has_finished
from lit_consistency.cli.trainer_options import check_trainer, sharded_options
from lit_consistency.data import TokenData
from lit_consistency.data.sft_data import style_line
from lit_consistency.data.worlds import World
from lit_consistency.loggers.metrics_file import MetricsFile
from lit_consistency.loggers.tensorboard import TensorBoardRunLogger
from lit_consistency.module import LitLanguageModel
from lit_consistency.optimizers.schedules import Branched
from lit_consistency.records.lease import only_writer
from lit_consistency.records.processes import bind_children

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the order of samples is ours
    "num_sanity_val_steps": 0,  # the forgetting callback measures everything at step 0
    "enable_model_summary": False,  # the table of parameter groups says more
    "log_every_n_steps": 10,
}


class ConsistencyCLI(LightningCLI):
    """LightningCLI whose runs have a folder, watch forgetting, and resume exactly."""

    asked_for: str | None = None  # the ckpt_path of the call; `auto` may have found none
    branch: dict[str, Any] | None = None  # where this run has branched off another, see begin_branch
    begins_branch = False
    requeue_signal: signal.Signals | None = None  # SLURM's, that the time of this job is nearly over

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks of every run, each with its own key."""
        parser.add_lightning_class_args(Forgetting, "forgetting")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(RunRecord, "run")  # after those whose numbers it records
        parser.add_lightning_class_args(StepCheckpoint, "checkpoint")
        parser.add_argument(
            "--world",
            type=World | None,
            default=None,
            help="Of which all sources, rows and watched tasks are that name no world of their own; "
            "--world.init_args.seed 1 is another one for all of them.",
        )
        parser.shares_world = True  # type: ignore[attr-defined]
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="Resume although the configuration differs from that of the checkpoint; the keys are listed.",
        )
        parser.add_argument(
            "--branch_from",
            type=str | None,
            default=None,
            help="Step checkpoint of another run, as RUN/checkpoints/step-1000, from which this one goes on in a "
            "folder of its own, with its optimizer's state, its place in the data and its count of steps. "
            "--model.schedule and --trainer.max_steps may differ: a new schedule runs over the steps of the branch "
            "alone, times the factor at the branch point, so Linear falls from there to 0. "
            "With --ckpt_path auto a branch is resumed.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a variable of the environment that no option has, or that has no effect, is told."""
        words = list(map(str, args)) if isinstance(args, list) else sys.argv[1:]
        check_environment(variables(parser._subcommands_action._name_parser_map))  # type: ignore[union-attr]
        for line in overridden(words, words[0] if words else ""):
            rank_zero_warn(line)
        super().parse_arguments(parser, args)
        if taken := settle_prompt_style(self.config[self.config.subcommand]):
            rank_zero_info(style_line(*taken))

    def _parse_ckpt_path(self) -> None:
        """Refuse a difference; Lightning would let the checkpoint win over the command line."""
        section, is_fit = self.config[self.config.subcommand], self.config.subcommand == "fit"
        if section.get("branch_from") and not is_fit:
            raise ValueError(f"branch_from = {section['branch_from']}: expected it with fit only")
        if section.get("ckpt_path"):
            self.asked_for = section["ckpt_path"]
            path = find_checkpoint(section)
            section["ckpt_path"] = str(path) if path else None
            if path is not None and is_fit:
                check_changes(path, self.dump(), allow=section["allow_changes"])
                self.branch = saved_branch(path)
        if section.get("branch_from") and not section.get("ckpt_path"):
            self.branch, self.begins_branch = begin_branch(section, self.dump()), True
            section["ckpt_path"] = self.branch["checkpoint"]

    def dump(self) -> str:
        """The complete configuration as YAML."""
        parser = self._parser(self.config.subcommand)
        return parser.dump(self.config[self.config.subcommand], skip_link_targets=False, skip_none=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints go into the run's folder."""
        record = self._get(self.config_init, "run")
        section = self.config[str(self.subcommand)]
        record.config_yaml = self.dump()
        record.resumed_from = None if self.begins_branch else section.get("ckpt_path")
        record.branched_from = self.branch
        record.allow_changes = section["allow_changes"]
        trainer = dict(self._get(self.config_init, "trainer"))
        if self.subcommand == "fit":
            check_trainer(trainer)
        added = [] if isinstance(trainer.get("logger"), bool) else _as_list(trainer.get("logger"))
        kwargs["logger"] = [*_loggers(record), *added] if self.subcommand == "fit" else added
        kwargs.setdefault("default_root_dir", str(record.directory))
        kwargs |= (sharded := sharded_options(trainer))
        plugins, self.requeue_signal = take_over_requeue(_as_list(trainer.get("plugins")))
        kwargs["plugins"] = [*plugins, *sharded.get("plugins", []), AtomicCheckpointIO()]
        kwargs["callbacks"] = [
            *_as_list(trainer.get("callbacks")),
            ExactResume(
                section["allow_changes"] or (self.begins_branch and bool((self.branch or {})["anew"])),
                section.get("ckpt_path"),
            ),
            Preemption(self.requeue_signal),
            PredictionWriter(record),
            KeptModel(),
        ]
        if trainer.get("enable_progress_bar") is not False and not trainer.get("barebones"):
            given = any(isinstance(callback, ProgressBar) for callback in kwargs["callbacks"])
            kwargs["callbacks"] += [FrontPicture(), *([] if given else [bar_or_lines()])]
        try:
            made = super().instantiate_trainer(**kwargs)
        except TypeError as error:  # so Lightning says of a number of devices that an accelerator does not have
            if "`devices`" not in str(error):
                raise
            raise ValueError(
                f"trainer.devices = {trainer.get('devices')}: expected a number above 0, or auto ({error})"
            ) from None
        FinishingFitLoop.replace(made)
        return made

    def instantiate_classes(self) -> None:
        """The schedule of a branch begins where the branch does."""
        super().instantiate_classes()
        if self.subcommand == "predict":  # PredictionWriter has written them; Lightning would keep all in memory too
            self.config_init["predict"]["return_predictions"] = False
        if self.branch is not None and self.branch["schedule"] is not None:
            self.model.schedule = Branched(self.model.schedule, **self.branch["schedule"])

    def _run_subcommand(self, subcommand: str) -> None:
        """LightningCLI calls this in its constructor; running waits for ``execute``, so that errors are told apart."""

    def execute(self) -> None:
        """Run the chosen subcommand, unless it is a fit that has been run to its end."""
        record, section = self._get(self.config_init, "run"), self.config[str(self.subcommand)]
        if self.subcommand == "fit" and self.asked_for == "auto" and (done := has_finished(record.folder, section)):
            rank_zero_info(f"{record.directory}: {done}")
            return
        if self.subcommand != "fit" or self.trainer.global_rank != 0:
            super()._run_subcommand(str(self.subcommand))
            return
        with only_writer(record.directory, rank_zero_info):
            super()._run_subcommand(str(self.subcommand))

    def finish(self) -> int | None:
        """Behind a run: the signal that has stopped it, or None; a job of SLURM is in the queue again by then."""
        number: int | None = getattr(self.trainer, "interrupted_by", None)
        if number is not None and number == self.requeue_signal:
            requeue(self.trainer, continues=self.asked_for == "auto")
        return number

    def before_fit(self) -> None:
        """A new run never writes into the folder of another; `auto` may begin one again that died early."""
        self.datamodule.accumulate(self.trainer.world_size)  # before processes are started and text is tokenized
        record = self._get(self.config_init, "run")
        if self.trainer.global_rank == 0:
            record.check_free(continues=record.resumed_from is not None or self.asked_for == "auto")


def _loggers(record: RunRecord) -> list[Any]:
    return [
        TensorBoardRunLogger(str(record.root), name=record.name, version="", default_hp_metric=False),
        MetricsFile(record.folder),
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def main(args: Sequence[str]) -> None:
    """Parse, check, run; exit status 2 for the user's mistakes, 128 plus the signal's number after a signal."""
    cli: ConsistencyCLI | None = None
    bind_children(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)  # ranks that Lightning starts
    try:
        _quiet()
        cli = build(None if list(args) == sys.argv[1:] else list(args))
        cli.execute()
        number = cli.finish()
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("LIT_CONSISTENCY_TRACEBACK") or (cli and _begun(cli)):
            raise
        print(f"error: {reason(str(error))}\n(LIT_CONSISTENCY_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns an interrupt into status 1
        interrupted = isinstance(stop, KeyboardInterrupt) or (cli and cli.trainer.state.status == "interrupted")
        if interrupted:
            sys.exit(128 + signal.SIGINT.value)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if number is not None:
        sys.exit(128 + signal.Signals(number).value)


def _begun(cli: ConsistencyCLI) -> bool:
    """Whether training has begun: what fails from then on is shown with its traceback."""
    return any(c.begun for c in cli.trainer.callbacks if isinstance(c, Preemption))  # type: ignore[attr-defined]


def _quiet() -> None:
    """Keep advertisements and warnings about Lightning's own insides out of the terminal."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    # the words of the call are not those of sys.argv where a configuration was found in the package
    warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers|args parameter is intended).*")


class _Made(Exception):
    """Carries the parser out of a constructor that would parse with it."""


class _ParserOnly(ConsistencyCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Made(parser)


def parsers() -> dict[str, LightningArgumentParser]:
    """Command -> its parser, for who lists options."""
    try:
        build([], _ParserOnly)
    except _Made as made:
        return dict(made.args[0]._subcommands_action._name_parser_map)
    raise AssertionError("the command line has parsed nothing")


def build(args: ArgsType, cli: type[ConsistencyCLI] = ConsistencyCLI) -> ConsistencyCLI:
    """Parse and instantiate without running."""
    return cli(
        LitLanguageModel,
        TokenData,
        subclass_mode_data=True,
        save_config_callback=None,  # RunRecord writes it
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=0,
        trainer_defaults=TRAINER_DEFAULTS,
        parser_class=Parser,
        parser_kwargs={"default_env": True, "env_prefix": "LIT_CONSISTENCY", "prog": "lit-consistency"},
        args=args,
    )
