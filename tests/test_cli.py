from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import igpt

from igpt.project import Project


@pytest.mark.parametrize("command", ["", "plan", "run", "table", "samples"])
def test_help_reads_well(project: Project, command: str) -> None:
    done = igpt(*filter(None, [command, "--help"]), root=project.root)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""
    assert "..." not in done.stdout.replace("]...", "]").replace("targets...", ""), "a line of help was cut"


def test_help_and_plan_import_no_torch(project: Project) -> None:
    for words in (["--help"], ["plan", "--tier", "tiny"], ["table", "headline"]):
        code = f"import sys; sys.argv = ['igpt', *{words!r}]\ntry:\n from igpt.cli import main; main()\nexcept SystemExit as e: code = e.code\n"
        code += "print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "False False\n", words


def test_plan_lists_every_cell_and_runs_nothing(project: Project) -> None:
    done = igpt("plan", "--tier", "tiny", root=project.root)
    assert done.returncode == 0
    assert "missing  tiny   headline-001" in done.stdout
    assert "missing  linear_probe,model=tiny-l,seed=2" in done.stdout
    assert done.stdout.rstrip().endswith("missing; nothing was run")
    assert not project.runs.exists()
    assert list(project.records.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "hedline-001"], "igpt: there is no experiment, table or notebook 'hedline-001'; did you mean headline-001"),
        (["plan", "nothing-like-it"], "igpt: there is no experiment, table or notebook 'nothing-like-it'"),
        (["run", "linear_probe", "-p", "modle=tiny-s"], "igpt: notebook linear_probe has no parameter 'modle'; did you mean model?"),
        (["run", "linear_probe", "-p", "seed=one"], "igpt: parameter seed of notebook linear_probe is a whole number such as 0, not 'one'"),
        (["run", "linear_probe", "-p", "seed"], "igpt: parameters are given as NAME=VALUE, not as 'seed'"),
        (["run", "linear_probe", "-p", "model=tiny-xl"], "igpt: there is no autoregressive model 'tiny-xl'"),
        (["run", "linear_probe", "-p", "dataset=cifar10"], "igpt: linear_probe,dataset=cifar10,model=tiny-s,seed=0 needs CIFAR-10"),
        (["run", "headline-007", "--tier", "paper"], "igpt: "),
        (["table", "headlin"], "igpt: there is no table 'headlin'; did you mean headline?"),
        (["samples", "--out", "a.jpg"], "igpt: samples are written as PNG, not as a.jpg"),
        (["samples", "--model", "igpt-s"], "igpt: igpt-s is not trained here: choose tiny-s, tiny-m or tiny-l"),
        (["samples", "--model", "tiny"], "igpt: there is no autoregressive model 'tiny'"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_sentence_and_exit_2(project: Project, words: list[str], message: str) -> None:
    done = igpt(*words, root=project.root)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1
    assert not project.runs.exists()


@pytest.mark.parametrize("words", [["plan", "--tier", "huge"], ["table", "headline", "--format", "xml"], ["samples", "--n", "0"]])
def test_an_option_outside_its_choices_is_refused(project: Project, words: list[str]) -> None:
    done = igpt(*words, root=project.root)
    assert done.returncode == 2
    assert "Invalid value" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_record_is_one_sentence_that_names_the_remedy(project: Project) -> None:
    path = project.records / "tiny" / "linear_probe,model=tiny-l,seed=0.json"
    path.parent.mkdir()
    path.write_text("{")
    for words in (["plan", "linear-probes"], ["table", "headline"], ["run", "linear-probes"]):
        done = igpt(*words, root=project.root)
        assert done.returncode == 2
        assert done.stderr.startswith(f"igpt: {path} is not a record")
        assert done.stderr.endswith("delete it and run `igpt run linear_probe,model=tiny-l,seed=0`\n")
    assert path.read_text() == "{"


def test_a_bug_keeps_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from igpt import cli

    monkeypatch.setattr("igpt.run.command.plan_targets", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["igpt", "plan"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.slow
def test_samples_are_drawn_from_a_model_that_is_trained_first(project: Project, tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "sheet.png"
    for _ in range(2):
        done = igpt("samples", "--model", "tiny-s", "--n", "5", "--seed", "1", "--out", str(out), root=project.root)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"5 samples of tiny-s, seed 1: {out}\n"
    with Image.open(out) as picture:
        assert picture.size == (8 * 28, 8 * 19)  # three columns, two rows of eight pixels and a line between
        assert picture.mode == "L"
        assert len(picture.getcolors() or []) > 4
