"""TensorBoard events in the run's folder, none before the run has really begun, none twice after a step back.

The HParams page takes the metrics of all runs from the first "experiment" that any of them declares, as Lightning's
logger and torch's ``add_hparams`` do in each. Where none declares one, the page gathers the hyperparameters and the
scalars of all runs (tensorboard 2.21, ``plugins.hparams.backend_context``, ``experiment_from_metadata``). So a run says
here only that it is a session, with its hyperparameters, and at the end that it has succeeded.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoardRunLogger(TensorBoardLogger):
    """TensorBoardLogger that waits for ``begin`` and writes no hparams.yaml, which config.yaml makes superfluous.

    Lightning touches ``experiment`` before the model is built, which would leave a folder behind for a wrong call.
    """

    begun = False

    def begin(self) -> None:
        """From now on there is something to log."""
        self.begun = True

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; None before the beginning."""
        return super().experiment if self.begun else None

    @rank_zero_only
    def keep_until(self, step: int) -> None:
        """Have readers drop the events of later steps, which older files of the folder hold.

        A new file of events says from which step on it holds (``purge_step``): TensorBoard and its EventAccumulator
        then forget what they have read of this step and later ones. The old files stay as they are.
        """
        assert self._experiment is None, "a file of events says this in its first entry"
        # in a new folder there is nothing to forget, and readers are spared a restart
        if any(Path(self.log_dir).glob("events.out.tfevents.*")):
            self._kwargs["purge_step"] = step + 1

    # -------------------- the HParams page

    @rank_zero_only
    def begin_session(self, hyperparameters: Mapping[str, str | int | float]) -> None:
        """The run is a line of the HParams page.

        Args:
            hyperparameters: its columns; readers keep the first that a run has written, also when it is resumed.
        """
        from tensorboard.plugins.hparams import summary_v2 as hp

        # without a trial_id runs of equal hyperparameters would be one line; an empty one names the line by its run
        self._write(hp.hparams_pb(dict(hyperparameters), trial_id="", start_time_secs=time.time()))

    @rank_zero_only
    def end_session(self) -> None:
        """The run has finished. One that was stopped or failed says nothing: it may be resumed, and this cannot."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        tag = metadata.SESSION_END_INFO_TAG
        self._write(Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)]))

    # -------------------- pictures

    @rank_zero_only
    def log_picture(self, tag: str, png: bytes, step: int) -> None:
        """Show a picture on the Images page, as it is; ``add_image`` would decode and encode it once more."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])  # of the header, PNG 1.2, 11.2.2
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._write(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _write(self, summary: Any, step: int | None = None) -> None:
        self.experiment._get_file_writer().add_summary(summary, step)

    def save(self) -> None:
        """Write what is buffered."""
        if self.begun:
            self.experiment.flush()
