"""`igpt features`: the probe's features to the bit, as pandas and numpy read them, continued after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, random_model
from conftest import igpt_here as igpt
from PIL import Image

from igpt.companion import cli
from igpt.companion.run import features as command
from igpt.companion.run.features import write_features
from igpt.data import data_card, folders, labelled_tokens
from igpt.data.own import add_own
from igpt.errors import UsageError
from igpt.evaluate import feature_store
from igpt.evaluate.feature_store import store_features
from igpt.evaluate.features import extract_features
from igpt.files import try_lock
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.own import save_weights

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))
GREYS = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])


def save(path: Path, seed: int) -> None:
    """A picture of noise, of a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5 + seed, 40 - seed, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def weights(folder: Path, *, palette: Palette = COLOURS, objective: str = "autoregressive") -> ImageGPT:
    """A small model, written to a folder."""
    model = random_model(ModelShape(2, 16, 2, 8, 16, objective))  # type: ignore[arg-type]
    save_weights(folder, model, palette)
    return model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model's folder; pictures are read and seen some at once, in this process."""
    weights(tmp_path / "model")
    monkeypatch.setattr(folders, "AT_ONCE", 3)
    monkeypatch.setattr(folders, "cores", lambda: 1)
    monkeypatch.setattr(feature_store, "images_at_once", lambda model: 4)
    return str(tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of two classes, under names that are hard to quote."""
    names = ["it's.png", 'a "b", c.png', "new\nline.png", "猫 🐈.png", os.fsdecode(b"\xff.png"), *(f"{i}.png" for i in range(5))]
    for number, name in enumerate(names):
        save(tmp_path / "photos" / "cats" / name, number)
        save(tmp_path / "photos" / "dogs" / name, 10 + number)
    (tmp_path / "photos" / "notes.txt").touch()
    return tmp_path / "photos"


def whole(out: Path) -> dict[str, np.ndarray]:
    """The columns of a written file."""
    if out.suffix == ".npz":
        return dict(np.load(out))
    frame = pd.read_parquet(out)
    return {name: np.stack(frame[name]) if name.startswith("layer") else frame[name].to_numpy() for name in frame}


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("piece", [1, 2**26])  # bytes: a row at a time, and all of them
def test_features_are_the_probes_to_the_bit(
    home: Path, tmp_path: Path, photos: Path, model: str, suffix: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PIECE", piece)
    out = tmp_path / f"f{suffix}"
    line = write_features(model, [photos], layers="0,2", out=out, resize="crop", skip=False)
    assert line.startswith("20 pictures, ") and line.endswith(f"/s: {out}; layers 0, 2")
    found = whole(out)
    assert list(found) == ["file", "label", "layer_0", "layer_2"]
    assert [len(column) for column in found.values()] == [20] * 4 and found["layer_2"].dtype == np.float32
    assert found["file"][0] == str(photos / "cats" / "0.png") and list(found["label"]) == ["cats"] * 10 + ["dogs"] * 10
    assert str(photos / "dogs" / r"\xff.png") in found["file"] and str(photos / "cats" / "new\nline.png") in found["file"]

    add_own("pets", photos)
    tokens: dict[str, np.ndarray] = {}
    for part in ("train", "validation", "test"):
        read = labelled_tokens("pets", part, side=4, palette=COLOURS)  # type: ignore[arg-type]
        card = data_card("pets")
        pictures, _ = card.read(card, "test" if part == "test" else "train")  # type: ignore[misc]
        names = [command.shown_name(photos / pictures.files[index]) for index in read.indices]
        tokens |= dict(zip(names, read[:], strict=True))
    ordered = np.stack([tokens[name] for name in found["file"]])
    network = random_model(ModelShape(2, 16, 2, 8, 16))
    stored = store_features(tmp_path / "store", network, ordered, key={}, layers=[0, 2], dtype="float32", seed=None)
    for layer in (0, 2):
        np.testing.assert_array_equal(found[f"layer_{layer}"], stored.layers[layer])
        extracted = extract_features(network, torch.from_numpy(ordered.astype(np.int64)), batch=4)
        np.testing.assert_array_equal(found[f"layer_{layer}"], extracted[layer])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_without_a_class_have_no_label(tmp_path: Path, photos: Path, model: str) -> None:
    one = photos / "cats" / "0.png"
    for suffix in (".parquet", ".npz"):
        write_features(model, [one, one.parent], layers="all", out=tmp_path / f"a{suffix}", resize="squeeze", skip=False)
        found = whole(tmp_path / f"a{suffix}")
        assert list(found) == ["file", "layer_0", "layer_1", "layer_2"] and len(found["file"]) == 11
        write_features(model, [photos, one], layers="1", out=tmp_path / f"b{suffix}", resize="squeeze", skip=False)
        first, last = whole(tmp_path / f"b{suffix}")["label"][[0, -1]]
        assert first == "cats" and (pd.isna(last) if suffix == ".parquet" else last == "")
        assert (found["layer_1"][:2] == whole(tmp_path / f"b{suffix}")["layer_1"][[-1, 0]]).all()


@pytest.mark.parametrize("palette", [COLOURS, GREYS])
def test_berts_masks_are_the_probes(tmp_path: Path, photos: Path, model: str, palette: Palette) -> None:
    network = weights(tmp_path / "bert", palette=palette, objective="bert")
    write_features(str(tmp_path / "bert"), [photos], layers="2", out=tmp_path / "f.npz", resize="crop", skip=False)
    pictures = folders.PictureTokens(folders.find_pictures([photos]), palette, 4)
    stored = store_features(tmp_path / "store", network, pictures, key={}, layers=[2], dtype="float32", seed=None)
    np.testing.assert_array_equal(whole(tmp_path / "f.npz")["layer_2"], stored.layers[2])


def test_several_processes_read_the_same(tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(model, [photos], layers="all", out=tmp_path / "a.npz", resize="crop", skip=False)
    monkeypatch.setattr(folders, "cores", lambda: 2)
    write_features(model, [photos], layers="all", out=tmp_path / "b.npz", resize="crop", skip=False)
    first, second = whole(tmp_path / "a.npz"), whole(tmp_path / "b.npz")
    assert all((first[name] == second[name]).all() for name in first)


KILLED = """
import os, signal, sys
from igpt.data import folders
from igpt.evaluate import feature_store
folders.AT_ONCE, folders.cores = 3, lambda: 1
feature_store.SECONDS, feature_store.images_at_once = -1, lambda model: 4
look, seen = feature_store.masked_features, []
def counted(model, tokens, **how):
    seen.append(len(tokens))
    if sum(seen) > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return look(model, tokens, **how)
feature_store.masked_features = counted
sys.argv[0] = "igpt"
from igpt.companion.cli import main
main()
"""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_command_that_ended_early_goes_on(
    tmp_path: Path, photos: Path, model: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "cats" / "00.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (3, 9)).save(photos / "cats" / "01.png")  # smaller than the model's images
    (photos / "cats" / "02.png").write_bytes((photos / "cats" / "0.png").read_bytes()[:150])
    (photos / "dogs" / "z.heic").write_bytes(b"some")
    words = ("features", str(photos), "--model", model, "--skip-broken", "--out")
    expected = igpt(*words, "whole.npz", root=tmp_path)
    assert expected.returncode == 0 and expected.stdout.startswith("22 pictures, ")
    if how == "killed":
        done = subprocess.run([sys.executable, "-c", KILLED, *words, "f.npz"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
    seen: list[int] = []
    look = feature_store.masked_features

    def counted(network: ImageGPT, tokens: torch.Tensor, **options: object) -> dict[int, torch.Tensor]:
        seen.append(len(tokens))
        if how == "stopped" and sum(seen) == 16:
            raise KeyboardInterrupt
        return look(network, tokens, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(feature_store, "masked_features", counted)
    if how == "stopped":
        done = igpt(*words, "f.npz", root=tmp_path)
        assert (done.returncode, done.stderr) == (130, "igpt: stopped; the same command continues\n")
    assert not (tmp_path / "f.npz").exists()
    seen.clear()
    done = igpt(*words, "f.npz", root=tmp_path)
    assert (done.returncode, sum(seen)) == (0, 24 - 12)
    assert done.stderr == expected.stderr
    told = done.stderr.splitlines()
    assert told[:3] == [
        "igpt: 1 animated picture: only the first frame is used",
        "igpt: 1 small picture: enlarged to the model's size",
        "igpt: 2 pictures skipped:",
    ]
    assert (
        "02.png is damaged" in told[3] and "z.heic is HEIC, which cannot be read: save it as JPEG" in told[4] and len(told) == 5
    )
    first, second = whole(tmp_path / "whole.npz"), whole(tmp_path / "f.npz")
    assert all((first[name] == second[name]).all() for name in first)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_broken_picture_stops_the_command_which_then_skips_it(
    tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "dogs" / "5.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"5\.png is empty: copy it again; or leave such pictures out with --skip-broken$"):
        write_features(model, [photos], layers="all", out=tmp_path / "f.npz", resize="crop", skip=False)
    counts: list[int] = []
    look = feature_store.masked_features
    monkeypatch.setattr(feature_store, "masked_features", lambda *a, **k: counts.append(len(a[1])) or look(*a, **k))
    write_features(model, [photos], layers="all", out=tmp_path / "f.npz", resize="crop", skip=True)
    assert sum(counts) == 21 - 12  # what was done before is not done again
    assert len(whole(tmp_path / "f.npz")["file"]) == 20
    for path in photos.rglob("*.png"):
        path.write_bytes(b"some")
    with pytest.raises(UsageError, match="none of the 21 pictures can be read: nothing was written"):
        write_features(model, [photos], layers="all", out=tmp_path / "g.npz", resize="crop", skip=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "model", "photos"]


def test_pictures_skipped_by_an_earlier_command_are_not_skipped_unasked(
    tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "cats" / "00.png").write_bytes(b"some")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "check_unchanged", stop)
    with pytest.raises(KeyboardInterrupt):
        write_features(model, [photos], layers="all", out=tmp_path / "f.npz", resize="crop", skip=True)
    with pytest.raises(UsageError, match=r"00\.png is not an image .*with --skip-broken$"):
        write_features(model, [photos], layers="all", out=tmp_path / "f.npz", resize="crop", skip=False)


@pytest.mark.parametrize("change", ["added", "removed", "changed"])
def test_pictures_that_change_meanwhile_are_noticed(
    tmp_path: Path, photos: Path, model: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, path = feature_store.masked_features, photos / "cats" / "0.png"

    def changing(*words: object, **options: object) -> object:
        if change == "removed":
            path.unlink(missing_ok=True)
        else:
            save(path if change == "changed" else path.with_name("new.png"), 7)
        return look(*words, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "masked_features", changing)
        with pytest.raises(UsageError, match="added, removed or changed while they were read: run the same command again"):
            write_features(model, [photos], layers="1", out=tmp_path / "f.npz", resize="crop", skip=False)
    assert not (tmp_path / "f.npz").exists()
    write_features(model, [photos], layers="1", out=tmp_path / "f.npz", resize="crop", skip=False)
    write_features(model, [photos], layers="1", out=tmp_path / "g.npz", resize="crop", skip=False)
    first, second = whole(tmp_path / "f.npz"), whole(tmp_path / "g.npz")
    assert all((first[name] == second[name]).all() for name in first)


def test_what_cannot_be_done_is_said_first(tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npz").mkdir()
    (photos / "out").symlink_to(tmp_path)
    for words, sentence in (
        (
            ["photos", "--out", "f.txt"],
            "features are written as .parquet or .npz, not as f.txt: name a file that ends in one of these",
        ),
        (["photos", "--out", "folder.npz"], "folder.npz is a folder: name a file to write"),
        (["empty", "--out", "f.npz"], "there are no pictures in empty (0 other files): give PNG, JPEG or the like"),
        (["nothing", "--out", "f.npz"], "there is no file or folder nothing: name pictures, or a folder of them"),
        (["photos", "--out", "f.npz"], "photos/out is a link out of photos: put the pictures themselves there, or remove it"),
        (
            ["photos/cats", "--out", "f.npz", "--model", model, "--layers", "1,3"],
            "layers are '1,3', the model has layers 0 to 2: say all, or some such as 0,4-2",
        ),
    ):
        done = igpt("features", *words, root=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"igpt: {sentence}\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    monkeypatch.setattr(cli, "requires", lambda name: [f"{line}; extra == 'run'" for line in extras["run"]])
    done = igpt("features", "photos/cats", "--out", "f.parquet", "--model", model, root=tmp_path)
    assert done.stderr == 'igpt: this command needs pyarrow, which is not installed: pip install "igpt[run]"\n'
    held = try_lock(tmp_path / ".f.npz.lock")
    assert held is not None
    with held:
        done = igpt("features", "photos/cats", "--out", "f.npz", "--model", model, root=tmp_path)
    assert done.stderr == "igpt: another process is writing f.npz: wait for it, or name another file\n"
    assert igpt("features", "photos/cats", "--out", "f.npz", "--model", model, root=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "f.npz", "folder.npz", "model", "photos"]
