from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from official import (
    PARENT,
    VAL_TRUTH,
    WNIDS,
    Publish,
    devkit,
    imagenet_folders,
    imagenet_tars,
    jpeg,
    open_jpegs,
    publish_imagenet,
    refusal,
    tar_of,
    tiny_imagenet,
    train_jpegs,
    val_jpegs,
    write,
)
from PIL import Image

from igpt.data import data_card, load_split
from igpt.data.cards import is_present
from igpt.data.fetching import check_dataset
from igpt.data.jpegs import Jpegs, class_ids, decode
from igpt.errors import UsageError

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"
TRAIN_TAR, VAL_TAR, DEVKIT = imagenet_tars().keys()
LITTER = ["._{}", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/{}", "__MACOSX/._{}", "@eaDir/{}"]  # {}: a picture's name


def kaggle(solution: bytes | None = None) -> dict[str, bytes]:
    """ImageNet as Kaggle's archive has it; the pictures of its list are in no order, and some have several boxes."""
    boxes = [f"{WNIDS[label]} 85 1 499 272 {WNIDS[label]} 3 4 5 6 " if label else f"{WNIDS[0]} 1 2 3 4" for label in VAL_TRUTH]
    lines = [f"ILSVRC2012_val_{place + 1:08d},{box}\n" for place, box in enumerate(boxes)]
    files = {f"ILSVRC/Data/CLS-LOC/{path}": content for path, content in imagenet_folders(flat=True).items() if path != DEVKIT}
    files["LOC_synset_mapping.txt"] = "".join(f"{wnid} a thing\n" for wnid in WNIDS).encode()
    files["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"] = jpeg(5)
    files["LOC_val_solution.csv"] = (
        ("ImageId,PredictionString\n" + "".join(reversed(lines))).encode() if solution is None else solution
    )
    return files


def littered(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same with what macOS and Windows leave, in every folder and in every tar."""
    found = dict(files)
    for path in files:
        above, _, name = path.rpartition("/")
        found |= {f"{above}/{words.format(name)}".lstrip("/"): b"\0\5\26\7 not a picture" for words in LITTER}
    if TRAIN_TAR in files:
        dirt = [(words.format("a.JPEG"), b"\0\5\26\7") for words in LITTER]
        inner = [(f"{wnid}.tar", tar_of([*dirt, *pictures])) for wnid, pictures in train_jpegs().items()]
        found |= {TRAIN_TAR: tar_of([(f"._{inner[0][0]}", b"\0\5\26\7"), *inner, *dirt]), VAL_TAR: tar_of([*dirt, *val_jpegs()])}
    return found


LAYOUTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "tars": imagenet_tars,
    "folders": imagenet_folders,
    "flat val": lambda: imagenet_folders(flat=True),
    "Kaggle's": kaggle,
    "flat val with Kaggle's list": lambda: (
        {path: content for path, content in imagenet_folders(flat=True).items() if path != DEVKIT}
        | {"LOC_val_solution.csv": kaggle()["LOC_val_solution.csv"]}
    ),
    "Kaggle's with class folders": lambda: {f"ILSVRC/Data/CLS-LOC/{path}": c for path, c in imagenet_folders().items()},
    "classes behind the names": lambda: {
        re.sub(r"(n\d{8})/(\w+)\.JPEG", r"\1/\2_\1.jpg", path): content for path, content in imagenet_folders().items()
    },
    "folder train, tar val": lambda: {
        **{path: content for path, content in imagenet_folders().items() if path.startswith("train")},
        **{name: content for name, content in imagenet_tars().items() if name != TRAIN_TAR},
    },
}


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_imagenet_gives_the_same_images_and_labels(
    home: Path, publish: Publish, layout: str, dirty: bool
) -> None:
    publish_imagenet(publish, home, littered(LAYOUTS[layout]()) if dirty else LAYOUTS[layout]())
    train, test = open_jpegs("imagenet", "train"), open_jpegs("imagenet", "test")
    found = [train.read(index) for index in range(len(train))]
    assert found == [content for wnid in WNIDS for _, content in sorted(train_jpegs()[wnid])]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and train.labels.dtype == np.int64
    assert [test.read(index) for index in range(len(test))] == [content for _, content in val_jpegs()]
    assert test.labels.tolist() == VAL_TRUTH and test.labels.dtype == np.int64
    assert class_ids(data_card("imagenet")) == WNIDS and is_present("imagenet")


def test_a_picture_of_another_name_is_refused_with_it(home: Path, publish: Publish) -> None:
    for path in (f"train/{WNIDS[1]}/holiday.JPEG", f"train/{WNIDS[1]}/{WNIDS[0]}_10.JPEG", f"val/{WNIDS[1]}/holiday.png"):
        files = imagenet_folders()
        del files[next(known for known in files if Path(known).parent == Path(path).parent)]  # so that their number is right
        publish_imagenet(publish, home, files | {path: jpeg(1)})
        text = refusal(open_jpegs, "imagenet", "train" if path.startswith("train") else "test")
        assert f"{home / 'imagenet' / path} is none of the data set's pictures" in text
        shutil.rmtree(home / "imagenet")


@pytest.mark.parametrize("layout", ["folders", "flat val", "Kaggle's"])
def test_a_name_that_says_another_class_than_its_place_or_list_is_refused(home: Path, publish: Publish, layout: str) -> None:
    publish_imagenet(publish, home, kaggle() if layout == "Kaggle's" else imagenet_folders(flat=layout == "flat val"))
    root = home / "imagenet" / ("ILSVRC/Data/CLS-LOC" if layout == "Kaggle's" else "")
    for part, split in (("train", "train"), ("val", "test")):
        path = min((root / part).rglob("*.JPEG"))
        right = path.parent.name if path.parent.name in WNIDS else WNIDS[VAL_TRUTH[0]]
        for wnid in WNIDS:
            named = path.rename(path.with_stem(f"{path.stem}_{wnid}"))
            if wnid == right:
                assert len(open_jpegs("imagenet", split))
            else:
                assert f"{named} names another class than its folder or list, {right}:" in refusal(open_jpegs, "imagenet", split)
            named.rename(path)


def test_a_picture_of_too_many_bytes_is_refused_unread(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    found = open_jpegs("imagenet", "train")
    os.truncate(found.path(0), 2**40)  # more than can be read
    assert f"{found.path(0)} cannot be read (it has 1,099,511,627,776 bytes" in refusal(found.picture, 0)


def test_each_picture_is_there_once(home: Path, publish: Publish) -> None:
    twice = {f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG": jpeg(1000)}  # which is of the last class
    publish_imagenet(publish, home, imagenet_folders() | twice)
    assert "ILSVRC2012_val_00000001.JPEG are the same picture" in refusal(open_jpegs, "imagenet", "test")
    write(home / "imagenet", {f"train/{WNIDS[0]}/{WNIDS[0]}_10.png": jpeg(101)})
    assert f"{WNIDS[0]}_10.JPEG are the same picture" in refusal(open_jpegs, "imagenet", "train")


def test_a_validation_picture_in_the_folder_of_another_class_is_seen(home: Path, publish: Publish) -> None:
    files = imagenet_folders()
    files[f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG"] = files.pop(f"val/{WNIDS[2]}/ILSVRC2012_val_00000001.JPEG")
    publish_imagenet(publish, home, files)
    assert f"has 3 test images of class {WNIDS[0]}, ImageNet (ILSVRC 2012) has 2 of each" in refusal(
        open_jpegs, "imagenet", "test"
    )


@pytest.mark.parametrize("layout", ["tars", "flat val", "Kaggle's"])
def test_a_gap_in_the_numbers_moves_no_label(home: Path, publish: Publish, layout: str) -> None:
    gap = [(name.replace("00000003", "00000007"), content) for name, content in val_jpegs()]
    files = {path.replace("val_00000003", "val_00000007"): content for path, content in LAYOUTS[layout]().items()}
    publish_imagenet(publish, home, files | ({VAL_TAR: tar_of(gap)} if layout == "tars" else {}))
    assert "ILSVRC2012_val_00000007, for which there is no label" in refusal(open_jpegs, "imagenet", "test")


HEAD = b"ImageId,PredictionString\n"
ROWS = kaggle()["LOC_val_solution.csv"].removeprefix(HEAD).splitlines(keepends=True)
LISTS = {
    "empty": b"",
    "another head": b"id,label\n" + b"".join(ROWS),
    "no head": b"".join(ROWS),
    "too few": HEAD + b"".join(ROWS[1:]),
    "a gap": HEAD + b"".join(ROWS[:-1]),
    "one twice": HEAD + b"".join([*ROWS, ROWS[0]]),
    "one too many": HEAD + b"".join([*ROWS, b"ILSVRC2012_val_00000007,n01440764 1 2 3 4\n"]),
    "no class": HEAD + b"".join([*ROWS[:-1], b"ILSVRC2012_val_00000001,85 1 499 272\n"]),
    "an unknown class": HEAD + b"".join([*ROWS[:-1], b"ILSVRC2012_val_00000001,n09999999 85 1 499 272\n"]),
    "of train": HEAD + b"n02017213_7894,n02017213 115 49 448 294\n" * 6,
    "bytes": b"\xff\xfe" + HEAD,
    "a quote without an end": HEAD + b'"ILSVRC2012_val_00000001,' + b"".join(ROWS),
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS.keys())
def test_another_list_of_kaggles_is_refused(home: Path, publish: Publish, content: bytes) -> None:
    publish_imagenet(publish, home, kaggle(content))
    assert str(home / "imagenet") in refusal(open_jpegs, "imagenet", "test")


def test_kaggles_list_may_come_from_windows(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, kaggle(b"\xef\xbb\xbf" + kaggle()["LOC_val_solution.csv"].replace(b"\n", b"\r\n")))
    assert open_jpegs("imagenet", "test").labels.tolist() == VAL_TRUTH


def test_kaggles_pictures_need_one_of_the_lists(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, {path: content for path, content in kaggle().items() if not path.endswith(".csv")})
    text = refusal(open_jpegs, "imagenet", "test")
    assert DEVKIT in text and "LOC_val_solution.csv" in text


def test_the_train_images_are_sorted_by_class_whatever_the_order_of_the_tars(home: Path, publish: Publish) -> None:
    inner = [(f"{wnid}.tar", tar_of(reversed(files))) for wnid, files in reversed(train_jpegs().items())]
    publish_imagenet(publish, home, imagenet_tars() | {TRAIN_TAR: tar_of(inner)})
    jpegs = open_jpegs("imagenet", "train")
    assert [jpegs.read(index) for index in range(9)] == [c for wnid in WNIDS for _, c in sorted(train_jpegs()[wnid])]


def test_validation_labels_follow_the_names_in_the_tar(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_tars() | {VAL_TAR: tar_of(reversed(val_jpegs()))})
    jpegs = open_jpegs("imagenet", "test")
    assert jpegs.labels.tolist() == VAL_TRUTH
    assert [jpegs.read(index) for index in range(6)] == [content for _, content in val_jpegs()]


def test_imagenet_is_never_loaded_whole_and_is_checked(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    assert "`igpt data tokenize imagenet`" in refusal(load_split, "imagenet", "train")
    lines = check_dataset("imagenet")
    assert lines[0].startswith(f"train: 9 images of 3 classes, 3 to 3 a class; the first is 12 x 16, of class 0 ({WNIDS[0]})")


def altered(index: int, info: tarfile.TarInfo | str, content: bytes = b"", *, of: str = VAL_TAR) -> dict[str, bytes]:
    """The three tars with one member of the validation or of an inner training tar replaced."""
    members: list[tuple[str | tarfile.TarInfo, bytes]] = list(val_jpegs() if of == VAL_TAR else train_jpegs()[WNIDS[0]])
    members[index] = (info, content)
    tar = tar_of(members)
    if of == TRAIN_TAR:
        tar = tar_of([(f"{WNIDS[0]}.tar", tar)] + [(f"{wnid}.tar", tar_of(train_jpegs()[wnid])) for wnid in WNIDS[1:]])
    return imagenet_tars() | {of: tar}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


NAMES = {VAL_TAR: "ILSVRC2012_val_00000001.JPEG", TRAIN_TAR: f"{WNIDS[0]}_10.JPEG"}


@pytest.mark.parametrize("of", [VAL_TAR, TRAIN_TAR])
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE]
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_member_that_is_no_plain_file_is_refused(home: Path, publish: Publish, of: str, kind: bytes, index: int) -> None:
    publish_imagenet(publish, home, altered(index, member(NAMES[of], kind, "/etc/passwd"), of=of))
    assert NAMES[of] in refusal(open_jpegs, "imagenet", "test" if of == VAL_TAR else "train")


@pytest.mark.parametrize("of", [VAL_TAR, TRAIN_TAR])
@pytest.mark.parametrize("prefix", ["../", "/", "./", "val/", "x"])
def test_a_member_of_another_name_is_refused(home: Path, publish: Publish, of: str, prefix: str) -> None:
    publish_imagenet(publish, home, altered(0, prefix + NAMES[of], jpeg(1), of=of))
    assert "which the official file has not" in refusal(open_jpegs, "imagenet", "test" if of == VAL_TAR else "train")


@pytest.mark.parametrize("fraction", [0, 0.001, 0.05, 0.1, 0.3, 0.5, 0.7, 0.75])
@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR, DEVKIT])
def test_a_tar_cut_short_anywhere_is_refused(home: Path, publish: Publish, name: str, fraction: float) -> None:
    files = imagenet_tars()
    files[name] = files[name][: int(fraction * len(files[name]))]
    publish_imagenet(publish, home, files)
    text = refusal(open_jpegs, "imagenet", "train" if name == TRAIN_TAR else "test")
    assert str(home / "imagenet") in text


def test_a_tar_cut_at_every_block_is_refused(home: Path, publish: Publish) -> None:
    files = imagenet_tars()
    publish_imagenet(publish, home, files)
    path, ends = home / "imagenet" / VAL_TAR, 512 * 2 * len(VAL_TRUTH)
    for size in range(0, ends, 512):
        path.write_bytes(files[VAL_TAR][:size])
        refusal(open_jpegs, "imagenet", "test")


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_changed_byte_of_a_tar_is_the_data_set_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tar")
        patch.setenv("IGPT_DATA", str(folder))
        content = bytearray(imagenet_tars()[VAL_TAR])
        content[place] = byte
        write(folder / "imagenet", imagenet_tars() | {VAL_TAR: bytes(content)})
        with pytest.raises(UsageError):  # of the published number of images at the latest
            open_jpegs("imagenet", "test")


def test_a_missing_class_or_image_and_one_too_many_are_refused(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    folder = home / "imagenet"
    (folder / "train" / WNIDS[1] / f"{WNIDS[1]}_10.JPEG").unlink()
    assert "has 8 train images of 3 classes, ImageNet (ILSVRC 2012) has 9 of 3" in refusal(open_jpegs, "imagenet", "train")
    write(folder, {f"train/{WNIDS[0]}/{WNIDS[0]}_{number}.JPEG": jpeg(1) for number in (7, 8)})
    assert "has 10 train images" in refusal(open_jpegs, "imagenet", "train")
    (folder / "val" / WNIDS[2]).rename(folder / "elsewhere")
    assert f"val/{WNIDS[2]} cannot be read" in refusal(open_jpegs, "imagenet", "test")


def test_a_validation_image_of_a_class_that_is_not_there_is_refused(home: Path, publish: Publish) -> None:
    files = {path: content for path, content in imagenet_folders(flat=True).items() if WNIDS[2] not in path}
    publish_imagenet(publish, home, files)
    assert WNIDS[2] in refusal(open_jpegs, "imagenet", "test")


def test_val_without_train_is_refused(home: Path, publish: Publish) -> None:
    files = {path: content for path, content in imagenet_folders(flat=True).items() if not path.startswith("train")}
    publish_imagenet(publish, home, imagenet_tars() | files)
    assert "train" in refusal(open_jpegs, "imagenet", "test")
    publish_imagenet(publish, home, {"train/notes.txt": b""})
    assert "has no folder of a class" in refusal(open_jpegs, "imagenet", "train")


@pytest.mark.parametrize("layout", [imagenet_tars, lambda: imagenet_folders(flat=True)], ids=["tars", "flat val"])
@pytest.mark.parametrize("content", [b"", devkit()[:-1], devkit(truth=VAL_TRUTH[::-1])], ids=["empty", "cut", "another"])
def test_another_development_kit_is_refused(
    home: Path, publish: Publish, layout: Callable[[], dict[str, bytes]], content: bytes
) -> None:
    publish_imagenet(publish, home, layout() | {DEVKIT: content})
    assert f"{home / 'imagenet' / DEVKIT} is damaged or another file" in refusal(open_jpegs, "imagenet", "test")


def test_the_parents_of_classes_are_no_classes(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_tars())
    assert PARENT not in class_ids(data_card("imagenet"))


def tiny_val(pattern: str, *, notes: bool = True) -> dict[str, bytes]:
    """Tiny ImageNet with its validation pictures moved into folders of their classes."""
    files = tiny_imagenet()
    for place, label in enumerate(VAL_TRUTH):
        files[f"val/{pattern.format(WNIDS[label])}/val_{place}.JPEG"] = files.pop(f"val/images/val_{place}.JPEG")
    return files if notes else {path: content for path, content in files.items() if "annotations" not in path}


TINY: dict[str, Callable[[], dict[str, bytes]]] = {
    "as published": tiny_imagenet,
    "images in classes": lambda: tiny_val("{}/images"),
    "classes": lambda: tiny_val("{}", notes=False),
    "classes in images": lambda: tiny_val("images/{}"),
    "train without images": lambda: {path.replace("/images/n", "/n"): content for path, content in tiny_imagenet().items()},
}


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("layout", TINY)
def test_every_layout_of_tiny_imagenet_comes_out_as_it_went_in(home: Path, publish: Publish, layout: str, dirty: bool) -> None:
    files = tiny_imagenet()
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", littered(TINY[layout]()) if dirty else TINY[layout]())
    train, test = open_jpegs("tiny-imagenet", "train"), open_jpegs("tiny-imagenet", "test")
    assert [train.read(i) for i in range(9)] == [files[f"train/{w}/images/{w}_{k}.JPEG"] for w in WNIDS for k in range(3)]
    assert [test.read(i) for i in range(6)] == [files[f"val/images/val_{k}.JPEG"] for k in range(6)]
    assert test.labels.tolist() == VAL_TRUTH and train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert load_split("tiny-imagenet", "train").images.shape == (8, 64, 64, 3)
    assert len(check_dataset("tiny-imagenet")) == 3


@pytest.mark.parametrize("path", ["val/images/holiday.JPEG", f"train/{WNIDS[0]}/images/holiday.JPEG", "val/images/val_7.JPEG"])
def test_a_picture_that_is_not_tiny_imagenets_is_refused_with_its_name(home: Path, publish: Publish, path: str) -> None:
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", tiny_imagenet() | {path: jpeg(1, (64, 64))})
    assert Path(path).stem in refusal(open_jpegs, "tiny-imagenet", "train" if "train" in path else "test")


def test_a_half_rearranged_tiny_imagenet_is_refused(home: Path, publish: Publish) -> None:
    files = tiny_val("{}/images")
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", files | {"val/images/val_0.JPEG": files.pop(f"val/{WNIDS[2]}/images/val_0.JPEG")})
    assert "has 5 test images of 3 classes" in refusal(open_jpegs, "tiny-imagenet", "test")


def test_empty_folders_of_a_stopped_rearrangement_hide_no_official_images(home: Path, publish: Publish) -> None:
    publish("tiny-imagenet", train=9, test=6, classes=3)
    root = home / "tiny-imagenet-200"
    write(root, tiny_imagenet())
    (root / "val" / WNIDS[0]).mkdir()
    assert len(open_jpegs("tiny-imagenet", "test")) == 6


def test_folders_without_images_are_counted_in_a_sentence(home: Path, publish: Publish) -> None:
    publish("tiny-imagenet", train=9, test=6, classes=3)
    for wnid in WNIDS[:3]:
        (home / "tiny-imagenet-200" / "train" / wnid / "images").mkdir(parents=True)
    assert "has 0 train images of 0 classes" in refusal(open_jpegs, "tiny-imagenet", "train")


@pytest.mark.parametrize("notes", [None, b"", b"\n", b"\xff", b"val_0.JPEG\tn00000000\n", b"val_0.JPEG n01440764\n"])
def test_tiny_imagenets_classes_are_needed(home: Path, publish: Publish, notes: bytes | None) -> None:
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", tiny_imagenet())
    path = home / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.unlink() if notes is None else path.write_bytes(notes)
    assert refusal(open_jpegs, "tiny-imagenet", "test").startswith(f"{path} does not give the classes")


def test_an_image_of_another_size_is_named(home: Path, publish: Publish) -> None:
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", tiny_imagenet() | {"val/images/val_3.JPEG": jpeg(1, (64, 32))})
    assert "val_3.JPEG is (32, 64), others are (64, 64)" in refusal(load_split, "tiny-imagenet", "test")


@pytest.mark.parametrize("content", [b"", b"words", b"\xff\xd8", b"%!PS-Adobe-3.0\n", jpeg(1)[:15]])
@pytest.mark.parametrize("layout", [imagenet_tars, imagenet_folders])
def test_a_file_that_is_no_image_is_named(
    home: Path, publish: Publish, layout: Callable[[], dict[str, bytes]], content: bytes
) -> None:
    files = imagenet_folders() | {f"train/{WNIDS[1]}/{WNIDS[1]}_20.JPEG": content}
    name = f"{WNIDS[1]}_20.JPEG"
    if layout is imagenet_tars:
        inner = {w: [(n, content if n == name else c) for n, c in found] for w, found in train_jpegs().items()}
        files = imagenet_tars() | {TRAIN_TAR: tar_of([(f"{w}.tar", tar_of(found)) for w, found in inner.items()])}
    publish_imagenet(publish, home, files)
    text = refusal(open_jpegs("imagenet", "train").picture, 4)
    assert (f"{TRAIN_TAR} at byte " if layout is imagenet_tars else name) in text
    assert re.search("is not an image|is damaged", text) and text.endswith(": restore the data set")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_grey_and_cmyk_become_rgb(mode: str) -> None:
    picture = decode(jpeg(4, (20, 20), mode))
    assert picture.mode == "RGB" and picture.size == (20, 20)
    original = Image.open(io.BytesIO(jpeg(4, (20, 20)))).convert("L")
    assert abs(np.asarray(picture.convert("L")).astype(int) - np.asarray(original)).max() < 12


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1"])
def test_a_png_under_a_jpegs_name_is_read(mode: str) -> None:
    original = Image.open(io.BytesIO(jpeg(4, (20, 20))))
    out = io.BytesIO()
    original.convert(mode).save(out, "PNG")
    assert np.array_equal(np.asarray(decode(out.getvalue())), np.asarray(original.convert(mode).convert("RGB")))


def test_a_broken_end_is_left_grey_and_the_rest_is_kept() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    out = io.BytesIO()
    noise.save(out, "JPEG", quality=95)
    whole = np.asarray(decode(out.getvalue()))
    cut = np.asarray(decode(out.getvalue()[: len(out.getvalue()) // 2]))
    assert cut.shape == whole.shape
    np.testing.assert_array_equal(cut[:8], whole[:8])
    assert len(np.unique(cut[-8:])) < 8
    from PIL import ImageFile

    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # for others in the process it is as it was


def test_a_rotation_in_exif_is_not_followed() -> None:
    picture = Image.new("RGB", (30, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    assert decode(out.getvalue()).size == (30, 20)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_image_is_a_picture_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(jpeg(3, (24, 18), format=data.draw(st.sampled_from(["JPEG", "PNG"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.JPEG"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    here = np.zeros(1, np.int64)
    jpegs = Jpegs(path.parent, np.array([os.fsencode(path.name)]), here, here - 1, here)
    try:
        assert jpegs.picture(0).mode == "RGB"
    except UsageError as error:
        assert "\n" not in str(error)


def test_a_grey_png_of_sixteen_bits_is_scaled_and_not_cut_off() -> None:
    levels = np.round(np.linspace(0, 65535, 64).reshape(8, 8)).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    found = np.asarray(decode(out.getvalue())).astype(int)
    np.testing.assert_allclose(found, np.broadcast_to(levels[..., None] / 257, (8, 8, 3)), atol=1)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"needs the sample of ImageNet in {SAMPLE}")
def test_the_real_images_decode_to_their_listed_sizes() -> None:
    with (SAMPLE / "LIST.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows[::4] + [row for row in rows if row["mode"] != "RGB" or "can_opener" in row["file"]]:
        picture = decode((SAMPLE / row["file"]).read_bytes())
        assert (picture.mode, picture.size) == ("RGB", (int(row["width"]), int(row["height"]))), row["file"]
