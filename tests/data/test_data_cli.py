from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import igpt_here as igpt
from official import COLOURS, WNIDS, Publish, imagenet_folders, publish_cifar10, publish_imagenet, tree, write

from igpt.companion import cli
from igpt.companion.run import datasets
from igpt.data import load_split, tokens
from igpt.data.store import TokenStore
from igpt.palette import Palette


class Done(NamedTuple):
    code: object
    out: str
    err: str


Say = Callable[..., Done]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """The command in this process, where small data sets are published."""

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["igpt", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Done(caught.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("command", ["", "list", "fetch", "check", "tokenize", "palette"])
def test_help_reads_well(tmp_path: Path, command: str) -> None:
    done = igpt("data", *filter(None, [command, "--help"]), root=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "Usage:" in done.stdout
    assert "..." not in done.stdout.replace("]...", "]").replace("ARGS...", ""), "a line of help was cut"


def test_data_imports_no_torch(home: Path) -> None:
    code = "import sys; sys.argv = ['igpt', 'data', 'list']\ntry:\n from igpt.companion.cli import main; main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


def test_the_list_says_what_is_where_and_under_what_terms(say: Say, home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    code, out, err = say("data", "list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for words in ("80", "0.17 GB", " here ", str(home / "cifar-10-batches-py")):
        assert words in next(line for line in out.splitlines() if line.startswith("cifar10 "))
    assert "155 GB, by hand" in next(line for line in out.splitlines() if line.startswith("imagenet "))
    assert "non-commercial" in lines["imagenet:"] and "Krizhevsky" in lines["cifar10:"]
    assert "or Kaggle's ILSVRC/ and LOC_val_solution.csv, into " in lines["ImageNet"]
    assert out.rstrip().endswith("IGPT_DATA names another folder to look in.")


def test_check_says_what_it_found(say: Say, home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    code, out, err = say("data", "check", "cifar10")
    assert (code, err) == (0, "")
    first, *found = out.splitlines()
    assert first == "CIFAR-10 is as published"
    assert found[0] == "  7 files have their published MD5 sums"
    assert found[1].startswith(
        "  train: 60 images of 10 classes, 6 to 6 a class; the first is 32 x 32, of class 0 (class0), mean 1"
    )
    assert found[2].startswith("  test: 20 images of 10 classes, 2 to 2 a class")
    assert found[3].startswith("  held out: 6 of train, SHA-256 ")
    assert say("data", "check", "digits").code == 0


def test_check_names_the_file_that_is_damaged(say: Say, home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    path = home / "cifar-10-batches-py" / "data_batch_5"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = say("data", "check", "cifar10")
    assert (code, out) == (2, "") and err.startswith(f"igpt: {path} is damaged or another file") and err.count("\n") == 1


def test_check_of_imagenet_needs_the_published_number(say: Say, home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    assert say("data", "check", "imagenet").code == 0
    publish("imagenet", train=10)
    code, _, err = say("data", "check", "imagenet")
    assert code == 2 and "has 9 train images of 3 classes" in err


def test_an_archive_of_imagenet_that_is_another_is_named(say: Say, home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders() | {"ILSVRC2012_img_train.tar": b"half of it"})
    code, _, err = say("data", "check", "imagenet")
    assert code == 2 and "ILSVRC2012_img_train.tar has 10 bytes instead of 147,897,477,120" in err


def test_fetch_says_the_terms_and_leaves_what_is_here(say: Say, home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    before = tree(home)
    code, out, err = say("data", "fetch", "cifar10")
    assert (code, out) == (0, f"CIFAR-10 is in {home / 'cifar-10-batches-py'}\n")
    assert err.startswith("CIFAR-10 (terms: no explicit licence; cite Krizhevsky") and err.count("\n") == 1
    assert tree(home) == before


def test_tokenize_writes_both_splits_and_finds_them_again(say: Say, home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    COLOURS.save(home / "palette.npy")
    words = ("data", "tokenize", "cifar10", "--resolution", "4", "--palette", str(home / "palette.npy"))
    code, out, _ = say(*words)
    assert code == 0
    train, test = out.splitlines()
    assert train.startswith("train: 60 images of 4 x 4 tokens, 0.0 MB, ") and " images/s, " in train
    folders = [Path(line.rpartition(": ")[2]) for line in (train, test)]
    assert [len(TokenStore(folder)) for folder in folders] == [60, 20]
    again = say(*words)
    assert again.code == 0 and [line.count("there already") for line in again.out.splitlines()] == [1, 1]


def test_tokenize_takes_crops_of_train_only(say: Say, home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    COLOURS.save(home / "palette.npy")
    code, out, _ = say(
        *("data", "tokenize", "imagenet", "--resolution", "4", "--crops", "2", "--seed", "7", "--filter", "box"),
        *("--palette", str(home / "palette.npy")),
    )
    assert code == 0
    stores = [TokenStore(Path(line.rpartition(": ")[2])) for line in out.splitlines()]
    assert [(len(found), found.header.crops, found.header.seed, found.header.filter) for found in stores] == [
        (18, 2, 7, "box"),
        (6, 0, 7, "box"),
    ]


def test_the_digits_are_tokenised_with_a_palette_of_greys(say: Say, home: Path, greys: Palette) -> None:
    greys.save(home / "palette.npy")
    code, out, _ = say("data", "tokenize", "digits", "--palette", str(home / "palette.npy"))
    assert code == 0 and "train: 1,437 images of 8 x 8 tokens" in out and "test: 360 images" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fetch", "mnist"], "there is no data set 'mnist'; choose one of digits, cifar10"),
        (["check", "mnist"], "there is no data set 'mnist'"),
        (["tokenize", "mnist"], "there is no data set 'mnist'"),
        (["check", "cifar10"], "CIFAR-10 is not here: `igpt data fetch cifar10` brings it into"),
        (["tokenize", "stl10"], "STL-10 is not here: `igpt data fetch stl10` brings it into"),
        (["check", "imagenet"], "ImageNet (ILSVRC 2012) is not here: get ILSVRC2012_img_train.tar, "),
        (["tokenize", "imagenet", "--crops", "2"], "ImageNet (ILSVRC 2012) is not here: get ILSVRC2012_img_train.tar, "),
        (["tokenize", "digits"], "the palette has 3 channels, scikit-learn's handwritten digits has 1: give another"),
        (["tokenize", "digits", "--resolution", "9"], "scikit-learn's handwritten digits has 8 pixels a side"),
        (["tokenize", "digits", "--filter", "best"], "there is no filter 'best'; choose one of bicubic, box"),
        (["tokenize", "digits", "--palette", "none.npy"], "there is no palette at none.npy"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_2(say: Say, home: Path, words: list[str], message: str) -> None:
    code, out, err = say("data", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"igpt: {message}"), err
    assert err.count("\n") == 1 and tree(home) == {}


def test_fetch_of_imagenet_says_what_to_put_where(tmp_path: Path, home: Path) -> None:
    done = igpt("data", "fetch", "digits", root=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("\nigpt: the digits come with scikit-learn: there is nothing to fetch\n")
    done = igpt("data", "fetch", "imagenet", root=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    terms, sentence = done.stderr.splitlines()
    assert "register at image-net.org" in terms
    assert (
        sentence.startswith("igpt: ImageNet (ILSVRC 2012) may be had from its owner only") and str(home / "imagenet") in sentence
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--workers", "0"],
        ["--resolution", "0"],
        ["--crops", "-1"],
    ],
)
def test_an_option_outside_its_range_is_refused(say: Say, home: Path, words: list[str]) -> None:
    code, _, err = say("data", "tokenize", "digits", *words)
    assert code == 2 and "Invalid value" in err and "Traceback" not in err


def test_a_stop_is_a_sentence_and_the_same_command_continues(
    say: Say, home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(publish, home)
    COLOURS.save(home / "palette.npy")
    words = ("data", "tokenize", "cifar10", "--resolution", "4", "--palette", str(home / "palette.npy"))
    write_array = tokens.write_array

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "write_array", stop)
    code, out, err = say(*words)
    assert (code, out) == (130, "") and err.endswith("igpt: stopped; the same command continues\n")
    monkeypatch.setattr(tokens, "write_array", write_array)
    assert say(*words).code == 0


def test_a_full_disk_is_a_sentence_and_exit_1(say: Say, home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    publish_cifar10(publish, home)
    COLOURS.save(home / "palette.npy")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = say("data", "tokenize", "cifar10", "--resolution", "4", "--palette", str(home / "palette.npy"))
    assert code == 1 and "labels.npy: No space left on device" in err and "Traceback" not in err


def test_a_bug_keeps_its_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.companion.run.datasets.check_dataset", lambda name: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["igpt", "data", "check", "digits"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_another_home_is_looked_in(
    say: Say, home: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(publish, tmp_path / "elsewhere")
    assert say("data", "check", "cifar10").code == 2
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "elsewhere"))
    assert say("data", "check", "cifar10").code == 0
    write(tmp_path / "elsewhere", {"cifar-10-batches-py/readme.html": b"more is no harm"})
    assert say("data", "check", "cifar10").code == 0


def test_a_file_where_a_folder_belongs_and_the_reverse_are_one_sentence(
    say: Say, home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(publish, home)
    publish_imagenet(publish, home, imagenet_folders())
    COLOURS.save(home / "palette.npy")
    size = ("--resolution", "4", "--palette", str(home / "palette.npy"))
    picture = home / "imagenet" / "train" / WNIDS[0] / f"{WNIDS[0]}_10.JPEG"

    def refused(*words: str) -> str:
        code, out, err = say("data", *words)
        assert (code, out) == (2, ""), err
        assert "Errno" not in err
        return err.splitlines()[-1]

    picture.unlink()
    picture.mkdir()
    assert f"{picture} cannot be read (it is a folder): restore the data set" in refused("tokenize", "imagenet", *size)
    picture.rmdir()
    os.mkfifo(picture)
    assert f"{picture} cannot be read (it is no regular file)" in refused("check", "imagenet")
    picture.unlink()
    picture.symlink_to("gone")
    assert f"{picture} cannot be read (No such file or directory)" in refused("check", "imagenet")
    shutil.rmtree(home / "tokens")
    (home / "tokens").write_text("a file")
    assert f"cannot be written, since {home / 'tokens'} is a file" in refused("tokenize", "cifar10", *size)
    monkeypatch.setenv("IGPT_DATA", str(home / "tokens"))
    assert f"{home / 'tokens'} is a file" in refused("fetch", "cifar10")
    assert refused("check", "cifar10").startswith("igpt: CIFAR-10 is not here")


def test_a_palette_is_fitted_to_training_images_and_used_by_the_tokens(say: Say, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "palette.npy"
    done = say("data", "palette", "digits", "--colours", "6", "--seed", "2", "--out", str(path))
    assert done == (0, f"6 colours of scikit-learn's handwritten digits at 8 x 8 pixels, seed 2: {path}\n", "")
    expected = Palette.fit(load_split("digits", "train").images, k=6, seed=2)
    assert Palette.load(path).digest == expected.digest
    assert say("data", "tokenize", "digits", "--palette", str(path)).code == 0
    small = tmp_path / "small.npy"
    assert say("data", "palette", "digits", "--colours", "6", "--resolution", "4", "--out", str(small)).code == 0
    assert Palette.load(small).digest != expected.digest


def test_a_palette_of_pictures_on_disk_is_fitted_to_a_bounded_number_of_training_images(
    say: Say, home: Path, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    path, seen = tmp_path / "palette.npy", []
    fitted = Palette.fit

    def fit(images: np.ndarray, **options: int) -> Palette:
        seen.append(images.shape)
        return fitted(images, **options)

    monkeypatch.setattr(Palette, "fit", fit)
    monkeypatch.setattr(datasets, "PICTURES", 2)
    assert say("data", "palette", "imagenet", "--colours", "4", "--out", str(path)).code == 0
    assert (seen, Palette.load(path).centres.shape) == ([(2, 32, 32, 3)], (4, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--colours", "600"], "igpt: the images hold 17 colours, fewer than the 600 asked for: choose at most 17"),
        (["digits", "--out", "palette.png"], "igpt: a palette is written as .npy, not as palette.png: name a file"),
        (["digits", "--resolution", "9"], "igpt: "),
        (["imagenet-tokens"], "igpt: ImageNet as released tokens has no pictures, only tokens"),
        (["cifar10"], "igpt: CIFAR-10 is not here: `igpt data fetch cifar10` brings it"),
        (["nothing"], "igpt: there is no data set 'nothing'"),
    ],
)
def test_a_palette_that_cannot_be_fitted_is_one_sentence(
    say: Say, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = say("data", "palette", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)
    assert not list(tmp_path.glob("palette*"))
