"""What all training data share: tokens on disk, batches of one shape of mapping, the order, the position.

`TokenData` is the LightningDataModule behind `PretrainData` and `SFTData`. It owns the batch arithmetic: the user
says how many rows an optimizer step takes (`global_batch_size`); how many a device takes at once and the accumulation
follow (see `micro_batch_size`). The loaders are no DataLoaders: Lightning puts no sampler into them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_consistency.data.loading.collate import seen_on_cpu
from lit_consistency.data.loading.loader import TokenLoader
from lit_consistency.data.loading.mixed_rows import MixedRows, mix
from lit_consistency.data.loading.order import Order, micro_batches, rows_at_once, warn_of_empty_rows
from lit_consistency.data.loading.replay import Replay
from lit_consistency.data.sources.conversations import say_counts
from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.mixture import Mixture, divide
from lit_consistency.data.sources.own_samples import OwnSamples
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.tokens.cache import default_cache_dir, open_or_build
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.data.tokens.token_rows import TokenRows
from lit_consistency.data.tokens.tokenizer import Tokenizer, store_tokenizer
from lit_consistency.records.shipped import on_this_machine, shipped


class TokenData(LightningDataModule, ABC):
    """Tokenized data for training and validation.

    Args:
        train: What is trained on.
        validation: What is held out, or None.
        replay: What is mixed into the training rows, or None.
        validation_share: In place of ``validation``, the share of what is trained on that is held out: of documents,
            or of prompts with all their answers, so that no prompt is on both sides.
        global_batch_size: Rows of one optimizer step, over all devices.
        micro_batch_size: Rows a device takes at once; None: the most that divide its share and hold 4,096 tokens.
        block_size: Tokens of a row, at most the model's block_size.
        num_workers: Processes that prepare batches.
        seed: Seed of the order of rows, and of their packing; None takes the run's seed.
        tokenizer_dir: Folder of the tokenizer; None takes the model's checkpoint, else the data's own.
        cache_dir: Folder for tokens; None is ~/.cache/lit_consistency/tokens.
        parse_special_tokens: Whether the text of a special token inside the data, as ``<|im_end|>``, is the token; else
            it is text like any other, and documents and rows with such text are counted.
    """

    def __init__(
        self,
        train: Source | Rows,
        validation: Source | Rows | None = None,
        replay: Replay | None = None,
        global_batch_size: int = 32,
        micro_batch_size: int | None = None,
        block_size: int = 512,
        num_workers: int = 0,
        seed: int | None = None,
        tokenizer_dir: Path | None = None,
        cache_dir: Path | None = None,
        validation_share: float | None = None,
        parse_special_tokens: bool = False,
    ) -> None:
        super().__init__()
        _at_least(1, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, block_size=block_size)
        _at_least(0, num_workers=num_workers, seed=seed)
        if num_workers > (most := max(64, 4 * (os.cpu_count() or 1))):
            raise ValueError(f"num_workers = {num_workers}: expected at most {most}, four for each processor here")
        if micro_batch_size and global_batch_size % micro_batch_size:
            raise ValueError(
                f"global_batch_size = {global_batch_size}: expected a multiple of micro_batch_size = {micro_batch_size}"
            )
        if validation_share is not None and not 0 < validation_share < 1:
            raise ValueError(f"validation_share = {validation_share}: expected null, or 0 < validation_share < 1")
        if validation_share is not None and validation is not None:
            raise ValueError(f"validation_share = {validation_share}: expected validation: null with it")
        if isinstance(validation, Mixture) and validation.weights is not None:
            raise ValueError("validation: a mixture with weights; expected none, every row is measured once")
        self.validation_share = validation_share
        parts = (train, validation) if validation_share is None else divide(train, validation_share)
        self.train, self.validation = parts
        self.replay = replay
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.block_size = block_size
        self.num_workers = num_workers
        self.seed = seed
        self.tokenizer_dir = shipped(tokenizer_dir) if tokenizer_dir is not None else None
        self.parse_special_tokens = parse_special_tokens
        self.cache_dir = on_this_machine("cache_dir", cache_dir) if cache_dir is not None else default_cache_dir()
        # fails here, before any work is done, when the folder holds no tokenizer
        self._tokenizer = Tokenizer(self.tokenizer_dir) if self.tokenizer_dir is not None else None
        self._own_tokenizer: Path | None = None
        self._shards: dict[str, Shard] = {}
        self._rows: dict[str, TokenRows] = {}
        self._empty_micro_batches = 0
        self.asked_by_model: Any = None  # from a batch to what the model wants to know of it while it is on the CPU
        self.group_by_length = False

    # -------------------- what a subclass says

    @abstractmethod
    def _fingerprint(self, part: Any) -> dict[str, Any]:
        """What the tokens of a source or of rows depend on."""

    @abstractmethod
    def _build(self, folder: Path, part: Any, label: str) -> None:
        """Writes the shard of a source or of rows into an empty folder."""

    @abstractmethod
    def _token_rows(self, shard: Shard) -> TokenRows:
        """The training rows of a shard."""

    # -------------------- tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer: the option's, else the model's, else one in the cache with the data's own."""
        if self.tokenizer_dir is not None:
            return self.tokenizer_dir
        module = self.trainer and self.trainer.lightning_module
        if (model_dir := getattr(module, "checkpoint_dir", None)) is not None:
            return Path(model_dir)
        if self._own_tokenizer is None:
            own = self.train.default_tokenizer()
            if own is None:
                raise ValueError(
                    "tokenizer_dir = null: expected a folder with tokenizer.json; the model starts from no "
                    "checkpoint and the data bring no tokenizer"
                )
            self._own_tokenizer = store_tokenizer(own, self.cache_dir)
        return self._own_tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of `tokenizer_folder`."""
        folder = self.tokenizer_folder
        if self._tokenizer is None or self._tokenizer.folder != folder:
            self._tokenizer = Tokenizer(folder)
        return self._tokenizer

    # -------------------- hooks

    def prepare_data(self) -> None:
        """Tokenizes what is not yet on disk; Lightning lets the other processes of the machine wait meanwhile."""
        module: Any = self.trainer and self.trainer.lightning_module
        if hasattr(module, "check_data"):
            module.check_data(self)  # now: the tokens of a large corpus take hours
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        for name, part in self._parts().items():
            if fits or name == "validation" or not isinstance(part, OwnSamples):  # drawing takes longer than reading
                self._shard(name)

    def setup(self, stage: str | None = None) -> None:
        """Opens the tokens, and sets the Trainer's accumulation for training.

        Raises:
            ValueError: Nothing to train on, nothing held out for a stage that needs it, or an accumulation that
                contradicts the batch sizes.
        """
        if stage in ("fit", None):
            self._open_train()
            warn_of_empty_rows(len(self._rows["train"]), self.global_batch_size)
            self._set_accumulation()
        if self.validation is not None:
            self._open("validation")
        elif stage in ("fit", None):
            # Lightning runs an empty validation loop, with a warning, unless the hook looks as if nobody wrote it
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        elif stage == "predict" and not isinstance(self.train, Mixture):
            self._open("train")
        elif stage in ("validate", "test", "predict"):
            name = getattr(stage, "value", stage)  # the Trainer gives an enumeration
            raise ValueError(f"data.validation = null: expected what is held out, `{name}` runs on it")

    def train_dataloader(self) -> TokenLoader:
        """Rows in the order of the seed; its position is saved with checkpoints."""
        world_size, rank = self._ranks()
        rows = self._rows["train"]
        at_once, by_length = self.rows_at_once(world_size), self.group_by_length
        order = Order(len(rows), self.global_batch_size, at_once, world_size, rank, self._order_seed(), by_length)
        return TokenLoader(rows, order, num_workers=self.num_workers, on_resume=self._count_anew)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """As ``seen_on_cpu``; and counts the steps of training that have nothing to learn."""
        if not int(batch.get("supervised", 1)):
            if not self._empty_micro_batches:
                rank_zero_warn(
                    "a step without a token to learn: the optimizer moves by what it remembers; see run.json"
                )
            self._empty_micro_batches += 1
        return seen_on_cpu(batch) | (self.asked_by_model(batch) if self.asked_by_model else {})

    def val_dataloader(self) -> TokenLoader:
        """Held-out rows in their order, shared among the ranks."""
        return self._in_order("validation")

    def _in_order(self, name: str) -> TokenLoader:
        world_size, rank = self._ranks()
        rows, at_once = self._rows[name], self.rows_at_once(world_size)
        order = Order(len(rows), at_once * world_size, at_once, world_size, rank, seed=None)
        return TokenLoader(rows, order, training=False, num_workers=self.num_workers)

    def test_dataloader(self) -> TokenLoader:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> TokenLoader:
        """What is held out, as for validation; where nothing is, what would be trained on."""
        return self._in_order(self.predicted)

    @property
    def predicted(self) -> str:
        """Name of the part that ``predict`` runs on."""
        return "train" if self.validation is None else "validation"

    def opened(self, name: str) -> tuple[TokenRows, Shard]:
        """Rows and tokens of a part, once they are set up."""
        return self._rows[name], self._shards[name]

    # -------------------- numbers

    @property
    def empty_steps(self) -> int:
        """Optimizer steps so far that had no token to learn."""
        return -(-self._empty_micro_batches // self.accumulate(self._ranks()[0]))

    def state_dict(self) -> dict[str, int]:
        """For checkpoints; the position is the loader's own."""
        return {"empty_steps": self.empty_steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self._empty_micro_batches = state_dict["empty_steps"] * self.accumulate(self._ranks()[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training rows; the last may be smaller. Known after `setup`."""
        return -(-len(self._rows["train"]) // self.global_batch_size)

    def rows_at_once(self, world_size: int) -> int:
        """Rows of a micro-batch, as given or as they follow."""
        return self.micro_batch_size or rows_at_once(self.global_batch_size // world_size, self.block_size)

    def accumulate(self, world_size: int) -> int:
        """Micro-batches per optimizer step and rank.

        Raises:
            ValueError: The global batch does not divide among the ranks.
        """
        return micro_batches(self.global_batch_size, self.micro_batch_size, self.rows_at_once(world_size), world_size)

    def fingerprint(self) -> dict[str, Any]:
        """What the batches depend on, as JSON; the micro-batch and the number of ranks are not among it."""
        order = {"seed": self._order_seed(), "global_batch_size": self.global_batch_size, "block_size": self.block_size}
        parts = {name: self._fingerprint(part) for name, part in self._parts().items()}
        for name, sha256 in self.drawn().items():  # what they are is told by no option
            parts[name] = {**parts[name], "sha256": sha256}
        replay = {"replay": self.replay.fingerprint()} if self.replay is not None else {}
        weights = {"weights": self.train.weights} if isinstance(self.train, Mixture) else {}
        return {"kind": type(self).__name__, **order, **replay, **weights, **parts}

    def drawn(self) -> dict[str, str]:
        """SHA-256 of the tokens of every opened part that the base has written."""
        parts, shards = self._parts(), self._shards.items()
        return {n: s.meta["sha256"]["tokens.bin"] for n, s in shards if isinstance(parts[n], OwnSamples)}

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counts of the opened parts: documents, tokens, rows, supervised tokens, what was cut or dropped."""
        return {name: self._counts(name) for name in self._rows}

    # -------------------- insides

    def _parts(self) -> dict[str, Source | Rows]:
        """What has tokens of its own, by name: the sets of a mixture each by itself."""
        train = self.train
        parts: dict[str, Any] = {"train": train}
        if isinstance(train, Mixture):
            parts = {f"train/{name}": one for name, one in train.sets.items()}
        parts["validation"] = self.validation
        replayed = self.replay.parts if self.replay is not None else {}
        parts |= {f"replay/{name}": part for name, part in replayed.items()}
        return {name: part for name, part in parts.items() if part is not None}

    def _shard(self, name: str) -> None:
        if name in self._shards:
            return
        part = self._parts()[name]
        if isinstance(part, OwnSamples):
            self._shards[name] = self._own_samples(name, part)
            return
        shard = open_or_build(self.cache_dir, self._fingerprint(part), lambda folder: self._build(folder, part, name))
        if len(shard.offsets) == 1:
            what = f"data, {name}: nothing to learn from: {part.about()}"
            if n := shard.meta.get("n_dropped"):
                what += f", {n:,} dropped, of which nothing is left within block_size = {self.block_size}"
            raise ValueError(f"{what}; expected more, or where they are divided another separator or share")
        if unused := shard.meta.get("unused"):
            rank_zero_warn(f"data, {name}: fields that are not used: {say_counts(unused)}")
        self._shards[name] = shard

    def _own_samples(self, name: str, part: OwnSamples) -> Shard:
        """Texts of the base, which the model draws that is trained: generation is none of the data's business."""
        module: Any = self.trainer and self.trainer.lightning_module
        if getattr(module, "checkpoint_dir", None) is None:
            raise ValueError(f"data, {name}: OwnSamples without a base that writes them; expected model.checkpoint_dir")
        return module.own_samples(part, self)

    def _open(self, name: str) -> TokenRows:
        if name not in self._rows:
            self._shard(name)
            self._rows[name] = self._token_rows(self._shards[name])
            if not self._rows[name].supervised.any():
                n_rows = f"{len(self._rows[name]):,} rows"
                raise ValueError(f"data, {name}: none of the tokens of {n_rows} is learned; expected at least one")
            self._say_counts(name)
        return self._rows[name]

    def _open_train(self) -> None:
        """Opens what is trained on: the sets of a mixture, and the replayed rows among them."""
        if "train" in self._rows:
            return
        if isinstance(self.train, Mixture):
            sets = [self._open(f"train/{name}") for name in self.train.sets]
            rows = mix(self.train, sets, self._order_seed())
            of_sets = ", ".join(f"{n:,} of {name}" for name, n in zip(self.train.sets, rows.n_of_set, strict=True))
            rank_zero_info(f"data, train: {len(rows):,} rows an epoch: {of_sets}")
            self._rows["train"] = rows
        else:
            self._open("train")
        if self.replay is not None:
            replayed = [self._open(f"replay/{name}") for name in self.replay.parts]
            mixed = self.replay.mix(self._rows["train"], replayed, self._order_seed())
            rank_zero_info(f"data, replay: {sum(mixed.n_of_set[1:]):,} of {len(mixed):,} rows")
            self._rows["train"] = mixed

    def _say_counts(self, name: str) -> None:
        counts = [f"{value:,} {key.removeprefix('n_')}" for key, value in self._counts(name).items()]
        rank_zero_info(f"data, {name}: {', '.join(counts)}")

    def _counts(self, name: str) -> dict[str, Any]:
        rows = self._rows[name]
        metas = [shard.meta for of, shard in self._shards.items() if of == name or of.startswith(f"{name}/")]
        keys = sorted({key for meta in metas for key in meta if key.startswith("n_")})
        written = {key: sum(meta.get(key, 0) for meta in metas) for key in keys}
        replayed = {}
        if name == "train" and self.replay is not None and isinstance(rows, MixedRows):
            replayed["n_replayed"] = sum(rows.n_of_set[1:])
        return {**written, "n_rows": len(rows), **replayed, "n_supervised": int(rows.supervised.sum())}

    def _order_seed(self) -> int:
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    def _ranks(self) -> tuple[int, int]:
        """Number of data-parallel ranks, and this one."""
        if self.trainer is None:
            return 1, 0
        sharing = self.trainer.distributed_sampler_kwargs
        return (sharing["num_replicas"], sharing["rank"]) if sharing else (1, 0)

    def _set_accumulation(self) -> None:
        wanted = self.accumulate(self._ranks()[0])
        if self.trainer is None:
            return
        given = self.trainer.accumulate_grad_batches
        if given not in (1, wanted):
            raise ValueError(
                f"trainer.accumulate_grad_batches = {given}: expected 1; set data.global_batch_size and "
                f"data.micro_batch_size, from which {wanted} follows"
            )
        self.trainer.accumulate_grad_batches = wanted
        if self.micro_batch_size is None:
            rank_zero_info(f"data: {wanted} micro-batches a step, of {self.rows_at_once(self._ranks()[0])} rows")

    def _count_anew(self, saved: int, consumed: int, begun_anew: bool) -> None:
        """Makes Lightning count from where the loader goes on; by its count, it tells the ends of steps and epochs."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop.epoch_loop
        for name in ("ready", "started", "processed", "completed"):
            counted = getattr(loop.batch_progress.current, name)
            setattr(loop.batch_progress.current, name, counted + consumed - saved)
        if begun_anew:
            # it adds a logged step when it resumes behind a step's end, where it now seems to be
            loop._batches_that_stepped -= 1


def _at_least(least: int, **options: int | None) -> None:
    for key, value in options.items():
        if value is not None and value < least:
            raise ValueError(f"{key} = {value}: expected at least {least}")
