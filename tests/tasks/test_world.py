"""Worlds as the rows of a task, and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.worlds import Biographies, MarkovChains
from lit_consistency.evaluation import evaluate as command
from lit_consistency.tasks import TaskData, TaskRows
from lit_consistency.tasks.rows import fingerprint
from lit_consistency.tasks.world import world_rows, write_world_task
from lit_consistency.tasks.yaml_file import load_task
from tests.runs import ROOT

WORLD = Biographies(n_people=4, n_new=3, seed=5)


def test_the_rows_are_what_the_world_says() -> None:
    for place, fields in world_rows(TaskData(world=WORLD, probes="base_cloze")):
        probe = WORLD.probes("base_cloze")[int(place.rpartition(":")[2]) - 1]
        expected = {"prompt": probe.prompt, "answer": probe.answer, "choices": list(probe.choices), **probe.tags}
        assert fields == {**expected, "cluster": probe.cluster}
    texts = [fields["text"] for _, fields in world_rows(TaskData(world=WORLD, documents="held_out"))]
    assert texts == list(WORLD.documents("held_out"))
    pairs = [tuple(fields.values()) for _, fields in world_rows(TaskData(world=WORLD, pairs="new_people/train"))]
    assert pairs == WORLD.rows("new_people", "train")
    default = [tuple(fields.values()) for _, fields in world_rows(TaskData(world=WORLD, pairs="new_people"))]
    assert default == WORLD.rows("new_people", "test")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"probes": "old"}, "probes = 'old': expected one of base_cloze"),
        ({"documents": "all"}, "part = 'all': expected one of train, held_out"),
        ({"pairs": "old_people/test"}, "task = 'old_people'"),
        ({"pairs": "new_people/dev"}, "split = 'dev'"),
    ],
)
def test_a_view_that_the_world_does_not_have(view: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(world_rows(TaskData(world=WORLD, **view)))  # type: ignore[arg-type]


def test_the_fingerprint_tells_worlds_and_views_apart() -> None:
    marks: list[Any] = [
        fingerprint(TaskData(world=world, **view))  # type: ignore[arg-type]
        for world in (WORLD, Biographies(n_people=4, n_new=3, seed=6))
        for view in ({"probes": "base_cloze"}, {"probes": "new_cloze"}, {"documents": "train"}, {"pairs": "new_people"})
    ]
    assert all(mark not in marks[:i] for i, mark in enumerate(marks))
    assert marks[0] == fingerprint(TaskData(world=Biographies(n_people=4, n_new=3, seed=5), probes="base_cloze"))


def test_a_world_is_asked_and_learned_like_any_task(tmp_path: Path) -> None:
    path = write_world_task(tmp_path, "people", WORLD, "new_cloze", "new_people")
    scored = list(TaskRows(str(path), split="scored").rows())
    assert [(row.messages[0]["content"], row.messages[1]["content"]) for row in scored] == [
        (probe.prompt, probe.answer) for probe in WORLD.probes("new_cloze")
    ]
    learned = list(TaskRows(str(path)).rows())
    for row, (prompt, completion) in zip(learned, WORLD.rows("new_people"), strict=True):
        assert row.messages[0]["content"] == prompt
        assert completion.startswith(row.messages[1]["content"])
    assert load_task(str(write_world_task(tmp_path, "old", WORLD, "base_cloze"))).few_shot is None  # type: ignore[attr-defined]


def test_a_world_is_refused_where_its_rows_answer_no_question(tmp_path: Path) -> None:
    for probes, task, message in (("nothing", None, "probes = 'nothing'"), ("new_cloze", "x", "task = 'x'")):
        with pytest.raises(ValueError, match=message):
            write_world_task(tmp_path, "x", WORLD, probes, task)
    with pytest.raises(ValueError, match="answers none of the questions"):
        write_world_task(tmp_path, "x", _Mumbling(n_people=4, n_new=3), "new_cloze", "new_people")


class _Mumbling(Biographies):
    def rows(self, task: str, split: str = "train") -> list[tuple[str, str]]:
        return [("Her hobby is", " mumble.")]


def test_the_base_knows_the_old_people_of_its_own_world_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another seed has other people: the base of the quickstart knows them as little as the new ones."""
    monkeypatch.chdir(ROOT)
    model = ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw"

    def values(*names: str, **options: Any) -> list[float]:
        tasks = [f"biographies/{name}" for name in names]
        options |= {"limit": 40, "device": "cpu", "output": tmp_path}
        return [result.value for result in command.evaluate(command.Options(model, tasks, **options))]

    old, new, written = values("old_people", "new_people", "old_written")
    assert min(old, written) > 0.8
    assert new < 0.5
    (other,) = values("old_people", world={"seed": 1})
    assert other < 0.5, "measured anew, of others"
    options = command.Options(model, ["blimp"], device="cpu", world={"seed": 1})
    with pytest.raises(ValueError, match=r"world = \{'seed': 1\}: none of the tasks asks of a world"):
        command.evaluate(options)


def test_a_model_of_another_world_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the run's world is of MarkovChains; expected the same class"):
        load_task(str(ROOT / "configs/evaluation/biographies.yaml/old_people"), world=MarkovChains())
