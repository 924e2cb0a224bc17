"""A run's model as a folder in LitGPT's format, with where it comes from: the final one, and those of its series."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from litgpt.prompts import Default, PromptStyle, prompt_styles
from torch import nn

from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.throughput import Throughput
from lit_consistency.data import SFTData
from lit_consistency.data.tokens.base_style import STYLE_FILE
from lit_consistency.distributed.fsdp import gathered
from lit_consistency.distributed.optimizer_state import FILE, gathered_optimizer_state, write_optimizer_state
from lit_consistency.methods import Full, LoRA
from lit_consistency.methods.adapters import write_adapters
from lit_consistency.model import save_model, write_model_files
from lit_consistency.module import LitLanguageModel
from lit_consistency.records.atomic import new_folder, replaced_folder
from lit_consistency.records.provenance import Provenance, read_provenance

LOSSES = ("train/loss", "val/loss")


def check_saved(module: LitLanguageModel, save_model: bool | Literal["adapters"], save_optimizer_state: bool) -> None:
    """ValueError where what is to be saved is nothing that the method of the run has."""
    method = module.method
    if save_model == "adapters" and not (isinstance(method, LoRA) and module.checkpoint_dir):
        on = "a base" if module.checkpoint_dir else "no base"
        raise ValueError(
            f"run.save_model = adapters with the method {method.name} and {on}: expected LoRA and "
            "model.checkpoint_dir, or save_model = true"
        )
    if save_optimizer_state and not isinstance(method, Full):
        raise ValueError(
            f"run.save_optimizer_state = true with the method {method.name}: expected full or a pull, whose state "
            "is that of all weights of the model that is saved"
        )


def write_run_model(
    trainer: Trainer,
    module: LitLanguageModel,
    out_dir: Path,
    record: Mapping[str, Any],
    config_yaml: str,
    *,
    at_end: bool,
    overwrite: bool,
    optimizer_state: bool,
) -> None:
    """Write the model as it is now; a collective call.

    Args:
        trainer: of the run.
        module: whose merged weights are written.
        out_dir: the new folder.
        record: of run.json: base, optimizer, stage, seed, command.
        config_yaml: the run's complete configuration.
        at_end: whether training has ended.
        overwrite: replace a model that stands there.
        optimizer_state: write the optimizer's state beside it.
    """
    state = module.merged_state()
    provenance = provenance_now(trainer, module, record, config_yaml, at_end)
    moments = gathered_optimizer_state(trainer.optimizers[0], trainer.is_global_zero) if optimizer_state else None
    if trainer.is_global_zero:
        data = trainer.datamodule  # type: ignore[attr-defined]
        save_model(
            out_dir,
            state,
            module.config,
            data.tokenizer_folder,
            provenance,
            prompt_style=litgpt_style(data, module),
            overwrite=overwrite,
            also=(lambda folder: write_optimizer_state(moments, folder / FILE)) if moments else None,
        )
        merged = module.method.merging.as_record() if module.method.merging else None
        how = f", merged in {merged['computed']}, stored in {merged['stored_as']}" if merged else ""
        rank_zero_info(f"model of step {trainer.global_step}: {out_dir}{how}")
    trainer.strategy.barrier("model")


def write_run_adapters(
    trainer: Trainer,
    module: LitLanguageModel,
    out_dir: Path,
    record: Mapping[str, Any],
    config_yaml: str,
    *,
    at_end: bool,
    overwrite: bool,
) -> None:
    """Write what a LoRA run has learned, without its base; a collective call. See ``write_run_model``."""
    method, base = module.method, module.checkpoint_dir
    assert isinstance(method, LoRA)
    if base is None:
        rank_zero_info("no adapters are saved: this run's base was drawn, and stands in no folder to merge them onto")
        return
    own = {name: tensor for name, tensor in module.gpt.state_dict().items() if "lora_" in name}
    factors = gathered(own, keep=trainer.is_global_zero)
    provenance = provenance_now(trainer, module, record, config_yaml, at_end)
    if trainer.is_global_zero:
        data = trainer.datamodule  # type: ignore[attr-defined]
        with new_folder(out_dir, overwrite) as folder:
            write_adapters(folder, method, factors, base, record["base_hash"])
            write_model_files(folder, module.config, data.tokenizer_folder, litgpt_style(data, module))
            provenance.write(folder)
        rank_zero_info(f"adapters of step {trainer.global_step}: {out_dir}")
    trainer.strategy.barrier("adapters")


def place_model(kept: Path, places: Mapping[str, Path]) -> None:
    """Copy what was kept of an earlier step to where it stands at the end.

    Args:
        kept: a folder with some of ``model``, ``adapters`` and ``measured``.
        places: part -> the folder that it becomes, whole or not at all.
    """
    for part, place in places.items():
        if (kept / part).is_dir():
            with replaced_folder(place) as folder:
                shutil.copytree(kept / part, folder, dirs_exist_ok=True)


def provenance_now(
    trainer: Trainer, module: LitLanguageModel, record: Mapping[str, Any], config_yaml: str, at_end: bool
) -> Provenance:
    """Where the model as it is now comes from; a collective call, since it counts the tokens of all ranks."""
    throughput = find_callback(trainer, Throughput)
    stage: dict[str, Any] = {
        "model": module.config.name,
        "optimizer": record["optimizer"],
        "method": module.method.name,
        "stage": record["stage"],
        "base": record["base"],
        "base_hash": record["base_hash"],
        "run": record["name"],
        "tokens": int(throughput.state_dict()["total"][0]) if throughput else 0,
        "steps": trainer.global_step,
        "seed": record["seed"],
        "command": record["command"],
        **_configured(config_yaml),
        "final_metrics": _metrics_now(trainer, module, at_end),
        "branched_from": record["branched_from"],
        "carried_optimizer_state": record["carried_optimizer_state"],
        "planned_steps": None if at_end else module.total_steps(),
        "merging": module.method.merging.as_record() if module.method.merging else None,
    }
    before = read_provenance(module.checkpoint_dir) if module.checkpoint_dir is not None else None
    return before.next_stage(**stage) if before else Provenance(**stage)


def headlines(measured: Mapping[str, float]) -> dict[str, float]:
    """What judges a run: the metric of every set, what was forgotten, the distance of the whole model."""
    sets = ("learn/", "retain/", "forget/", "retained/")
    judged = (*sets, "kl_to_base", "reverse_kl_to_base", "distance/all", "relative_distance/all", "moved/all")
    return {name: value for name, value in measured.items() if name.startswith(judged) and "." not in name}


def bytes_of(model: nn.Module) -> tuple[int, int]:
    """Bytes of all parameters and of those that are trained, whole also where they are sharded."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def train_loss_now(trainer: Trainer, module: LitLanguageModel) -> float | None:
    """The last that is logged; that of a step is so only behind its checkpoint."""
    if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
        return module.step_loss
    logged = trainer.callback_metrics.get("train/loss")
    return None if logged is None else float(logged)


def losses_now(trainer: Trainer) -> dict[str, float]:
    """The last loss of training and of validation."""
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key in LOSSES}


def litgpt_style(data: Any, module: LitLanguageModel) -> PromptStyle | None:
    """What ``litgpt generate`` is to prompt with; None keeps the base's."""
    if not isinstance(data, SFTData):
        return None
    if data.prompt_style == "chat_template":
        # LitGPT reads no template: it goes by the model's name, unless the base was trained to be prompted otherwise
        return PromptStyle.from_config(module.config) if (data.tokenizer_folder / STYLE_FILE).is_file() else None
    return prompt_styles.get(data.prompt_style, Default)()


def find_callback(trainer: Trainer, kind: type[Callback]) -> Any:
    """The trainer's callback of a class; None where it has none."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def _configured(config_yaml: str) -> dict[str, Any]:
    """Options of optimizer and schedule, as they stand in the configuration."""
    model = (yaml.safe_load(config_yaml) or {}).get("model", {})
    schedule = model.get("schedule")
    options = (model.get("optimizer") or {}).get("init_args", {})
    return {"optimizer_options": options, "schedule": schedule if isinstance(schedule, Mapping) else None}


def _metrics_now(trainer: Trainer, module: LitLanguageModel, at_end: bool) -> dict[str, float | None]:
    """Losses and what judges the run, as far as they are of this very step; what is no number is None."""
    forgetting = find_callback(trainer, Forgetting)
    measured = forgetting.latest if forgetting and forgetting.measured_at == trainer.global_step else {}
    # before the end, what was logged last, and the validation loss, are those of an earlier step
    of_this_step = {"train/loss": module.step_loss} if module.step_loss is not None else {}
    losses = losses_now(trainer) if at_end else of_this_step
    numbers = {**losses, **headlines(measured)}
    return {name: value if math.isfinite(value) else None for name, value in sorted(numbers.items())}
