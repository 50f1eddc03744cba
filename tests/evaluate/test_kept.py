from __future__ import annotations

from pathlib import Path

import pytest

from igpt.evaluate.kept import Kept

PIECE = {"accuracy": 0.1 + 0.2, "layers": [1, 2], "converged": True, "name": "é"}


def test_a_piece_comes_back_as_it_was_and_is_not_computed_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return PIECE

    for _ in range(2):
        assert Kept(tmp_path / "new", {"weights": "a"}).of("probe", compute) == PIECE
    assert len(calls) == 1


def test_a_piece_of_something_else_counts_for_none(tmp_path: Path) -> None:
    Kept(tmp_path, {"weights": "a"}).keep("probe", PIECE)
    assert Kept(tmp_path, {"weights": "b"}).get("probe") is None
    assert Kept(tmp_path, {"weights": "a"}).get("other") is None
    assert Kept(tmp_path, {"weights": "b"}).of("probe", lambda: [1]) == [1]
    assert Kept(tmp_path, {"weights": "b"}).get("probe") == [1]


@pytest.mark.parametrize("text", ["", "[]", '{"key": {}}', '{"key": {"weights": "a"}, "piece": [1', "null", '"key"'])
def test_a_damaged_piece_is_computed_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    kept = Kept(tmp_path, {"weights": "a"})
    assert kept.of("probe", lambda: PIECE) == PIECE
    assert kept.get("probe") == PIECE
