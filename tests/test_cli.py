from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from conftest import igpt as igpt_started
from conftest import igpt_here as igpt

from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.weights.own import save_weights


@pytest.mark.parametrize(
    "command",
    [
        *("", "plan", "run", "table", "sample", "samples", "complete", "export", "evaluate-loss", "bench"),
        *("features", "score"),
        *("submit", "status", "logs", "cancel", "resume", "collect", "doctor", "drill", "clean"),
    ],
)
def test_help_reads_well(project: Project, command: str) -> None:
    done = igpt(*filter(None, [command, "--help"]), root=project.root)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""
    assert "..." not in done.stdout.replace("]...", "]").replace("targets...", "").replace("images...", "").replace(
        "tasks...", ""
    ).replace("{images}...", "").replace("kinds...", ""), "a line of help was cut"


def test_the_command_starts(project: Project) -> None:
    done = igpt_started("plan", "hedline-001", root=project.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("igpt: there is no experiment, table or notebook 'hedline-001'; did you mean headline-001")


def test_help_and_plan_import_no_torch(project: Project) -> None:
    for words in (["--help"], ["plan", "--tier", "tiny"], ["table", "headline"]):
        code = f"import sys; sys.argv = ['igpt', *{words!r}]\ntry:\n from igpt.companion.cli import main; main()\nexcept SystemExit as e: code = e.code\n"
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
        (["run", "linear_probe", "-p", "dataset=cifar10"], "igpt: CIFAR-10 is not here: `igpt data fetch cifar10` brings it into"),
        (["run", "headline-007", "--tier", "paper"], "igpt: "),
        (["table", "headlin"], "igpt: there is no table 'headlin'; did you mean headline?"),
        (["sample", "--out", "a.jpg"], "igpt: images are written as PNG, not as a.jpg"),
        (["sample", "--model", "tiny"], "igpt: there are no weights at tiny: give a folder"),
        (["bench", "quantize"], "igpt: there is no comparison 'quantize'; choose from sampling, features, pictures, quantise, "),
        (["evaluate-loss", "tiny"], "igpt: there are no weights at tiny: give a folder"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_sentence_and_exit_2(project: Project, words: list[str], message: str) -> None:
    done = igpt(*words, root=project.root, IGPT_DATA=str(project.root / "data"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1
    assert not project.runs.exists()


@pytest.mark.parametrize("words", [["plan", "--tier", "huge"], ["table", "headline", "--format", "xml"], ["sample", "--n", "0"]])
def test_an_option_outside_its_choices_is_refused(project: Project, words: list[str]) -> None:
    done = igpt(*words, root=project.root)
    assert done.returncode == 2
    assert "Invalid value" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**64)])
@pytest.mark.parametrize(
    "words",
    [
        ["sample"],
        ["complete", "a.png"],
        ["train", "tiny-s", "--data", "tokens", "--out", "run"],
        ["data", "tokenize", "digits"],
        ["drill", "--profile", "local"],
        ["run", "palette", "-p"],
        ["plan"],
    ],
)
def test_a_seed_outside_its_range_is_one_sentence_everywhere(project: Project, words: list[str], seed: str) -> None:
    given = {"run": [f"seed={seed}"], "plan": [f"linear_probe,model=tiny-s,seed={seed}"]}.get(words[0], ["--seed", seed])
    done = igpt(*words, *given, root=project.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"igpt: a seed is a whole number from 0 to 4294967295, not {seed}: choose another\n"


def test_a_damaged_record_is_told_of_in_one_sentence_and_blocks_nothing(project: Project) -> None:
    path = project.records / "tiny" / "linear_probe,model=tiny-l,seed=0.json"
    path.parent.mkdir()
    path.write_text("{")
    for words in (["plan", "linear-probes"], ["table", "headline"], ["collect"]):
        done = igpt_started(*words, root=project.root)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert done.stderr.startswith(f"igpt: {path} is not a record")
        assert "`igpt run linear_probe,model=tiny-l,seed=0` makes it anew; until then it counts as missing" in done.stderr
    assert path.read_text() == "{"


@pytest.mark.slow
def test_a_run_replaces_damaged_records_in_its_folder_and_in_the_book(project: Project) -> None:
    igpt("run", "palette,seed=0", root=project.root)
    published = project.records / "tiny" / "palette,seed=0.json"
    [kept] = project.runs.glob("palette,seed=0-*/record.json")
    whole = published.read_bytes()
    published.write_bytes(whole[:100])
    done = igpt("run", "palette,seed=0", root=project.root)
    assert (done.returncode, published.read_bytes()) == (0, whole)
    for path in (published, kept):
        path.write_bytes(whole[:100])
    done = igpt("run", "palette,seed=0", root=project.root)
    assert (done.returncode, done.stdout) == (0, "1 stage run, 0 fresh\n")
    assert json.loads(published.read_bytes())["values"] == json.loads(kept.read_bytes())["values"] == json.loads(whole)["values"]


def test_a_bug_keeps_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from igpt.companion import cli

    monkeypatch.setattr("igpt.companion.run.command.plan_targets", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["igpt", "plan"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_full_disk_is_one_sentence_and_exit_1(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from igpt.companion import cli

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "some/record.json")

    monkeypatch.setattr("igpt.companion.run.command.run_targets", full)
    monkeypatch.setattr(sys, "argv", ["igpt", "run"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "igpt: some/record.json: No space left on device; earlier results are as they were\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
@pytest.mark.parametrize("words", [["data", "list"], ["--help"], ["plan"]])
def test_what_cannot_be_printed_on_a_full_disk_is_one_sentence(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "igpt", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "igpt: No space left on device; earlier results are as they were\n")


@pytest.mark.slow
def test_samples_are_drawn_from_a_model_that_is_trained_first(project: Project, tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "sheet.png"
    for _ in range(2):
        done = igpt("sample", "--model", "tiny-s", "--n", "5", "--seed", "1", "--out", str(out), root=project.root)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"5 samples of tiny-s, seed 1: {out}\n"
    with Image.open(out) as picture:
        assert picture.size == (12 * 28, 12 * 19)  # three columns, two rows of eight pixels and a line between
        assert picture.mode == "L"
        assert len(picture.getcolors() or []) > 4


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small colour model of ours with its palette, untrained but for its output."""
    import numpy as np
    from conftest import random_model

    from igpt.palette import Palette
    from igpt.shape import ModelShape
    from igpt.weights.own import save_weights

    centres = np.random.default_rng(0).uniform(-1, 1, (12, 3)).astype(np.float32)
    save_weights(tmp_path / "weights", random_model(ModelShape(2, 16, 2, 12, 64)), Palette(centres))
    return tmp_path / "weights"


def photo(path: Path) -> Path:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("keep", "rows", "columns"),
    [
        ("top", slice(4), slice(8)),
        ("left", slice(8), slice(4)),
        ("right", slice(8), slice(4, 8)),
        ("bottom", slice(4, 8), slice(8)),
        ("0.25", slice(2), slice(8)),
    ],
)
def test_completions_keep_what_was_given(
    project: Project, weights: Path, tmp_path: Path, keep: str, rows: slice, columns: slice
) -> None:
    import numpy as np
    from PIL import Image

    paths = [str(photo(tmp_path / name)) for name in ("a.png", "b.jpg")]
    out = tmp_path / "done.png"
    words = ["complete", *paths, "--model", str(weights), "--keep", keep, "--n", "3", "--seed", "2", "--out", str(out)]
    done = igpt(*words, root=project.root)
    assert done.returncode == 0, done.stderr
    first, *more = done.stdout.splitlines()
    assert first == f"3 completions each of 2 by {weights}, seed 2: {out}"
    assert [line.partition(":")[0] for line in more] == ["The model looks back only"] * (keep not in ("top", "0.25"))
    sheet = np.asarray(Image.open(out))[6::12, 6::12]
    assert sheet.shape == (2 * 9 + 1, 5 * 9 + 1, 3)
    cells = [[sheet[1 + 9 * y : 9 + 9 * y, 1 + 9 * x : 9 + 9 * x] for x in range(5)] for y in range(2)]
    for given, *completed, original in cells:
        for image in (given, *completed):
            assert (image[rows, columns] == original[rows, columns]).all()
        hidden = np.ones((8, 8), bool)
        hidden[rows, columns] = False
        assert (given[hidden] == 128).all()
        assert len({image.tobytes() for image in completed}) == 3


def test_samples_come_from_any_folder_of_weights(project: Project, weights: Path, tmp_path: Path) -> None:
    def sheet(*words: str) -> bytes:
        done = igpt("sample", "--model", str(weights), "--n", "4", *words, "--out", "a.png", root=project.root)
        assert done.returncode == 0, done.stderr
        return (project.root / "a.png").read_bytes()

    assert sheet("--top-k", "5") == sheet("--top-k", "5")
    sheets = [sheet(*words) for words in ([], ["--top-k", "5"], ["--top-p", "0.3"], ["--temperature", "0.5"], ["--seed", "1"])]
    assert len(set(sheets)) == len(sheets), "a setting is ignored"
    assert sheet("--top-k", "1") == sheet("--temperature", "0")


def test_exported_weights_open_again_and_give_the_same_images(project: Project, weights: Path, tmp_path: Path) -> None:
    for to in ("ours", "huggingface"):
        done = igpt("export", str(tmp_path / to), "--to", to, "--model", str(weights), root=project.root)
        assert done.returncode == 0, done.stderr
        if to == "huggingface":
            assert (tmp_path / to / "palette.npy").exists()
        igpt("sample", "--model", str(tmp_path / to), "--n", "2", "--out", str(tmp_path / "a.png"), root=project.root)
        igpt("sample", "--model", str(weights), "--n", "2", "--out", str(tmp_path / "b.png"), root=project.root)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["complete", "none.png"], "there is no file none.png"),
        (
            ["complete", "none.png", "--keep", "middle"],
            "--keep takes top, left, right, bottom, a fraction from 0 up to but not 1, or a mask's file, and no file is called 'middle'",
        ),
        (["complete", "none.png", "--keep", "1"], "--keep takes top, left"),
        (["complete", "none.png", "--out", "a.gif"], "images are written as PNG, not as a.gif"),
        (["sample", "--top-p", "2"], "n and top_k are whole numbers of at least 1"),
        (["export", "."], ". is there already: name a folder that is not"),
    ],
)
def test_mistakes_with_weights_and_images_are_one_sentence(
    project: Project, weights: Path, words: list[str], message: str
) -> None:
    done = igpt(*words, "--model", str(weights), root=project.root)
    assert done.returncode == 2
    assert done.stderr.startswith(f"igpt: {message}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_loss_of_an_untrained_model_is_that_of_chance(project: Project, tmp_path: Path) -> None:
    palette = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
    save_weights(tmp_path / "weights", ImageGPT(ModelShape(1, 8, 2, 8, 4)), palette)
    np.save(tmp_path / "tokens.npy", np.arange(400).reshape(100, 4) % 8)
    words = ("evaluate-loss", str(tmp_path / "weights"), "--tokens", str(tmp_path / "tokens.npy"))
    done = igpt(*words, root=project.root)
    assert done.returncode == 0, done.stderr
    assert ": 2.0794 nats per token, 3.0000 bits, over 64 images of" in done.stdout  # ln 8, and only whole steps of 64
    assert "over 100 images" in igpt(*words, "--images", "100", root=project.root).stdout
    np.save(tmp_path / "tokens.npy", np.full((2, 4), 8))
    refused = igpt(*words, root=project.root)
    assert refused.returncode == 2
    assert "has tokens from 8 to 8, the model 8 colours: give others" in refused.stderr
    np.save(tmp_path / "tokens.npy", np.zeros((2, 5), np.int64))
    assert "has 5 tokens an image, the model 4" in igpt(*words, root=project.root).stderr
