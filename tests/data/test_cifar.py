from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official import (
    Publish,
    array_pickle,
    cifar10_files,
    cifar_batch,
    pictures,
    publish_cifar10,
    python2_pickle,
    refusal,
    write,
)

from igpt.data import data_card, held_out, load_split
from igpt.data.cifar import read_batch, read_cifar, read_names
from igpt.data.fetching import check_dataset
from igpt.data.splits import load_official
from igpt.errors import UsageError

HERE = Path("batch")


def batch_with(data: bytes, labels: bytes = b"](K\x00K\x01e") -> bytes:
    """A batch with data and labels as one likes them, in pickle's own words."""
    return b"\x80\x02}(U\x04data" + data + b"U\x06labels" + labels + b"u."


def test_cifar10_comes_out_as_it_went_in(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    images, labels = read_cifar(data_card("cifar10"), "train")
    np.testing.assert_array_equal(images, pictures(60))
    assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous and images.flags.writeable
    assert labels.tolist() == [place % 10 for place in range(60)]
    np.testing.assert_array_equal(read_cifar(data_card("cifar10"), "test")[0], pictures(20, seed=1))
    assert read_names(data_card("cifar10")) == [f"class{label}" for label in range(10)]


def test_cifar100_has_its_fine_labels_and_names(home: Path, publish: Publish) -> None:
    files = {
        "train": cifar_batch(pictures(200), [place % 100 for place in range(200)], b"fine_labels"),
        "test": cifar_batch(pictures(100, seed=1), list(range(100)), b"fine_labels"),
        "meta": python2_pickle({b"fine_label_names": [b"fine%d" % i for i in range(100)], b"coarse_label_names": [b"coarse"]}),
    }
    publish("cifar100", files=files, train=200, test=100)
    write(home / "cifar-100-python", files)
    images, labels = read_cifar(data_card("cifar100"), "train")
    np.testing.assert_array_equal(images, pictures(200))
    assert labels.tolist() == 2 * list(range(100))
    assert read_names(data_card("cifar100"))[99] == "fine99"
    assert len(check_dataset("cifar100")) == 4


def test_the_splits_are_the_official_ones_less_what_is_held_out(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    whole, train, validation = (
        load_official("cifar10", "train"),
        load_split("cifar10", "train"),
        load_split("cifar10", "validation"),
    )
    chosen = held_out("cifar10")
    assert len(chosen) == len(validation) == 6 and len(train) == 54
    np.testing.assert_array_equal(validation.images, whole.images[chosen])
    np.testing.assert_array_equal(train.images, np.delete(whole.images, chosen, axis=0))
    np.testing.assert_array_equal(train.labels, np.delete(whole.labels, chosen))
    assert len(load_split("cifar10", "test", side=4)) == 20 and load_split("cifar10", "test", side=4).images.shape[1:] == (
        4,
        4,
        3,
    )


def test_one_flipped_bit_is_seen(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    path = home / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = refusal(load_split, "cifar10", "train")
    assert text.startswith(f"{path} is damaged or another file") and "move it away and fetch again" in text
    assert refusal(check_dataset, "cifar10") == text
    assert len(load_split("cifar10", "test")) == 20  # which is whole


@pytest.mark.parametrize("part", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_file_is_said_with_the_command_that_brings_it(home: Path, publish: Publish, part: str) -> None:
    publish_cifar10(publish, home)
    (home / "cifar-10-batches-py" / part).unlink()
    for call in (lambda: load_split("cifar10", "train"), lambda: check_dataset("cifar10")):
        assert "`igpt data fetch cifar10` brings it" in refusal(call)


def test_a_file_that_goes_while_it_is_wanted_is_named(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    (home / "cifar-10-batches-py" / "data_batch_2").unlink()
    assert refusal(read_cifar, data_card("cifar10"), "train").endswith(
        "data_batch_2 cannot be read (No such file or directory): fetch the data set again"
    )


def test_another_data_set_under_the_name_is_refused(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    folder = home / "cifar-10-batches-py"
    other = cifar10_files(pictures(60, seed=8), pictures(20, seed=9))
    write(folder, other)
    assert "data_batch_1 is damaged or another file" in refusal(load_split, "cifar10", "train")
    for path in folder.iterdir():
        path.unlink()
    write(folder, {"train": b"", "test": b"", "meta": b""})
    assert "is not here" in refusal(load_split, "cifar10", "train")


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0]])
def test_a_label_outside_the_classes_is_refused(home: Path, publish: Publish, labels: list[int]) -> None:
    files = cifar10_files(pictures(10), pictures(2)) | {"test_batch": cifar_batch(pictures(2), labels)}
    publish("cifar10", files=files, train=10, test=2)
    write(home / "cifar-10-batches-py", files)
    assert "test_batch is not a batch of CIFAR-10" in refusal(read_cifar, data_card("cifar10"), "test")


PIXELS = bytes(2 * 3072)
NOT_BATCHES = {
    "no dictionary": python2_pickle([b"data"]),
    "no data": python2_pickle({b"labels": [1]}),
    "another key": cifar_batch(pictures(2), [0, 1], b"fine_labels"),
    "fewer labels": cifar_batch(pictures(2), [0]),
    "no labels": batch_with(array_pickle(PIXELS, (2, 3072)), b"N"),
    "words as labels": batch_with(array_pickle(PIXELS, (2, 3072)), b"](U\x03catU\x03doge"),
    "fractions as labels": batch_with(array_pickle(PIXELS, (2, 3072)), b"](G?\xe0\x00\x00\x00\x00\x00\x00K\x01e"),
    "a dictionary as labels": batch_with(array_pickle(PIXELS, (2, 3072)), b"}"),
    "nested labels": batch_with(array_pickle(PIXELS, (2, 3072)), b"](](K\x00e](K\x01ee"),
    "smaller images": batch_with(array_pickle(bytes(2 * 3000), (2, 3000))),
    "huge shape": batch_with(array_pickle(PIXELS, (1 << 40, 1 << 20))),
    "negative shape": batch_with(array_pickle(PIXELS, (-1, 3072))),
    "floats": batch_with(array_pickle(PIXELS, (2, 768), b"f4")),
    "objects": batch_with(array_pickle(PIXELS, (2, 3072), b"O8")),
    "two bytes": batch_with(array_pickle(PIXELS, (2, 1536), b"u2")),
    "a list of images": batch_with(b"](K\x01K\x02e"),
    "too large numbers": batch_with(b"](M\x00\x01M\x00\x01e"),
    "words": batch_with(b"U\x05hello"),
    "an array never filled": batch_with(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"),
    "the class itself": batch_with(b"cnumpy\nndarray\n"),
    "a state that is none": batch_with(b"cnumpy\nndarray\n)\x81Nb"),
    "nothing": b"",
    "a stop": b".",
    "text": b"this is no pickle",
    "a web page": b"<!DOCTYPE html><html>",
}


@pytest.mark.parametrize("content", NOT_BATCHES.values(), ids=NOT_BATCHES.keys())
def test_what_is_no_batch_is_a_sentence(home: Path, publish: Publish, content: bytes) -> None:
    files = cifar10_files(pictures(10), pictures(2)) | {"test_batch": content}
    publish("cifar10", files=files, train=10, test=2)
    write(home / "cifar-10-batches-py", files)
    assert "test_batch is not a batch of CIFAR" in refusal(read_cifar, data_card("cifar10"), "test")


def test_names_that_are_none_are_refused(home: Path, publish: Publish) -> None:
    for names in (b"airplane", [b"one"]):
        files = cifar10_files(pictures(10), pictures(2)) | {"batches.meta": python2_pickle({b"label_names": names})}
        publish("cifar10", files=files, train=10, test=2)
        write(home / "cifar-10-batches-py", files)
        assert "does not name the classes of CIFAR-10" in refusal(read_names, data_card("cifar10"))


CALLS = {
    "os.system": b"cos\nsystem\n(U\x0ctouch caughttR.",
    "posix.system": b"cposix\nsystem\n(U\x0ctouch caughttR.",
    "builtins.eval": b"cbuiltins\neval\n(U\x16open('caught','w') or 1tR.",
    "__builtin__.eval": b"c__builtin__\neval\n(U\x16open('caught','w') or 1tR.",
    "protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93(U\x0ctouch caughttR.",
    "an attribute of an array": b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__setstate__\x93.",
    "instance": b"(U\x0ctouch caughtios\nsystem\n.",
    "numpy scalar": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x02u1K\x00K\x01\x87RU\x01atR.",
    "numpy's loader": b"cnumpy\nload\n(U\x06caughttR.",
    "copyreg": b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",
    "an extension": b"\x82\x01.",
    "a persistent id": b"Pcaught\n.",
}


@pytest.mark.parametrize("content", CALLS.values(), ids=CALLS.keys())
def test_no_pickle_runs_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    for start in (b"", b"\x80\x02"):
        refusal(read_batch, HERE, start + content)
    assert list(tmp_path.iterdir()) == []


GOOD = cifar_batch(pictures(2), [3, 4])


@pytest.mark.parametrize("size", [*range(0, 200, 7), 1000, len(GOOD) - 60, len(GOOD) - 1])
def test_a_batch_cut_short_is_a_sentence(size: int) -> None:
    assert "is not a batch of CIFAR" in refusal(read_batch, HERE, GOOD[:size])


@settings(deadline=None, max_examples=400)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_dictionary_or_a_sentence(content: bytes) -> None:
    for start in (b"", b"\x80\x02", b"\x80\x02}(U\x04data"):
        try:
            assert isinstance(read_batch(HERE, start + content), dict)
        except UsageError as error:
            assert "\n" not in str(error)


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, 150) | st.integers(len(GOOD) - 120, len(GOOD) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_a_batch_or_a_sentence(place: int, byte: int) -> None:
    try:
        assert isinstance(read_batch(HERE, GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]), dict)
    except UsageError as error:
        assert "\n" not in str(error)


def test_the_real_images_are_those_described(real_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_DATA", str(real_cifar10))
    images, labels = read_cifar(data_card("cifar10"), "train")
    assert images.shape == (50_000, 32, 32, 3) and int(images.sum(dtype=np.int64)) == 18_540_682_003
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)) / 255, [0.49139968, 0.48215841, 0.44653091], rtol=1e-7)
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3] and np.bincount(labels).tolist() == [5000] * 10
    test, labels = read_cifar(data_card("cifar10"), "test")
    assert test.mean() == pytest.approx(121.52915475260417) and labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert read_names(data_card("cifar10"))[3] == "cat" and len(held_out("cifar10")) == data_card("cifar10").validation
