from __future__ import annotations

from pathlib import Path

import pytest

from igpt.companion.bench.compare import check_answers, compare, toy_task
from igpt.companion.bench.work import Candidate, Task, Work, load_task
from igpt.companion.experiments.speed import AIMS, MODULES
from igpt.companion.run.command import run_speed
from igpt.errors import UsageError
from igpt.measure import ratios
from igpt.project import Project


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_comparison_works_at_toy_size(name: str) -> None:
    task = toy_task(name)
    works = {candidate.name: candidate.prepare(True) for candidate in task.candidates}
    check_answers(task, {name: work.answer for name, work in works.items()})
    for work in works.values():
        work.once()


@pytest.mark.slow
def test_candidates_take_turns_in_processes_of_their_own() -> None:
    reported: list[tuple[int, int]] = []
    seconds = compare("quantise", rounds=2, toy=True, report=lambda done, total: reported.append((done, total)))
    assert list(seconds) == ["igpt", "igpt, table built anew", "transformers", "every distance in float64"]
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
    assert reported == [(done, 8) for done in range(1, 9)]


@pytest.mark.slow
def test_a_comparison_is_run_again_when_asked_again(project: Project) -> None:
    for _ in range(2):
        assert run_speed(["loading"], toy=True) == ["loading"]
        (record,) = project.runs.glob("speed,*/record.json")
        record.write_text("{}")  # of another time


def test_every_aim_names_candidates_that_there_are() -> None:
    for aim in AIMS:
        names = {candidate.name for candidate in load_task(aim.task).candidates}
        assert {aim.ours, aim.peer} <= names


def test_candidates_with_different_answers_are_not_compared() -> None:
    task = Task("T", (Candidate("a", lambda toy: Work(int, [])), Candidate("b", lambda toy: Work(int, []), tolerance=0.1)))
    check_answers(task, {"a": [1.0, 10.0], "b": [1.9, 10.0]})
    check_answers(task, {"a": [1.0, 10.0], "b": []})  # a limit answers nothing
    with pytest.raises(RuntimeError, match="they do not do the same"):
        check_answers(task, {"a": [1.0, 10.0], "b": [1.0, float("nan")]})
    with pytest.raises(RuntimeError, match="they do not do the same"):
        check_answers(task, {"a": [1.0, 10.0], "b": [2.1, 10.0]})


def test_a_missing_peer_and_unknown_words_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no comparison 'sampeling'; choose from sampling"):
        compare("sampeling", rounds=1)
    with pytest.raises(UsageError, match="at least one round, not 0"):
        compare("sampling", rounds=0)
    (tmp_path / "transformers.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UsageError, match="transformers, which is not installed: pip install transformers"):
        compare("quantise", rounds=1, toy=True)


def test_a_candidate_that_dies_is_named_with_its_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformers.py").write_text("raise SystemExit('the peer fell over')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)the process of transformers ended with code 1.*the peer fell over"):
        compare("quantise", rounds=1, toy=True)


def test_a_ratio_is_taken_within_a_round() -> None:
    seconds = {"slow": [4.0, 40.0, 6.0], "fast": [2.0, 10.0, 1.0]}
    assert ratios(seconds, "slow", "fast") == (4.0, 2.0, 6.0)
