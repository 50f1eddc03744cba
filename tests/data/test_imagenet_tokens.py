from __future__ import annotations

import errno
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Counting, counting
from numpy.typing import NDArray
from official import COLOURS, Publish, publish_cifar10, refusal

from igpt.companion.run import datasets
from igpt.companion.run.loss import loss_line
from igpt.data import LabelledTokens, SplitName, imagenet_tokens, labelled_tokens, load_split
from igpt.data.cards import check_present, data_card, is_present
from igpt.data.cifar_tokens import compare_released
from igpt.data.fetching import check_dataset, fetch_dataset
from igpt.data.imagenet_tokens import released_path
from igpt.data.splits import load_official
from igpt.data.tokens import TokenizeSettings, make_store
from igpt.errors import UsageError
from igpt.fetch import _Part
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.loop import evaluate_loss
from igpt.weights.own import load_weights, released_palette, save_weights

IMAGES: dict[SplitName, int] = {"train": 20, "validation": 8, "test": 6}
SPLITS: list[SplitName] = list(IMAGES)
CLASSES = 4
AGAIN = ": move it away, and `igpt data fetch imagenet-tokens` gets it again"


def tokens_of(split: SplitName) -> NDArray[np.int64]:
    """Random tokens (images, 1024)."""
    return np.random.default_rng(IMAGES[split]).integers(0, 512, (IMAGES[split], 1024))


def one_hot(labels: NDArray[np.int64], classes: int = CLASSES) -> NDArray[np.float32]:
    """Labels as they are released."""
    return np.eye(classes, dtype=np.float32)[labels]


def labels_of(split: SplitName) -> NDArray[np.int64]:
    """Labels (images,)."""
    return np.arange(IMAGES[split]) * 3 % CLASSES


@pytest.fixture
def released(home: Path, publish: Publish) -> Path:
    """Small released files of ImageNet; their folder."""
    publish("imagenet-tokens", train=28, test=IMAGES["test"], classes=CLASSES)
    folder = home / "imagenet-tokens"
    folder.mkdir()
    for split in SPLITS:
        np.save(released_path(split), tokens_of(split))
        np.save(released_path(split, "Y"), one_hot(labels_of(split)))
    return folder


def opened(split: SplitName) -> LabelledTokens:
    return labelled_tokens("imagenet-tokens", split, side=32, palette=released_palette())


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("tokens", "labels"), [("int64", "float32"), ("<u2", "bool"), (">i4", "uint8"), ("int16", "float64"), ("uint16", "int64")]
)
def test_they_are_the_files_tokens_and_classes_whatever_numbers_these_are_written_in(tokens: str, labels: str) -> None:
    for split in SPLITS:
        np.save(released_path(split), tokens_of(split).astype(tokens))
        np.save(released_path(split, "Y"), one_hot(labels_of(split)).astype(labels))
    train, validation = opened("train"), opened("validation")
    for found, split in ((train, "train"), (validation, "validation"), (opened("test"), "test")):
        np.testing.assert_array_equal(found[:], tokens_of(split))
        np.testing.assert_array_equal(found.labels, labels_of(split))
        assert found.classes == CLASSES and found[:1].dtype == np.uint16 and found.labels.dtype == np.int64
    both = train + validation
    np.testing.assert_array_equal(both[np.array([27, 3])], [tokens_of("validation")[7], tokens_of("train")[3]])


def test_the_digest_does_not_depend_on_how_the_numbers_are_written(released: Path) -> None:
    before = {split: opened(split).digest for split in SPLITS}
    np.save(released / "imagenet_teX.npy", tokens_of("test").astype(np.int16))
    assert {split: opened(split).digest for split in SPLITS} == before and len({*before.values()}) == 3
    np.save(released / "imagenet_teX.npy", tokens_of("test")[::-1])
    assert opened("test").digest != before["test"]
    np.save(released / "imagenet_teX.npy", tokens_of("test"))
    np.save(released / "imagenet_teY.npy", one_hot(labels_of("test")[::-1]))
    assert opened("test").digest != before["test"]


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def changed(path: Path, row: int, column: int, value: float) -> None:
    """Put one other number into a file, as float64."""
    found = np.load(path).astype(float)
    found[row, column] = value
    np.save(path, found if path.stem.endswith("Y") else found.astype(np.int64))


@pytest.mark.parametrize(
    ("split", "end", "damage", "says"),
    [
        ("test", "X", lengthened, "is not an array of tokens (it is longer than its header says)"),
        ("test", "X", cut, "is not an array of tokens (mmap length is greater than file size)"),
        ("test", "X", lambda path: path.write_bytes(b""), "is empty"),
        ("test", "X", lambda path: path.write_text("<html>not found</html>" * 9), "perhaps a server's answer"),
        ("test", "X", lambda path: np.save(path, tokens_of("test") / 2), "holds float64 (6, 1024)"),
        ("test", "X", lambda path: np.save(path, tokens_of("test")[0]), "holds int64 (1024,)"),
        (
            "test",
            "X",
            lambda path: np.save(path, tokens_of("test")[:, :64]),
            "has 64 tokens an image, the released ones have 1,024",
        ),
        ("test", "X", lambda path: np.save(path, tokens_of("train")), "has the tokens of 20 images, the released one of 6"),
        (
            "train",
            "X",
            lambda path: np.save(path, tokens_of("train")[:0]),
            "has the tokens of 0 images, the released one of more",
        ),
        ("train", "X", lambda path: changed(path, 19, 1023, 512), "the released ones are of 512 colours"),
        ("validation", "X", lambda path: changed(path, 7, 0, -1), "has tokens from -1 to 511"),
        ("test", "Y", lengthened, "is not an array of labels (it is longer than its header says)"),
        ("test", "Y", cut, "is not an array of labels"),
        ("test", "Y", lambda path: np.save(path, labels_of("test")), "holds int64 (6,), not one-hot labels (6, 4)"),
        ("test", "Y", lambda path: np.save(path, one_hot(labels_of("test")).astype("U1")), "holds <U1 (6, 4)"),
        ("test", "Y", lambda path: np.save(path, one_hot(labels_of("test")).astype(complex)), "holds complex128 (6, 4)"),
        (
            "test",
            "Y",
            lambda path: np.save(path, one_hot(labels_of("test"), 5)),
            "holds float32 (6, 5), not one-hot labels (6, 4)",
        ),
        (
            "train",
            "Y",
            lambda path: np.save(path, one_hot(labels_of("test"))),
            "holds float32 (6, 4), not one-hot labels (20, 4)",
        ),
        ("train", "Y", lambda path: changed(path, 19, 1, 0), "has a row 19 that is not one 1 among zeros"),
        ("train", "Y", lambda path: changed(path, 0, 2, 1), "has a row 0 that is not"),
        ("validation", "Y", lambda path: changed(path, 7, 1, 2), "has a row 7 that is not"),
        ("validation", "Y", lambda path: changed(path, 5, 3, 1e-9), "has a row 5 that is not"),
        ("validation", "Y", lambda path: changed(path, 5, 3, np.nan), "has a row 5 that is not"),
        ("validation", "Y", lambda path: changed(path, 5, 3, -1), "has a row 5 that is not"),
    ],
)
def test_a_damaged_file_is_a_sentence_that_names_it_and_says_what_to_do(
    split: SplitName, end: imagenet_tokens.End, damage: object, says: str, released: Path
) -> None:
    path = released_path(split, end)
    damage(path)  # type: ignore[operator]
    text = refusal(check_dataset, "imagenet-tokens")
    assert text.startswith(str(path)) and says in text and text.endswith(AGAIN)

    def read() -> None:
        found = opened(split)
        assert len(found[:]) == len(found.labels)

    assert refusal(read) == text or "colours" in text  # of tokens that were read together


@pytest.mark.parametrize("end", imagenet_tokens.ENDS)
def test_a_changed_byte_of_a_files_head_is_the_same_content_or_a_sentence(end: imagenet_tokens.End, released: Path) -> None:
    path = released_path("test", end)
    whole, expected = path.read_bytes(), (tokens_of("test"), labels_of("test"))
    refused = 0
    for place in range(128):  # the length of the head
        for byte in {32, 255, whole[place] ^ 1} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                found = opened("test")
                pair = found[:], found.labels
            except UsageError as error:
                assert str(error).endswith(AGAIN) and "\n" not in str(error)
                refused += 1
            else:
                assert all(np.array_equal(*both) for both in zip(pair, expected, strict=True)), (place, byte)
    assert refused > 100


def test_the_check_says_counts_and_sums_and_misses_no_class(released: Path) -> None:
    lines = check_dataset("imagenet-tokens")
    assert [line.partition(";")[0] for line in lines] == [
        "train: 20 images of 1,024 tokens from 0 to 511, 5 to 5 a class",
        "validation: 8 images of 1,024 tokens from 0 to 511, 2 to 2 a class",
        "test: 6 images of 1,024 tokens from 0 to 511, 1 to 2 a class",
    ]
    assert all(len(line.split()[-1]) == len(line.split()[-3]) == 64 for line in lines)
    np.save(released / "imagenet_vaY.npy", one_hot(labels_of("validation") % 3))
    assert f"has validation images of 3 classes, ImageNet as released tokens of 4{AGAIN}" in refusal(
        check_dataset, "imagenet-tokens"
    )


def test_a_large_file_is_never_in_memory(released: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes, piece = 4_000, 1_000, 64
    publish("imagenet-tokens", classes=classes, train=2 * images)
    monkeypatch.setattr(imagenet_tokens, "PIECE", piece)
    np.lib.format.open_memmap(released / "imagenet_trX.npy", "w+", np.int64, (images, 1024)).flush()  # 33 MB of nothing
    hot = np.lib.format.open_memmap(released / "imagenet_trY.npy", "w+", np.float64, (images, classes))
    hot[np.arange(images), np.arange(images) % classes] = 1
    hot.flush()
    del hot
    tracemalloc.start()
    found = opened("train")
    assert found[np.arange(0, images, 100)].sum() == 0 and found.labels[-1] == classes - 1
    assert found.digest
    lines = imagenet_tokens.check_released(data_card("imagenet-tokens"))
    assert next(lines).startswith("train: 4,000 images")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 25e6  # the digest's sample is 8 MB as int64; either file would be 32 MB


def test_what_has_no_pictures_is_refused_as_such(released: Path) -> None:
    assert "has no pictures, only tokens" in refusal(load_split, "imagenet-tokens", "test")
    assert "is tokens already" in refusal(make_store, TokenizeSettings("imagenet-tokens", "test", 32), released_palette())
    text = refusal(labelled_tokens, "imagenet-tokens", "test", side=48, palette=released_palette())
    assert "is 32 x 32 of the released palette, the model takes 48 x 48: take imagenet" in text
    text = refusal(labelled_tokens, "imagenet-tokens", "test", side=32, palette=COLOURS)
    assert "the model takes another palette: take imagenet" in text
    assert not (released.parent / "tokens").exists()


@pytest.fixture
def site(released: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that stands in for OpenAI's, with the files that are nowhere else then; the folder it shows."""
    folder = released.parent.parent / "site" / "datasets"
    folder.parent.mkdir()
    released.rename(folder)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with counting(folder.parent) as address:
        monkeypatch.setattr(imagenet_tokens, "OPENAI", address)
        publish("imagenet-tokens", loose=imagenet_tokens.addresses("imagenet"), beside=imagenet_tokens.addresses("cifar10"))
        yield folder


def test_fetch_brings_all_files_and_leaves_those_that_are_here(site: Path) -> None:
    for path in (released_path(split, end, of="cifar10") for split in SPLITS for end in imagenet_tokens.ENDS):
        (site / path.name).write_bytes(b"of CIFAR-10")
    assert "`igpt data fetch imagenet-tokens` brings it" in refusal(check_present, "imagenet-tokens")
    folder = fetch_dataset("imagenet-tokens")
    assert {path.name: path.read_bytes() for path in folder.glob("*.npy")} == {p.name: p.read_bytes() for p in site.iterdir()}
    assert len(Counting.served) == 12 and is_present("imagenet-tokens")
    (folder / "imagenet_vaY.npy").unlink()
    fetch_dataset("imagenet-tokens")
    assert Counting.served[12:] == ["imagenet_vaY.npy"] and len(check_dataset("imagenet-tokens")) == 3


def test_files_that_only_come_along_hold_nothing_up(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "cifar10_vaX.npy").write_bytes(b"of CIFAR-10")
    fetch_dataset("imagenet-tokens")
    assert len(check_dataset("imagenet-tokens")) == 3 and released_path("validation", of="cifar10").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("igpt: ")]
    assert len(lines) == 5 and "usable without: cifar10_trX.npy could not be fetched (http" in lines[0]
    (site / "imagenet_vaX.npy").unlink()
    released_path("validation").unlink()
    assert "imagenet_vaX.npy could not be fetched" in refusal(fetch_dataset, "imagenet-tokens")


@pytest.mark.usefixtures("site")
def test_a_full_disk_is_a_sentence_and_the_same_call_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: _Part, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(_Part, "become", full)
        for read in (lambda: fetch_dataset("imagenet-tokens"), lambda: opened("test")):
            said = refusal(read)
            assert said.endswith("could not be written (No space left on device): free some room, and the same command continues")
    assert not released_path("test").exists()
    assert fetch_dataset("imagenet-tokens") and len(check_dataset("imagenet-tokens")) == 3


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(("copied", "onto"), [("train", "validation"), ("validation", "train"), ("test", "validation")])
def test_a_file_copied_under_anothers_name_is_refused(copied: SplitName, onto: SplitName) -> None:
    for end in imagenet_tokens.ENDS:
        shutil.copy(released_path(copied, end), released_path(onto, end))
    said = refusal(check_dataset, "imagenet-tokens")
    assert "begins with the same images as" in said and said.endswith(AGAIN)


@pytest.mark.usefixtures("site")
def test_what_is_asked_for_is_downloaded_once_and_labels_only_when_they_are() -> None:
    for _ in range(2):
        assert len(opened("test")[:]) == 6
    assert Counting.served == ["imagenet_teX.npy"]
    assert opened("test").labels.tolist() == labels_of("test").tolist()
    assert Counting.served == ["imagenet_teX.npy", "imagenet_teY.npy"]


def test_without_a_network_it_is_said_which_file_to_put_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> Path:
        raise UsageError("there is no network")

    monkeypatch.setattr(imagenet_tokens, "fetch", no_network)
    text = refusal(opened, "train")
    assert text.startswith(
        "released tokens cannot be fetched: there is no network; or put imagenet_trX.npy from https://openaipublic"
    )
    assert text.endswith(f"/image-gpt/datasets/ into {home / 'imagenet-tokens'}")


def test_the_commands_fetch_check_and_list_them(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (released_path(split, end, of="cifar10") for split in SPLITS for end in imagenet_tokens.ENDS):
        (site / path.name).write_bytes(b"of CIFAR-10")
    assert datasets.fetch("imagenet-tokens").startswith("ImageNet as released tokens is in ")
    assert capsys.readouterr().err.startswith(
        "fetching ImageNet as released tokens (at least 0.0 GB; terms: published by OpenAI with Image GPT; made from "
    )
    assert datasets.check("imagenet-tokens").startswith(
        "ImageNet as released tokens is whole and consistent; nothing is published to compare it with\n  train: 20 images of "
    )
    line = next(line for line in datasets.list_datasets().splitlines() if line.startswith("imagenet-tokens "))
    assert "about " in line and "at least " in line and " here " in line
    assert "is tokens already" in refusal(
        datasets.tokenize, "imagenet-tokens", resolution=None, workers=1, crops=0, filter="bicubic", seed=0, palette=None
    )


def our_weights(folder: Path, positions: int = 1024, palette: Palette | None = None) -> Path:
    """Small weights, with an output matrix that is not zero, as it is untrained."""
    model = ImageGPT(ModelShape(1, 8, 2, 512, positions), seed=0).eval()
    with torch.no_grad():
        model.wtet.normal_(generator=torch.Generator().manual_seed(1))
    save_weights(folder, model, palette or released_palette())
    return folder


def test_the_loss_of_weights_is_that_on_the_released_test_tokens(released: Path, publish: Publish, tmp_path: Path) -> None:
    publish("imagenet-tokens", test=70)
    tokens = np.random.default_rng(0).integers(0, 512, (70, 1024))
    np.save(released / "imagenet_teX.npy", tokens)
    (released / "imagenet_teY.npy").unlink()  # for a loss needs no labels
    folder = our_weights(tmp_path / "weights")
    nats = evaluate_loss(load_weights(folder)[0], tokens[:64])  # whole steps of 64, as the released code
    said = loss_line(str(folder), None, None)
    assert said.startswith(f"{folder}: {nats:.4f} nats per token")
    assert said.endswith(f"over 64 images of {released / 'imagenet_teX.npy'}")
    assert "over 7 images" in loss_line(str(folder), None, 7)
    small = our_weights(tmp_path / "small", positions=64)
    assert "takes 64 tokens an image, the released ones have 1,024: give others (--tokens)" in refusal(
        loss_line, str(small), None, None
    )
    reversed_ = our_weights(tmp_path / "reversed", palette=Palette(released_palette().centres[::-1].copy()))
    assert "has other colours than the released tokens" in refusal(loss_line, str(reversed_), None, None)


# CIFAR-10's


@pytest.fixture
def both(home: Path, publish: Publish) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A small CIFAR-10, and its tokens and labels as if they had been released; train's, which are altered by tests."""
    publish_cifar10(publish, home)
    (home / "imagenet-tokens").mkdir()
    train, test = (load_official("cifar10", split) for split in ("train", "test"))
    save("test", COLOURS.quantize(test.images), test.labels)
    tokens = COLOURS.quantize(train.images).reshape(60, -1).astype(np.int64)
    save_train(tokens, train.labels)
    return tokens, train.labels


def save(split: SplitName, tokens: NDArray[np.integer], labels: NDArray[np.int64]) -> None:
    np.save(released_path(split, of="cifar10"), tokens.reshape(len(labels), -1))
    np.save(released_path(split, "Y", of="cifar10"), one_hot(labels, 10))


def save_train(tokens: NDArray[np.integer], labels: NDArray[np.int64]) -> None:
    save("train", tokens[:50], labels[:50])
    save("validation", tokens[50:], labels[50:])


def line(split: str, images: int, ours: int, differ: int, tokens: int, unequal: int, unlabelled: int) -> str:
    return (
        f"released tokens, {split}: {images} images, {ours} here; row by row {differ} differ, in {tokens:,} tokens;"
        f" in any order {unequal} have no equal here, {unlabelled} none of the same label"
    )


def test_released_tokens_of_cifar10_are_compared_with_ours(both: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    tokens, labels = both
    same = line("test", 20, 20, 0, 0, 0, 0)
    assert [*compare_released(COLOURS)] == [line("train", 60, 60, 0, 0, 0, 0), same]
    tokens[[3, 55]] = (tokens[[3, 55]] + 1) % 16
    tokens[7, :5] = (tokens[7, :5] + 1) % 16
    labels[9] = (labels[9] + 1) % 10
    save_train(tokens, labels)
    assert [*compare_released(COLOURS)] == [line("train", 60, 60, 3, 2053, 3, 4), same]
    save_train(np.roll(tokens, 1, 0), np.roll(labels, 1))
    assert next(compare_released(COLOURS)).endswith("; in any order 3 have no equal here, 4 none of the same label")
    save_train(tokens[:55], labels[:55])
    assert next(compare_released(COLOURS)) == line("train", 55, 60, 2, 1029, 2, 3)


def test_the_check_of_cifar10_compares_them(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    test = load_official("cifar10", "test")
    (home / "imagenet-tokens").mkdir()
    np.save(released_path("test", of="cifar10"), released_palette().quantize(test.images).reshape(20, -1))
    assert "released" not in datasets.check("cifar10")
    np.save(released_path("test", "Y", of="cifar10"), one_hot(test.labels, 10))
    assert datasets.check("cifar10").endswith(f"\n  {line('test', 20, 20, 0, 0, 0, 0)}")


def test_files_that_are_missing_are_not_compared_and_damaged_ones_refused(
    both: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    released_path("validation", "Y", of="cifar10").unlink()
    assert [line.partition(":")[0] for line in compare_released(COLOURS)] == ["released tokens, test"]
    np.save(released_path("test", of="cifar10"), both[0][:20, :64])
    assert "cifar10_teX.npy holds no tokens of 32 x 32 pixels" in refusal(list, compare_released(COLOURS))
    np.save(released_path("test", of="cifar10"), both[0][:20])
    np.save(released_path("test", "Y", of="cifar10"), one_hot(both[1][:20], 10) * 2)
    assert "cifar10_teY.npy has a row 0 that is not one 1 among zeros" in refusal(list, compare_released(COLOURS))
