"""A user's own pictures as a data set: what is registered, what is refused, and that changed pictures never pass unnoticed."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.data import data_card, labelled_tokens, load_split, own, split_digest
from igpt.data.cards import is_present
from igpt.data.own import add_own
from igpt.data.resize import fitted
from igpt.data.tokens import TokenizeSettings, make_store, train_parts
from igpt.errors import UsageError
from igpt.palette import Palette

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))
GREYS = Palette(np.linspace(-1, 1, 4, dtype=np.float32)[:, None])


def save(path: Path, seed: int, *, size: tuple[int, int] = (12, 9)) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten pictures of each of two classes, under names that are hard to quote."""
    names = ["it's.png", 'a "b", c.png', "new\nline.png", "猫 🐈.png", *(f"{i}.png" for i in range(6))]
    for label, offset in (("cats", 0), ("dogs & co", 100)):
        for number, name in enumerate(names):
            save(tmp_path / "pets" / label / name, offset + number)
    return tmp_path / "pets"


def parts(name: str) -> dict[str, set[bytes]]:
    """The pictures of each part of a data set, as pixels."""
    card = data_card(name)
    assert card.read is not None
    (train, _), (test, _) = card.read(card, "train"), card.read(card, "test")
    ends = {"train": (train, 0, card.train - card.validation), "validation": (train, card.train - card.validation, card.train)}
    ends["test"] = (test, 0, card.test)
    return {part: {pictures.picture(i).tobytes() for i in range(*bounds)} for part, (pictures, *bounds) in ends.items()}


def test_a_folder_of_classes_is_split_by_content(home: Path, pets: Path) -> None:
    told: list[tuple[int, int]] = []
    lines = add_own("pets", pets, report=lambda done, total: told.append((done, total)))
    assert lines[0] == "pets: 20 pictures of 2 classes (cats 10, dogs & co 10)"
    assert lines[1].startswith("train 14, validation 2, test 4; test a fifth of each class by SHA-256, validation a tenth")
    assert told[-1] == (20, 20)
    card = data_card("pets")
    assert (card.train, card.validation, card.test, card.classes, card.names(card)) == (16, 2, 4, 2, ["cats", "dogs & co"])
    found = parts("pets")
    assert {part: len(pictures) for part, pictures in found.items()} == {"train": 14, "validation": 2, "test": 4}
    assert len(found["train"] | found["validation"] | found["test"]) == 20
    labels = load_split("pets", "test", side=4).labels
    assert sorted(labels.tolist()) == [0, 0, 1, 1]

    digest = split_digest("pets")
    moved = pets.rename(pets.with_name("moved"))
    (moved / "cats" / "0.png").rename(moved / "cats" / "renamed.png")
    assert not is_present("pets")
    with pytest.raises(UsageError, match=r"no longer at .*: put them back, or run `igpt data add` again"):
        load_split("pets", "test", side=4)
    assert add_own("pets", moved)[2] == "the same pictures as before"
    assert split_digest("pets") == digest and parts("pets") == found
    save(moved / "cats" / "another.png", 999)
    assert add_own("pets", moved)[2] == "other pictures than before: earlier results are stale"
    assert split_digest("pets") != digest
    assert len(list((home / "own").glob("pets-*.csv"))) == 1


def test_equal_pictures_of_a_class_are_in_one_part(home: Path, pets: Path) -> None:
    for label in ("cats", "dogs & co"):
        for path in list((pets / label).iterdir()):
            (pets / label / f"copy of {path.name}").write_bytes(path.read_bytes())
    assert not any("too easy" in line for line in add_own("pets", pets))
    found = list(parts("pets").values())
    assert sum(map(len, found)) == len(set.union(*found)) == 20


def test_parts_that_are_given_are_kept_and_leaks_are_told(home: Path, tmp_path: Path) -> None:
    for number, part in enumerate(["train"] * 4 + ["val"] * 2):
        for label in "ab":
            save(tmp_path / "set" / part / label / f"{number}.png", hash((number, label)) % 2**31)
    assert "test as given (val), validation a tenth of the rest" in add_own("two", tmp_path / "set")[1]
    assert {part: len(pictures) for part, pictures in parts("two").items()} == {"train": 6, "validation": 2, "test": 4}
    for label in "ab":
        save(tmp_path / "set" / "test" / label / "0.png", ord(label))
        (tmp_path / "set" / "test" / label / "1.png").write_bytes((tmp_path / "set" / "train" / label / "0.png").read_bytes())
    lines = add_own("three", tmp_path / "set")
    assert "test as given, validation as given" in lines[1]
    assert "2 pictures in test and in train too, which makes the test too easy" in lines
    assert {part: len(pictures) for part, pictures in parts("three").items()} == {"train": 8, "validation": 4, "test": 4}


def test_a_table_names_files_labels_and_parts(home: Path, pets: Path) -> None:
    files = sorted(path.relative_to(pets) for path in pets.rglob("*.png"))
    rows = [[str(file), file.parts[0], "train" if number % 5 else "test"] for number, file in enumerate(files)]
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([["Path", "Class", "Split"], *rows])
    (pets / "list.csv").write_text("\ufeff" + text.getvalue())
    lines = add_own("listed", pets / "list.csv")
    assert lines[:2] == [
        "listed: 20 pictures of 2 classes (cats 10, dogs & co 10)",
        "train 14, validation 2, test 4; test as given, validation a tenth of the rest by SHA-256",
    ]
    assert len(set.union(*parts("listed").values())) == 20


def archive(path: Path, *names: str, shape: tuple[int, ...] = (12, 5, 4), **arrays: object) -> Path:
    """An .npz file of images and labels."""
    generator, content = np.random.default_rng(0), dict(arrays)
    for images, labels in zip(names[::2], names[1::2], strict=True):
        content[images] = generator.integers(0, 256, shape, np.uint8)
        content[labels] = np.arange(shape[0]) % 2
    np.savez(path, **content)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train", "x_test", "y_test")])
@pytest.mark.parametrize("shape", [(12, 5, 4), (12, 5, 4, 1), (12, 5, 4, 3), (12, 5, 4, 4)])
def test_arrays_are_a_data_set_too(home: Path, tmp_path: Path, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    path = archive(tmp_path / "set.npz", *names, shape=shape)
    lines = add_own("arrays", path)
    assert lines[0] == f"arrays: {6 * len(names)} pictures of 2 classes (0 {3 * len(names)}, 1 {3 * len(names)})"
    for palette in (COLOURS, GREYS):
        assert len(labelled_tokens("arrays", "train", side=4, palette=palette)[:]) == data_card("arrays").train - 2
    archive(path, *names, shape=(*shape[:1], 6, *shape[2:]))
    with pytest.raises(UsageError, match=r"has changed since arrays was added: run `igpt data add` again"):
        load_split("arrays", "train", side=4)


@pytest.mark.parametrize("resize", ["crop", "squeeze"])
@pytest.mark.parametrize("palette", [COLOURS, GREYS], ids=["rgb", "grey"])
def test_tokens_are_those_of_the_fitted_pictures(home: Path, pets: Path, resize: own.Resize, palette: Palette) -> None:
    save(pets / "cats" / "large.png", 5, size=(300, 260))
    add_own("pets", pets, resize=resize)
    channels = palette.centres.shape[1]
    for part in ("train", "validation", "test"):
        tokens = labelled_tokens("pets", part, side=4, palette=palette)
        assert len(tokens) == len(parts("pets")[part])
    card = data_card("pets")
    assert card.read is not None
    pictures, labels = card.read(card, "test")
    pixels = [fitted(pictures.picture(i), side=4, channels=channels, resize=resize) for i in range(card.test)]  # type: ignore[union-attr]
    tokens = labelled_tokens("pets", "test", side=4, palette=palette)
    np.testing.assert_array_equal(tokens[:], palette.quantize(np.stack(pixels)).reshape(len(pixels), -1))
    np.testing.assert_array_equal(tokens.labels, labels)


def test_several_processes_read_the_same_pixels(home: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_own("pets", pets)
    alone = load_split("pets", "train", side=4).images
    monkeypatch.setattr(own, "AT_ONCE", 5)
    monkeypatch.setattr(own, "cores", lambda: 2)
    np.testing.assert_array_equal(load_split("pets", "train", side=4).images, alone)


def test_tokens_of_replaced_pictures_are_not_used(home: Path, pets: Path) -> None:
    add_own("pets", pets)
    before = make_store(TokenizeSettings("pets", "train", 4), COLOURS)[0]
    save(pets / "cats" / "0.png", 999)
    with pytest.raises(UsageError, match=r"0\.png has changed since pets was added: run `igpt data add` again"):
        parts("pets")
    add_own("pets", pets)
    after = make_store(TokenizeSettings("pets", "train", 4), COLOURS)[0]
    assert before.folder != after.folder and before.digest != after.digest
    train_parts(after)
    with pytest.raises(UsageError, match="was made of other pictures than pets has now: tokenise again"):
        train_parts(before)


def test_a_killed_registration_continues(home: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "AT_ONCE", 3)
    read: list[str] = []
    examine = own._examine
    monkeypatch.setattr(own, "cores", lambda: 1)
    monkeypatch.setattr(own, "_examine", lambda paths: read.extend(map(str, paths)) or examine(paths))

    def stop(done: int, total: int) -> None:
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_own("pets", pets, report=stop)
    assert not (home / "own" / "pets.json").exists()
    save(pets / "cats" / "0.png", 999, size=(13, 9))  # of those that were read already
    first = len(read)
    assert first < 20
    add_own("pets", pets)
    assert len(read) <= 20 + 3 + 1 and {str(path) for path in pets.rglob("*.png")} == {*read}
    assert parts("pets")
    assert not list((home / "own").glob(".*progress"))


def test_what_cannot_be_read_is_named_and_may_be_skipped(home: Path, pets: Path) -> None:
    (pets / "cats" / "cut.png").write_bytes((pets / "cats" / "0.png").read_bytes()[:-40])
    (pets / "cats" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (pets / "dogs & co" / "b.svg").write_text("<svg/>")
    (pets / "dogs & co" / "empty.jpg").touch()
    (pets / "notes.txt").write_text("no picture")
    (pets / "cats" / ".hidden.png").write_text("no picture")
    frames = [Image.new("L", (9, 9), level) for level in (0, 200)]
    frames[0].save(pets / "cats" / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UsageError, match=r"a\.heic is HEIC.*save it as JPEG \(and 3 more\); or leave .* --skip-broken$"):
        add_own("pets", pets)
    lines = add_own("pets", pets, skip=True)
    assert lines[0] == "pets: 21 pictures of 2 classes (cats 11, dogs & co 10)"
    assert lines[2:5] == ["1 other file left out", "1 animated picture: only the first frame is used", "4 pictures skipped:"]
    assert "cut.png is damaged" in lines[6] and "b.svg is a drawing, not pixels: export it as PNG" in lines[7]
    (pets / "cats" / "cut.png").unlink()
    with pytest.raises(UsageError, match=r"and 2 more"):  # not from memory
        add_own("pets", pets)


def test_pictures_are_turned_upright(home: Path, tmp_path: Path) -> None:
    for label, colour in (("left", 0), ("right", 255)):
        for number in range(4):
            picture = Image.new("RGB", (40, 20), "black")
            picture.paste((255, colour, number), (0, 0, 20, 20))
            exif = Image.Exif()
            exif[0x0112] = 8  # to be turned by a quarter, counter-clockwise
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "set" / label / f"{number}.png", exif=exif)
    add_own("turned", tmp_path / "set")
    images = load_split("turned", "test", side=2).images
    assert (images[:, 1, :, 0] > images[:, 0, :, 0]).all()  # the bright half is below


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hacked",)


def crafted(path: Path, header: str) -> Path:
    """An .npz file whose images claim more than they hold."""
    with zipfile.ZipFile(path, "w") as written:
        text = header.encode().ljust(118 - 10) + b"\n"
        written.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64)
        written.writestr("labels.npy", b"")
    return path


def test_hostile_sources_are_refused(home: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(source: Path, match: str) -> None:
        with pytest.raises(UsageError, match=match) as found:
            add_own("evil", source)
        assert "\n" not in str(found.value).replace("new\nline", "")
        assert not (home / "own" / "evil.json").exists()

    secret = save(tmp_path / "secret.png", 1)
    (pets / "cats" / "link.png").symlink_to(secret)
    refused(pets, r"link\.png is a link out of .*pets: put the pictures themselves there")
    (pets / "cats" / "link.png").unlink()
    (pets / "elsewhere").symlink_to(tmp_path)
    refused(pets, r"elsewhere is a link out of")
    (pets / "elsewhere").unlink()
    os.mkfifo(pets / "cats" / "pipe.png")
    refused(pets, r"pipe\.png cannot be read \(it is no regular file\)")
    (pets / "cats" / "pipe.png").unlink()
    with zipfile.ZipFile(tmp_path / "pickled.npz", "w") as written:
        for name in ("images", "labels"):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.array([Evil()], object), allow_pickle=True)
            written.writestr(f"{name}.npy", buffer.getvalue())
    refused(tmp_path / "pickled.npz", "holds pickled objects")
    assert not (tmp_path / "hacked").exists()
    huge = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000000), }"
    refused(crafted(tmp_path / "huge.npz", huge), "another size than its header says")
    (tmp_path / "text.npz").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "text.npz", r"is not an \.npz file of images and labels")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as written:
        shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 32, 32), }".ljust(117) + "\n"
        head = b"\x93NUMPY\x01\x00" + len(shape).to_bytes(2, "little") + shape.encode()
        written.writestr("images.npy", head + bytes(60_000 * 32 * 32))
        written.writestr("labels.npy", b"")
    monkeypatch.setattr("igpt.data.npz.free_memory", lambda: 1e8)
    refused(tmp_path / "bomb.npz", r"takes 0\.1 GB of memory, more than half of what is free")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"list\.csv is not a table \(it is empty\): write a row"),
        ("cats/0.png,cats\n", "first line of .* is 'cats/0.png,cats': it must name the columns file and label"),
        ("file,label\n", "names no pictures"),
        ("file,label\n,cats\n", "row 2, has no file"),
        ("file,label\ncats/0.png\n", "row 2, has no label"),
        ("file,label,split\ncats/0.png,cats,later\n", "row 2, has the split 'later': write train, validation or test"),
        ("file,label\n../secret.png,cats\n", r"row 2, names \.\./secret\.png, which is not below"),
        ("file,label\n/etc/passwd,cats\n", "row 2, names /etc/passwd, which is not below"),
        ("file,label\ncats/0.png,cats\ncats/0.png,dogs\n", "row 3, names cats/0.png again"),
        ('file,label\n"cats/0.png,cats\n', r"is not a table \(unexpected end of data\)"),
        ("file,label\ncats/0.png,a\ncats/1.png,b\n", "the class 'a' of .* has 1 picture and none to train on"),
        ("file,label\n" + "".join(f"cats/{i}.png,a\n" for i in range(5)), "has one class, a: at least two"),
        ("file,label\ncats/none.png,a\n", r"none\.png cannot be read \(No such file"),
    ],
)
def test_tables_that_are_none_are_refused_in_a_sentence(home: Path, pets: Path, text: str, match: str) -> None:
    (pets / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=match):
        add_own("listed", pets / "list.csv")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": np.zeros((4, 3, 3), np.float32), "labels": np.arange(4)}, "is float32 .*: images are uint8"),
        ({"images": np.zeros((4, 3, 3, 2), np.uint8), "labels": np.arange(4)}, r"is uint8 \(4, 3, 3, 2\): images are"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.arange(5)}, "labels are an integer or a text for each of the 4"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.eye(4)}, "labels of .* is float64"),
        ({"pictures": np.zeros(3)}, "holds pictures: it needs images and labels"),
    ],
)
def test_arrays_that_are_none_are_refused_in_a_sentence(
    home: Path, tmp_path: Path, arrays: dict[str, np.ndarray], match: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=match):
        add_own("arrays", tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["Pets", "a b", "../x", "a,b", "a=b", "-a", "", "a" * 41])
def test_names_that_would_break_others_are_refused(home: Path, pets: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a data set"):
        add_own(name, pets)


def test_a_damaged_registration_is_named(home: Path, pets: Path) -> None:
    add_own("pets", pets)
    table = next((home / "own").glob("pets-*.csv"))
    content = table.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(b"cats,train", b"cows,train"), b"\0\xff"):
        table.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"pets-.*csv .*run `igpt data add` again"):
            parts("pets")
    declared = json.loads((home / "own" / "pets.json").read_text())
    for change in ({"train": -1}, {"digest": "x"}, {"version": 2}, {"more": 1}, {"resize": "stretch"}):
        (home / "own" / "pets.json").write_text(json.dumps({**declared, **change}))
        with pytest.raises(UsageError, match=r"pets\.json .*run `igpt data add` again"):
            data_card("pets")
    (home / "own" / "pets.json").write_text("{")
    with pytest.raises(UsageError, match=r"pets\.json .*run `igpt data add` again"):
        data_card("pets")
    assert "same pictures" not in "".join(add_own("pets", pets))
    assert data_card("pets").classes == 2
