from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from igpt.bench.race import _is_twin, _same_answers, race
from igpt.bench.work import TASKS, Contestant, Task, Work, load_task
from igpt.errors import UsageError
from igpt.experiments.speed import AIMS
from igpt.measure import ratios
from igpt.project import Project
from igpt.run.command import run_speed


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_comparison_works_at_toy_size(name: str) -> None:
    task = load_task(name)
    task = replace(task, contestants=tuple(c for c in task.contestants if not _is_twin(c, task)))
    works = {contestant.name: contestant.prepare(True) for contestant in task.contestants}
    _same_answers(task, {who: work.answer for who, work in works.items()})
    for work in works.values():
        work.run()


@pytest.mark.slow
def test_contestants_take_turns_in_processes_of_their_own() -> None:
    said: list[tuple[int, int]] = []
    seconds = race("tokenise", rounds=2, toy=True, report=lambda done, total: said.append((done, total)))
    names = [contestant.name for contestant in load_task("tokenise").contestants]
    assert list(seconds) == [
        name for name in names if name.removesuffix(", tuned") == name or name.removesuffix(", tuned") not in names
    ]
    assert all(len(found) == 2 and min(found) > 0 for found in seconds.values())
    assert said == [(done, 2 * len(seconds)) for done in range(1, 2 * len(seconds) + 1)]


@pytest.mark.slow
def test_a_comparison_is_run_again_when_asked_again(project: Project) -> None:
    for _ in range(2):
        assert run_speed(["loading"], toy=True) == ["loading"]
        (record,) = project.runs.glob("speed,*/record.json")
        record.write_text("{}")  # of another time


def test_every_aim_names_contestants_that_there_are() -> None:
    for aim in AIMS:
        names = {contestant.name for contestant in load_task(aim.task).contestants}
        assert {aim.ours, aim.peer} <= names


def test_those_who_find_something_else_are_not_compared() -> None:
    task = Task("T", (Contestant("a", lambda toy: Work(int, [])), Contestant("b", lambda toy: Work(int, []), tolerance=0.1)))
    _same_answers(task, {"a": [1.0, 10.0], "b": [1.9, 10.0]})
    _same_answers(task, {"a": [1.0, 10.0], "b": []})  # a limit answers nothing
    with pytest.raises(RuntimeError, match="they do not do the same"):
        _same_answers(task, {"a": [1.0, 10.0], "b": [1.0, float("nan")]})
    with pytest.raises(RuntimeError, match="they do not do the same"):
        _same_answers(task, {"a": [1.0, 10.0], "b": [2.1, 10.0]})


def test_a_missing_peer_and_unknown_words_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no comparison 'sampeling'; choose from sampling"):
        race("sampeling", rounds=1)
    with pytest.raises(UsageError, match="at least one round, not 0"):
        race("sampling", rounds=0)
    (tmp_path / "transformers.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UsageError, match="transformers, which is not installed: pip install transformers"):
        race("quantise", rounds=1, toy=True)


def test_a_contestant_that_dies_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformers.py").write_text("raise SystemExit('the peer fell over')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)the process of transformers ended with code 1.*the peer fell over"):
        race("quantise", rounds=1, toy=True)


def test_a_ratio_is_taken_within_a_round() -> None:
    seconds = {"slow": [4.0, 40.0, 6.0], "fast": [2.0, 10.0, 1.0]}
    assert ratios(seconds, "slow", "fast") == (4.0, 2.0, 6.0)
