"""The LightningModule: one training step, one validation step, the model and its optimizer.

It gives up nothing of Lightning: automatic optimization, accumulation, clipping and schedules work as documented
there. What it adds is a loss that does not depend on how a batch is split, a stop before the optimizer moves when a
number is not finite, and clipping that leaves orthogonalized updates alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_consistency.data import OwnSamples, TokenData
from lit_consistency.data.loading.collate import model_inputs, supervised_tokens
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.distributed.dtensors import KeptShards
from lit_consistency.distributed.fsdp import data_mesh, gathered
from lit_consistency.distributed.gradients import clip_gradients
from lit_consistency.distributed.optimizer_state import carry_optimizer_state, check_class, warn_of_lost_steps
from lit_consistency.distributed.step_report import NonFiniteError as NonFiniteError
from lit_consistency.distributed.step_report import StepReports
from lit_consistency.inference.own_samples import check_same_texts, open_own_samples, read_anchor
from lit_consistency.inference.rows import predict_documents, supervised_nll
from lit_consistency.methods import Full, KLAnchor, Method
from lit_consistency.methods.anchor import Place
from lit_consistency.methods.base_folder import base_folder, is_from_scratch
from lit_consistency.methods.build import begin_anchor, blocks_of_run, build_model, check_data
from lit_consistency.metrics import TokenLoss
from lit_consistency.model import DocumentMask, TokenNLL, check_checkpoint_dir, linear_loss, model_config
from lit_consistency.model.blocks import Blocks, Recomputed
from lit_consistency.optimizers import Constant, Schedule, dry_build, group_table, parameter_groups
from lit_consistency.optimizers.core.optimizer import GroupOptimizer
from lit_consistency.optimizers.schedules import Branched
from lit_consistency.records.pretraining import pretraining_of_base

OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]


class LitLanguageModel(LightningModule):
    """A LitGPT model with what is trained (method) and how (optimizer, schedule).

    Args:
        optimizer: class and hyperparameters, e.g. one of configs/optimizers/*.yaml. There is no default, so that no
            run inherits one silently. Any ``torch.optim.Optimizer`` works.
        checkpoint_dir: LitGPT checkpoint folder to start from (``lit_model.pth`` or ``lit_model.safetensors``), or a
            step of a run: ``RUN/series/step-100`` or ``RUN/checkpoints/step-100``, whose adapters are merged.
        name: LitGPT configuration to initialize from scratch, e.g. ``pythia-14m``; ``litgpt download list`` prints the
            names.
        overrides: fields of the LitGPT configuration to change, e.g. ``n_layer``, ``n_head``, ``n_embd``,
            ``block_size``.
        method: what is trained; all weights when not given.
        schedule: factor on every group's learning rate; constant when not given.
        qkv: what a fused query-key-value matrix is for the optimizer: three blocks, one for each head, or one.
        roles: regular expression over parameter names -> role, where the table of parameters is to differ.
        carry_optimizer_state: begin with the state that the optimizer had at the end of the base's training (moments,
            momentum, and its count of steps, so the bias correction goes on), not with an empty one. The optimizer is
            of the same class; the base is of a run with ``run.save_optimizer_state``, or one of its checkpoints. Its
            learning rate and other hyperparameters are those of this run.
        anchor: a term of the loss that holds the model's predictions near the base's; none when not given.
        pretraining_optimizer: class of the optimizer that pretrained the base, as ``AdamW`` or ``Muon``; when not
            given, the base's provenance is asked, then the name of a public family.
        compile: whether blocks are compiled for training; when not given, on CUDA in a run that is long enough. Losses
            change by rounding; the first step takes up to a minute.
        activation_checkpointing: what the backward computes again instead of keeping it: ``blocks``, their
            ``attention`` or ``mlp``, every n-th block for a number n. All blocks: memory for their inputs alone, and a
            third more time. Changes no number.
    """

    gpt: DocumentMask  # built by configure_model

    def __init__(
        self,
        optimizer: OptimizerFactory,
        checkpoint_dir: Path | None = None,
        name: str | None = None,
        overrides: dict[str, Any] | None = None,
        method: Method | None = None,
        schedule: Schedule | None = None,
        qkv: Literal["split", "head", "fused"] = "split",
        roles: dict[str, str] | None = None,
        carry_optimizer_state: bool = False,
        anchor: KLAnchor | None = None,
        pretraining_optimizer: str | None = None,
        compile: bool | None = None,
        activation_checkpointing: Recomputed | int | None = None,
    ) -> None:
        super().__init__()
        built = dry_build(optimizer)
        if all(float(group["lr"]) == 0 for group in built.param_groups):
            raise ValueError("optimizer.init_args.lr = 0: nothing would be learned; expected more")
        self.optimizer = optimizer
        self.carry_optimizer_state = carry_optimizer_state
        self.checkpoint_dir = None
        if checkpoint_dir is not None:
            self.checkpoint_dir = base_folder(checkpoint_dir, optimizer_state=carry_optimizer_state)
        self.model_name = name
        self.overrides = overrides or {}
        self.method = method or Full()
        self.schedule: Schedule | Branched = schedule or Constant()
        self.qkv = qkv
        self.roles = roles or {}
        if self.checkpoint_dir is not None:
            check_checkpoint_dir(self.checkpoint_dir)
        if carry_optimizer_state:
            self._check_carrying(type(built).__name__)
        self.anchor = anchor if anchor is not None and anchor.strength > 0 else None
        for key, value in (("anchor", self.anchor), ("pretraining_optimizer", pretraining_optimizer)):
            if value is not None and is_from_scratch(self.checkpoint_dir):
                raise ValueError(f"model.{key} without a base, of which it speaks: expected model.checkpoint_dir")
        # fails here, before any work is done, when the name, the folder or an override is wrong
        self.config = self._config(vocab_size=None)
        self.blocks = Blocks(self.config, compile, activation_checkpointing)
        self.pretraining = pretraining_of_base(self.checkpoint_dir, self.config, pretraining_optimizer)
        self.parameter_table: list[dict[str, Any]] = []
        self.keep_start = False
        self.start = KeptShards({})
        self.evaluated = nn.ModuleDict({stage: TokenLoss() for stage in ("val", "test")})
        self.reports = StepReports()
        self._step_loss: Tensor | None = None
        self._step_divergence: Tensor | None = None
        self.used_rates: dict[str, float] = {}  # learning rate of each group in the latest optimizer step

    def _config(self, vocab_size: int | None) -> Any:
        return model_config(
            name=self.model_name,
            checkpoint_dir=self.checkpoint_dir,
            overrides=self.overrides,
            vocab_size=vocab_size,
        )

    def _check_carrying(self, optimizer: str) -> None:
        if is_from_scratch(self.checkpoint_dir):
            raise ValueError("carry_optimizer_state = true: expected checkpoint_dir too, the base that has a state")
        if not isinstance(self.method, Full):
            raise ValueError(
                f"carry_optimizer_state = true with the method {self.method.name}: expected full or a pull; adapters "
                "were no parameters of the base, and frozen rows of a matrix must have no momentum"
            )
        if self.checkpoint_dir is not None:  # of a base to come the plan of the study checks it
            check_class(self.checkpoint_dir, optimizer)

    # -------------------- texts of the base

    def own_samples(self, samples: OwnSamples, data: TokenData) -> Shard:
        """Texts that the base has written, for whoever trains on them; drawn first where they are not on disk."""
        assert self.checkpoint_dir is not None
        device = self.trainer.strategy.root_device
        return open_own_samples(self.checkpoint_dir, samples, data.block_size, data.cache_dir, device)

    def prepare_data(self) -> None:
        """One process of a machine writes what the anchor reads; Lightning lets the others wait meanwhile."""
        if self.trainer.state.fn == "fit":
            self._read_anchor()

    def setup(self, stage: str) -> None:
        """Open what the anchor reads; what the base has written is the same on every rank."""
        if stage == "fit":
            self._read_anchor()
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            check_same_texts(self.anchor, data)
            data.asked_by_model = None if self.anchor is None else self.anchor.look_up

    def _read_anchor(self) -> None:
        if self.anchor is not None:
            assert self.checkpoint_dir is not None
            read_anchor(self.anchor, self.checkpoint_dir, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Which texts the anchor reads; other hardware may have drawn others."""
        self.reports.settle()
        if self.anchor is not None:
            checkpoint["anchor"] = self.anchor.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say where they are others than before."""
        saved, now = checkpoint.get("anchor"), self.anchor.fingerprint() if self.anchor is not None else None
        if saved and now and saved != now:
            rank_zero_warn(
                f"model.anchor: the texts of the base are others than the checkpoint's: {saved} against {now}"
            )

    # -------------------- model

    def check_data(self, data: Any) -> None:
        """See that rows and vocabulary fit the model, whose vocabulary is the data's where it is a new one."""
        tokenizer = getattr(data, "tokenizer", None)
        self.config = self._config(tokenizer.vocab_size if tokenizer and self.checkpoint_dir is None else None)
        check_data(data, self.config)

    def configure_model(self) -> None:
        """Build the model, load or initialize its weights, and shard it where the strategy says so."""
        if hasattr(self, "gpt"):
            return
        self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        mesh, precision = data_mesh(self.device_mesh), str(self.trainer.precision)
        # Lightning makes the run's device the default one here, on which a GPU would draw other weights than a CPU
        with torch.device("cpu"):
            prepare = blocks_of_run(self)
            self.gpt = build_model(self.method, self.config, self.checkpoint_dir, mesh, precision, prepare)
            self.method.begin(self.gpt)
            if self.anchor is not None:
                begin_anchor(self.anchor, self.method, self.config, self.checkpoint_dir, mesh, precision)
        if self.keep_start:
            self.start = KeptShards({name: p for name, p in self.gpt.named_parameters() if p.requires_grad})

    def merged_state(self) -> dict[str, Tensor]:
        """The trained weights under the base model's names: full tensors on the CPU of rank 0, none on other ranks."""
        self.reports.settle()
        weights = gathered(self.gpt.state_dict(), keep=self.global_rank == 0)
        return self.method.merged_state(self.gpt, weights) if weights else {}

    def forward(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T); documents and positions (B, T) only where rows hold several documents."""
        return self.gpt(tokens, positions=positions, documents=documents)

    # -------------------- training

    def on_fit_start(self) -> None:
        """The model is on its device by now."""
        if self.anchor is not None:
            self.anchor.to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """This micro-batch's share of the step's loss: summed token losses over the whole step's supervised tokens.

        Lightning divides by ``accumulate_grad_batches`` and DDP by the number of ranks; both are undone here.
        """
        trainer, anchor = self.trainer, self.anchor
        supervised = batch["supervised"].clamp(min=1)
        indices, targets = supervised_tokens(batch)
        asked = anchor.ask(self.gpt, batch) if anchor is not None else None

        def body(gpt: DocumentMask) -> Tensor:
            states = gpt.document_states(**model_inputs(batch)).flatten(0, 1)
            loss, nll = linear_loss(states[indices], gpt, TokenNLL(targets), 1 / supervised.double())
            # what is logged adds up in float64, as every sum over micro-batches and ranks
            share = nll.sum(dtype=torch.float64) / supervised
            self._step_loss = share if self._step_loss is None else self._step_loss + share
            if anchor is None or asked is None:
                return loss
            return loss + self._anchored(anchor.along_rows(states, gpt, asked))

        loss = self.gpt(batch["tokens"], body=body)
        if anchor is not None and anchor.on == "own":
            n = trainer.accumulate_grad_batches
            place = Place(trainer.global_step, trainer.global_rank * n + batch_idx % n, n * trainer.world_size)
            loss = loss + self._anchored(anchor.along_own(self.gpt, place))
        return loss * (trainer.accumulate_grad_batches * trainer.world_size)

    def _anchored(self, divergence: Tensor) -> Tensor:
        """The anchor's term of this micro-batch's share of the step's loss."""
        assert self.anchor is not None
        share = divergence.detach().double()
        self._step_divergence = share if self._step_divergence is None else self._step_divergence + share
        return self.anchor.strength * divergence

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse to move on a number that is not finite, on every rank alike; see ``distributed/step_report.py``."""
        self.reports.settle()
        self.method.before_step()
        self.used_rates = self._rates()
        loss, divergence = self._step_loss, self._step_divergence
        assert loss is not None
        if divergence is None and self.anchor is not None and self.trainer.world_size > 1:
            divergence = torch.zeros_like(loss)  # this rank has no row that is anchored, another may have some
        self._step_loss = self.reports.add(self.trainer, optimizer, loss, divergence)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The numbers of a step that is logged, and of the last one, are read before it is counted."""
        super().optimizer_step(*args, **kwargs)
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0 or step >= self.total_steps():  # type: ignore[attr-defined]
            self.reports.settle()

    @property
    def step_loss(self) -> float | None:
        """Loss of the latest optimizer step, over all ranks."""
        self.reports.settle()
        return None if self.reports.latest is None else self.reports.latest.loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip what AdamW or SGD moves; see ``clip_gradients``."""
        if gradient_clip_val:
            clip_gradients(optimizer, gradient_clip_val, by_value=gradient_clip_algorithm == "value")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log once per optimizer step."""
        trainer = self.trainer
        if self._step_loss is None or (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        loss, self._step_loss = self._step_loss, None
        self._step_divergence = None
        # what `self.log` would do for a number of one step, without its bookkeeping of epochs, in every step
        trainer.callback_metrics["loss"] = loss
        # a bar that reads step reports by itself does not make the program wait for the device
        if not getattr(trainer.progress_bar_callback, "reads_reports", False):
            trainer.progress_bar_metrics["loss"] = float(loss)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            optimizer = trainer.optimizers[0]
            of_optimizer = optimizer.log_values() if isinstance(optimizer, GroupOptimizer) else {}
            assert (report := self.reports.latest) is not None
            numbers = {"train/loss": report.loss, **self.used_rates, **of_optimizer, **self.method.log_values()}
            numbers["train/grad_norm"] = report.grad_norm
            self.log_now(numbers if report.anchor is None else numbers | {"train/anchor": report.anchor})

    def _rates(self) -> dict[str, float]:
        """Learning rate of each group, named by role."""
        groups = self.trainer.optimizers[0].param_groups
        return {f"lr/{group.get('role', i)}": float(group["lr"]) for i, group in enumerate(groups)}

    def log_now(self, numbers: dict[str, float]) -> None:
        """Write numbers to every logger at the current optimizer step, and where callbacks of Lightning watch them."""
        self.show_to_callbacks(numbers)
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=self.trainer.global_step)

    def show_to_callbacks(self, numbers: dict[str, float]) -> None:
        """Put numbers into ``trainer.callback_metrics``, where callbacks of Lightning watch them."""
        self.trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        )

    # -------------------- validation, test, prediction

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss of the held-out part of the training data: ``val/loss`` in nats per token."""
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As validation, named ``test/loss``."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: dict[str, Tensor]) -> None:
        nll = supervised_nll(self.gpt, batch)
        metric = self.evaluated[stage]
        assert isinstance(metric, TokenLoss)
        metric.update(nll, torch.tensor(len(nll)))
        self.log(f"{stage}/loss", metric, prog_bar=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Per document of the batch: summed nll (nats), supervised tokens, and the model's first choice at each.

        Returns:
            A mapping each, with ``row``, the number of its row in the loader, and ``document``, its number in the row.
        """
        first = (batch_idx * self.trainer.world_size + self.trainer.global_rank) * len(batch["tokens"])
        return predict_documents(self.gpt, batch, first)

    # -------------------- optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over the parameter groups, one schedule as a factor on each group's learning rate."""
        groups = parameter_groups(self.gpt, self.qkv, self.roles)
        self.parameter_table = group_table(groups)
        optimizer = self.optimizer(groups)
        warn_of_lost_steps(optimizer)
        if self.carry_optimizer_state:
            assert self.checkpoint_dir is not None
            carry_optimizer_state(optimizer, self.checkpoint_dir)
        self.method.attach(self.gpt, optimizer)
        total = self.total_steps()
        self.schedule.check(total)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Optimizer steps of the run; reading ``trainer.estimated_stepping_batches`` would drop loader state."""
        trainer = self.trainer
        limits = [trainer.max_steps] if trainer.max_steps > 0 else []
        if trainer.max_epochs and trainer.max_epochs > 0:
            limits.append(trainer.max_epochs * trainer.datamodule.steps_per_epoch)  # type: ignore[attr-defined]
        if not limits:
            raise ValueError("trainer.max_steps = -1, trainer.max_epochs = -1: expected one of them for the schedule")
        return min(limits)


def language_model(module: LightningModule) -> LitLanguageModel:
    """The module, for callbacks that work on no other."""
    if not isinstance(module, LitLanguageModel):
        raise ValueError(
            f"model = {type(module).__name__}: expected LitLanguageModel, whose method and base are asked for"
        )
    return module
