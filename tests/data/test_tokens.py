from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, ROOT
from filelock import FileLock
from official import (
    COLOURS,
    VAL_TRUTH,
    WNIDS,
    Publish,
    imagenet_folders,
    imagenet_tars,
    jpeg,
    open_jpegs,
    pictures,
    publish_cifar10,
    publish_imagenet,
    refusal,
    tree,
    write,
)

from igpt.data import cards, store, tokens
from igpt.data.jpegs import Jpegs
from igpt.data.resize import centre_crop, random_crop, reduced
from igpt.data.splits import load_split
from igpt.data.store import HEADER, LABELS, TokenStore, read_header, shard_path
from igpt.data.tokens import PLAN, TokenizeSettings, check_stores, make_store, store_folder, train_parts
from igpt.errors import UsageError
from igpt.files import write_array
from igpt.palette import Palette

SMALL = TokenizeSettings("cifar10", "train", 4)
CROPS = TokenizeSettings("imagenet", "train", 4, crops=5, seed=3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 16 images; a process that is started has the real ones."""
    monkeypatch.setattr(store, "SHARD", 16)
    monkeypatch.setattr(tokens, "SHARD", 16)


def final(folder: Path) -> dict[str, bytes]:
    """What has a final name in a store's folder."""
    return {name: content for name, content in tree(folder).items() if not name.startswith(".")}


def test_a_store_holds_the_tokens_of_the_reduced_images(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    told: list[tuple[int, int]] = []
    found, rate = make_store(SMALL, COLOURS, report=lambda *progress: told.append(progress))
    expected = COLOURS.quantize(reduced(pictures(60), side=4)).reshape(60, 16)
    np.testing.assert_array_equal(found[np.arange(60)], expected)
    assert found.labels.tolist() == [place % 10 for place in range(60)]
    assert told == [(0, 60), (16, 60), (32, 60), (48, 60), (60, 60)] and rate > 0
    assert found.folder.parent == home / "tokens"
    assert sorted(final(found.folder)) == [HEADER, "labels.npy", *(f"tokens-{place:05d}.npy" for place in range(4))]
    header = read_header(found.folder)
    assert header.shards == [hashlib.sha256((found.folder / f"tokens-{i:05d}.npy").read_bytes()).hexdigest() for i in range(4)]
    assert header.palette_sha256 == COLOURS.digest and header.held_out_sha256 == cards.data_card("cifar10").split


def test_a_finished_store_is_opened_and_not_made_again(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    before = final(make_store(SMALL, COLOURS)[0].folder)
    found, rate = make_store(SMALL, COLOURS, report=lambda *_: pytest.fail("it is made again"))
    assert rate == 0 and final(found.folder) == before


def test_a_finished_store_with_a_token_that_the_palette_lacks_is_refused(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    folder = make_store(SMALL, COLOURS)[0].folder
    shard = np.load(shard_path(folder, 1))
    shard[3, 3] = len(COLOURS)
    np.save(shard_path(folder, 1), shard)
    found, _ = make_store(SMALL, COLOURS)
    assert f"has the token {len(COLOURS)}" in refusal(found.__getitem__, np.arange(len(found)))


def test_images_at_their_own_size_and_digits_are_tokenised_as_they_are(home: Path, publish: Publish, greys: Palette) -> None:
    publish_cifar10(publish, home, train=20, test=10)
    found, _ = make_store(TokenizeSettings("cifar10", "test", 32), COLOURS)
    np.testing.assert_array_equal(found[np.arange(10)], COLOURS.quantize(pictures(10, seed=1)).reshape(10, -1))
    digits, _ = make_store(TokenizeSettings("digits", "test", 8), greys)
    assert len(digits) == 360 and digits.positions == 64


def test_central_crops_of_imagenet(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_tars())
    found, _ = make_store(TokenizeSettings("imagenet", "test", 4), COLOURS)
    jpegs = open_jpegs("imagenet", "test")
    crops = np.stack([centre_crop(jpegs.picture(index), side=4) for index in range(6)])
    np.testing.assert_array_equal(found[np.arange(6)], COLOURS.quantize(crops).reshape(6, 16))
    assert found.labels.tolist() == VAL_TRUTH


def test_random_crops_depend_on_seed_and_index_only(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    found, _ = make_store(CROPS, COLOURS)
    assert len(found) == 45 and found.labels.tolist() == 5 * [0, 0, 0, 1, 1, 1, 2, 2, 2]
    jpegs = open_jpegs("imagenet", "train")
    for index in range(45):
        crop = random_crop(jpegs.picture(index % 9), side=4, generator=np.random.default_rng([3, index]))
        np.testing.assert_array_equal(found[np.array([index])][0], COLOURS.quantize(crop[None]).reshape(-1))
    other, _ = make_store(TokenizeSettings("imagenet", "train", 4, crops=5, seed=4), COLOURS)
    assert (other[np.arange(45)] != found[np.arange(45)]).any()


KILLED = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
import pytest
from official import COLOURS, publisher
from igpt.data import store, tokens
store.SHARD = tokens.SHARD = 16
patch = pytest.MonkeyPatch()
publisher(patch)("imagenet", train=9, test=6, classes=3)
write = tokens.write_array
def slow(path, array):
    if path.name == "tokens-00001.npy":
        print("half way", flush=True)
        sys.stdin.read()
    write(path, array)
tokens.write_array = slow
tokens.make_store(tokens.TokenizeSettings("imagenet", "train", 4, crops=5, seed=3), COLOURS)
"""


def test_a_killed_process_is_continued_to_the_same_bytes(
    home: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    code = KILLED.format(here=str(ROOT), tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half way\n"
        folder = store_folder(CROPS, COLOURS)
        process.kill()
    assert sorted(final(folder)) == ["labels.npy", PLAN, "tokens-00000.npy"]
    assert "`igpt data tokenize` makes and continues one" in refusal(TokenStore, folder)
    begun = (folder / "tokens-00000.npy").stat()
    told: list[int] = []
    found, _ = make_store(CROPS, COLOURS, report=lambda done, total: told.append(done))
    assert told == [16, 32, 45] and (folder / "tokens-00000.npy").stat().st_mtime_ns == begun.st_mtime_ns
    write(tmp_path / "other" / "imagenet", imagenet_folders())
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "other"))
    assert final(make_store(CROPS, COLOURS)[0].folder) == final(found.folder)


@pytest.mark.parametrize("stop_at", [16, 32, 45])
def test_an_interrupt_after_any_shard_is_continued_to_the_same_bytes(
    home: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    publish_imagenet(publish, home, imagenet_folders())

    def stop(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_store(CROPS, COLOURS, report=stop)
    found, _ = make_store(CROPS, COLOURS)
    write(tmp_path / "other" / "imagenet", imagenet_folders())
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "other"))
    assert final(make_store(CROPS, COLOURS)[0].folder) == final(found.folder)


def test_several_workers_write_the_same_bytes_as_one(
    home: Path, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, tokens):
        monkeypatch.setattr(module, "SHARD", 4096)  # as the workers have it
    publish_cifar10(publish, home, train=8200, test=10)
    found, _ = make_store(SMALL, COLOURS, workers=3)
    several = final(found.folder)
    assert len(several) == 5
    for path in found.folder.iterdir():
        path.unlink()
    assert final(make_store(SMALL, COLOURS)[0].folder) == several


def test_a_picture_that_is_none_ends_the_work_of_workers_in_a_sentence(
    home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, tokens):
        monkeypatch.setattr(module, "SHARD", 4096)
    publish_imagenet(publish, home, imagenet_folders() | {f"train/{WNIDS[0]}/{WNIDS[0]}_10.JPEG": b"words"})
    wanted = TokenizeSettings("imagenet", "train", 4, crops=500)
    assert f"{WNIDS[0]}_10.JPEG is not an image" in refusal(make_store, wanted, COLOURS, workers=2)
    assert [name for name in final(store_folder(wanted, COLOURS)) if name == HEADER] == []


MAKER = """
import sys
sys.path.insert(0, {here!r})
from igpt.data import store, tokens
from igpt.palette import Palette
from pathlib import Path
store.SHARD = tokens.SHARD = 512
def report(done, total):
    print(done, flush=True)
    sys.stdin.readline() if {stays} and done == 512 else None
print(tokens.make_store(tokens.TokenizeSettings("digits", "train", 8), Palette.load(Path({palette!r})), report=report)[1] > 0)
"""


def maker(palette: Path, *, stays: bool) -> subprocess.Popen[str]:
    """A process that makes the digits' store; one that ``stays`` holds its lock for ever after the first of its shards."""
    code = MAKER.format(here=str(ROOT), palette=str(palette), stays=stays)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str], ending: str) -> str:
    """The line with which a process says on stderr what it waits for."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("igpt: ") and line.endswith(f" {ending}: waiting until it is done\n"), line + process.stderr.read()
    return line


def test_a_second_process_waits_for_the_store_that_a_first_one_makes(home: Path, greys: Palette) -> None:
    greys.save(home / "palette.npy")
    second: list[subprocess.Popen[str]] = []

    def report(done: int, total: int) -> None:
        if not second:
            second.append(maker(home / "palette.npy", stays=False))
            assert str(store_folder(TokenizeSettings("digits", "train", 8), greys)) in told(
                second[0], "is being made by another process"
            )

    first, rate = make_store(TokenizeSettings("digits", "train", 8), greys, report=report)
    said, _ = second[0].communicate(timeout=PATIENCE)
    assert said == "False\n" and second[0].returncode == 0 and rate > 0  # it has made nothing itself
    assert len(first) == 1437


def test_a_process_that_waits_continues_the_store_of_one_that_is_killed(home: Path, greys: Palette) -> None:
    greys.save(home / "palette.npy")
    with maker(home / "palette.npy", stays=True) as first:
        assert first.stdout is not None
        assert [first.stdout.readline() for _ in range(2)] == ["0\n", "512\n"]
        with maker(home / "palette.npy", stays=False) as second:
            told(second, "is being made by another process")
            (
                store_folder(TokenizeSettings("digits", "train", 8), greys) / ".tokens-00001.npy.1.part"
            ).touch()  # what a kill leaves
            first.kill()
            assert second.communicate(timeout=PATIENCE)[0] == "512\n1024\n1437\nTrue\n"
    folder = store_folder(TokenizeSettings("digits", "train", 8), greys)
    assert sorted(final(folder)) == [HEADER, "labels.npy", *(f"tokens-{n:05d}.npy" for n in range(3))]
    assert not list(folder.glob("*.part"))


def test_a_command_that_waits_is_stopped_by_ctrl_c(home: Path, greys: Palette) -> None:
    greys.save(home / "palette.npy")
    folder = store_folder(TokenizeSettings("digits", "train", 8), greys)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "igpt", "data", "tokenize", "digits", "--palette", str(home / "palette.npy")]
    with FileLock(folder / ".lock"), subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as second:
        told(second, "is being made by another process")
        second.send_signal(signal.SIGINT)
        assert second.communicate(timeout=PATIENCE)[1] == "igpt: stopped; the same command continues\n"
        assert second.returncode == 130 and final(folder) == {}


@pytest.mark.parametrize("damage", ["plan of another", "plan is none", "no plan", "pictures in another order", "no labels"])
def test_shards_of_something_else_are_not_continued(home: Path, publish: Publish, damage: str) -> None:
    publish_cifar10(publish, home)
    folder = make_store(SMALL, COLOURS)[0].folder
    header = read_header(folder)
    (folder / HEADER).unlink()
    if damage != "no plan":
        begun = header if damage == "plan of another" else header.model_copy(update={"shards": []})
        (folder / PLAN).write_text("{" if damage == "plan is none" else begun.model_dump_json())
    if damage == "pictures in another order":
        write_array(folder / LABELS, np.roll(store.read_labels(folder, 60), 1))
    if damage == "no labels":
        (folder / "labels.npy").unlink()
    before = final(folder)
    assert "move it away" in refusal(make_store, SMALL, COLOURS)
    assert final(folder) == before


def test_a_full_disk_half_way_leaves_whole_shards_and_can_be_continued(
    home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(publish, home)
    real, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            make_store(SMALL, COLOURS)
    folder = store_folder(SMALL, COLOURS)
    assert caught.value.filename == str(folder / "tokens-00001.npy")
    assert sorted(tree(folder)) == ["labels.npy", PLAN, "tokens-00000.npy"]
    assert len(make_store(SMALL, COLOURS)[0]) == 60


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {here!r})
import numpy as np
from pathlib import Path
from igpt.files import write_array
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_array(Path({folder!r}) / "tokens-00000.npy", np.zeros((4096, 64), np.uint16))
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_disk_that_is_really_full_is_said_with_its_reason(tmp_path: Path) -> None:
    code = LIMITED.format(here=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'tokens-00000.npy'}\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_a_shard_of_pictures_is_decoded_before_it_is_written(
    home: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_imagenet(publish, home, imagenet_folders())
    decoded, largest = 0, 0
    picture, write_one = Jpegs.picture, tokens.write_array

    def count(self: Jpegs, index: int) -> object:
        nonlocal decoded, largest
        decoded += 1
        largest = max(largest, decoded)
        return picture(self, index)

    def written(*arguments: object) -> None:
        nonlocal decoded
        decoded = 0
        write_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Jpegs, "picture", count)
    monkeypatch.setattr(tokens, "write_array", written)
    make_store(CROPS, COLOURS)
    assert largest == 16


def test_a_list_of_imagenets_size_is_small(home: Path, publish: Publish) -> None:
    publish_imagenet(publish, home, imagenet_tars())
    jpegs = open_jpegs("imagenet", "train")
    arrays = (jpegs.files, jpegs.offset, jpegs.size, jpegs.labels)
    assert sum(array.nbytes for array in arrays) < 64 * len(jpegs)  # 82 MB for 1,281,167


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (TokenizeSettings("cifar10", "train", 33), "choose a resolution from 1 to 32"),
        (TokenizeSettings("cifar10", "train", 0), "choose a resolution from 1 to 32"),
        (TokenizeSettings("cifar10", "train", 4, filter="best"), "no filter 'best'; choose one of bicubic, box"),
        (TokenizeSettings("cifar10", "train", 4, crops=2), "random crops are taken of training pictures of different sizes"),
        (TokenizeSettings("imagenet", "test", 4, crops=2), "random crops are taken of training pictures of different sizes"),
        (TokenizeSettings("imagenet", "train", 4, crops=-1), "crops are at least 0"),
        (TokenizeSettings("imagenet", "train", 4, crops=1, seed=-1), "a seed is a whole number from 0 to 4294967295, not -1"),
        (TokenizeSettings("mnist", "train", 4), "no data set 'mnist'"),
        (TokenizeSettings("cifar100", "train", 4), "`igpt data fetch cifar100` brings it"),
        (TokenizeSettings("digits", "train", 8), "the palette has 3 channels"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.dataset} {value.resolution} {value.crops}",
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    home: Path, publish: Publish, wanted: TokenizeSettings, words: str
) -> None:
    publish_cifar10(publish, home)
    publish_imagenet(publish, home, imagenet_folders())
    assert words in refusal(make_store, wanted, COLOURS)
    assert "and workers 1" in refusal(make_store, SMALL, COLOURS, workers=0)
    assert not (home / "tokens").exists()


def test_a_broken_picture_is_named_and_nothing_stands_in_its_place(home: Path, publish: Publish) -> None:
    name = f"{WNIDS[2]}_10.JPEG"
    publish_imagenet(publish, home, imagenet_folders() | {f"train/{WNIDS[2]}/{name}": b""})
    assert f"{name} is not an image" in refusal(make_store, CROPS, COLOURS)
    folder = store_folder(CROPS, COLOURS)
    assert sorted(final(folder)) == ["labels.npy", PLAN]
    write(home / "imagenet", {f"train/{WNIDS[2]}/{name}": jpeg(1)})
    assert len(make_store(CROPS, COLOURS)[0]) == 45


@pytest.mark.slow
def test_the_real_cifar10_has_the_tokens_described(real_cifar10: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from igpt.weights.own import released_palette

    for module in (store, tokens):
        monkeypatch.setattr(module, "SHARD", 4096)
    (tmp_path / "cifar-10-batches-py").symlink_to(real_cifar10 / "cifar-10-batches-py")
    monkeypatch.setenv("IGPT_DATA", str(tmp_path))
    sums = {
        "train": "4fb82b49ba5c474011bc6e138dca2928d20d0a9a4f3cd35dc3a1210dfe818d81",
        "test": "6bf9ceaf6fdf8fbb2d324f2ec4c935c79a823be89e2a46c991455afdcbb688cb",
    }
    palette = released_palette()
    for split, expected in sums.items():
        found, _ = make_store(TokenizeSettings("cifar10", split, 32), palette)  # type: ignore[arg-type]
        every = found[np.arange(len(found))].astype("<u2")
        assert hashlib.sha256(every.tobytes()).hexdigest() == expected
        first = [89, 166, 219, 198, 288, 485, 110, 354] if split == "train" else 8 * [372]
        assert every[0, :8].tolist() == first


def test_a_store_under_anothers_name_is_not_taken_for_it(home: Path) -> None:
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    wanted = TokenizeSettings("digits", "test", 8)
    store, _ = make_store(wanted, palette)
    store.folder.rename(store_folder(TokenizeSettings("digits", "test", 4), palette))
    with pytest.raises(UsageError, match="holds other tokens than its name says: move it away"):
        make_store(TokenizeSettings("digits", "test", 4), palette)


def test_a_bit_that_flipped_on_disk_is_found_by_a_check(home: Path) -> None:
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    store, _ = make_store(TokenizeSettings("digits", "test", 8), palette)
    assert check_stores("digits") == [f"tokens: {store.folder.name}, 360 images, every shard as it was written"]
    path = shard_path(store.folder, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tokens-00000\.npy is damaged: move "):
        check_stores("digits")


def test_training_never_sees_the_held_out_images(home: Path) -> None:
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    store, _ = make_store(TokenizeSettings("digits", "train", 8), palette)
    training, validation = train_parts(store)
    assert (len(training), len(validation)) == (1293, 144)
    assert not set(training.indices) & set(validation.indices)
    held = load_split("digits", "validation").images
    assert (validation[np.arange(144)] == palette.quantize(held).reshape(144, -1)).all()
    with pytest.raises(UsageError, match="holds the test images of digits"):
        train_parts(make_store(TokenizeSettings("digits", "test", 8), palette)[0])
