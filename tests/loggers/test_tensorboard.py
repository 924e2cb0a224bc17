"""Events of runs, read as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from lit_consistency.loggers.tensorboard import TensorBoardRunLogger


def log(root: Path, steps: range, value: float, resumed_at: int | None = None) -> None:
    """One process of a run."""
    logger = TensorBoardRunLogger(str(root), name="run", version="", default_hp_metric=False)
    if resumed_at is not None:
        logger.keep_until(resumed_at)
    logger.begin()
    for step in steps:
        logger.log_metrics({"train/loss": value}, step)
    logger.finalize("success")


def shown(root: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(root / "run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("resumed_at", [2, -1])
def test_later_steps_are_shown_once_after_a_step_back(resumed_at: int, tmp_path: Path) -> None:
    log(tmp_path, range(1, 7), value=5.0)
    log(tmp_path, range(resumed_at + 1, 5), value=4.0, resumed_at=resumed_at)
    before = [(step, 5.0) for step in range(1, resumed_at + 1)]
    assert shown(tmp_path) == before + [(step, 4.0) for step in range(resumed_at + 1, 5)]


def test_nothing_is_written_before_the_beginning(tmp_path: Path) -> None:
    logger = TensorBoardRunLogger(str(tmp_path), name="run", version="")
    assert logger.experiment is None
    logger.keep_until(-1)
    logger.save()
    assert not list(tmp_path.iterdir())


def test_the_hparams_page_has_the_metrics_of_all_runs(tmp_path: Path) -> None:
    """Asked of tensorboard's own plugin: two runs of other tasks and methods, and one that was stopped."""
    runs = {
        "a": ({"lr": 1e-3, "method": "full"}, {"final/learn/x": 0.5}),
        "b": ({"lr": 3e-3, "method": "lora", "rank": 8}, {"final/learn/y": 0.75, "final/retain/z": 0.25}),
        "c": ({"lr": 1e-3, "method": "full"}, {}),
    }
    for name, (chosen, numbers) in runs.items():
        logger = TensorBoardRunLogger(str(tmp_path), name=name, version="", default_hp_metric=False)
        logger.begin()
        logger.begin_session(chosen)
        logger.log_metrics(numbers, 2)
        if numbers:
            logger.end_session()
        logger.finalize("success")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    backend = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    experiment = get_experiment.Handler(RequestContext(), backend, "", api_pb2.GetExperimentRequest()).run()
    assert {info.name for info in experiment.hparam_infos} == {"lr", "method", "rank"}
    assert {info.name.tag for info in experiment.metric_infos} == {key for _, of in runs.values() for key in of}
    request = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=range(4))
    groups = list_session_groups.Handler(RequestContext(), backend, "", request).run().session_groups
    rows = {group.name: group for group in groups}
    assert rows.keys() == runs.keys()
    for name, (chosen, numbers) in runs.items():
        row = rows[name]
        assert {k: v.string_value or v.number_value for k, v in row.hparams.items()} == chosen
        assert {value.name.tag: value.value for value in row.metric_values} == numbers
        ended = api_pb2.STATUS_SUCCESS if numbers else api_pb2.STATUS_UNKNOWN
        assert [session.status for session in row.sessions] == [ended]
