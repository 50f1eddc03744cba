"""`igpt sample --format`: a folder of images, continued after any stop, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import igpt_here, random_model, wait_until
from filelock import FileLock
from PIL import Image

from igpt.palette import Palette
from igpt.sample import sample
from igpt.shape import ModelShape
from igpt.weights.own import load_weights, save_weights

FORMATS = ("npz", "png")
JSON = "samples.json"


def save_model(folder: Path, *, heads: int = 2, channels: int = 3) -> Path:
    """A small model of 8 x 8 pixels, untrained but for its output."""
    centres = np.random.default_rng(0).uniform(-1, 1, (12, channels)).astype(np.float32)
    save_weights(folder, random_model(ModelShape(2, 16, heads, 12, 64)), Palette(centres))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_model(tmp_path / "weights")


def draw(weights: Path, out: Path, *words: str, n: int = 20, format: str = "png") -> subprocess.CompletedProcess[str]:
    """The command in this process."""
    given = ("--model", str(weights), "--n", str(n), "--format", format, "--out", str(out))
    return igpt_here("sample", *given, *words, root=weights.parent)


def held(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images_of(folder: Path) -> np.ndarray:
    """The images of a finished folder, uint8 (N, H, W, channels)."""
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz") as arrays:
            assert arrays.files == ["arr_0"]
            return arrays["arr_0"]
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def expected(weights: Path, n: int, *, seed: int = 3, **settings: float) -> np.ndarray:
    """The sampler's images, in whole parts of 16, of which the first n are taken."""
    model, palette = load_weights(weights)
    tokens = sample(model, n=-(-n // 16) * 16, seed=seed, **settings).numpy()  # type: ignore[arg-type]
    return palette.dequantize(tokens).reshape(-1, 8, 8, palette.centres.shape[1])[:n]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [1, 16, 20])
def test_a_folder_holds_the_samplers_images_and_nothing_else(weights: Path, tmp_path: Path, format: str, n: int) -> None:
    out = tmp_path / "a new" / "folder"
    words = ("--seed", "3", "--temperature", "0.9", "--top-k", "7", "--top-p", "0.8")
    done = igpt_here(
        "sample", "--model", str(weights), "--n", str(n), *words, "--format", format, "--out", str(out), root=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    where = out / "samples.npz" if format == "npz" else out
    word = "image" if n == 1 else "images"
    assert done.stdout.startswith(f"{n} sample{'s' * (n > 1)} of {weights}, seed 3: {where}, {n} {word} drawn at ")
    assert done.stdout.endswith("/s\n")
    images = ["samples.npz"] if format == "npz" else [f"{index:05d}.png" for index in range(n)]
    assert sorted(held(out)) == sorted([JSON, *images])
    assert not [path for path in out.rglob("*") if path.is_dir()]
    found = images_of(out)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected(weights, n, temperature=0.9, top_k=7, top_p=0.8))
    card = json.loads((out / JSON).read_text())
    assert len(card.pop("weights_sha256")) == 64
    settings = {"seed": 3, "temperature": 0.9, "top_k": 7, "top_p": 0.8}
    assert card == {"model": str(weights), **settings, "format": format, "n": n}


def test_the_npz_is_read_as_a_stream_as_evaluators_do(weights: Path, tmp_path: Path) -> None:
    draw(weights, tmp_path / "out", "--seed", "3", format="npz")
    with zipfile.ZipFile(tmp_path / "out" / "samples.npz") as archive, archive.open("arr_0.npy") as stream:
        assert archive.testzip() is None
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream) == ((20, 8, 8, 3), False, np.dtype(np.uint8))
        assert np.array_equal(np.frombuffer(stream.read(), np.uint8).reshape(20, 8, 8, 3), expected(weights, 20))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    weights = save_model(tmp_path / "weights", channels=1)
    for format in FORMATS:
        assert draw(weights, tmp_path / format, "--seed", "3", n=3, format=format).returncode == 0
    assert np.array_equal(images_of(tmp_path / "npz"), expected(weights, 3))
    assert np.array_equal(images_of(tmp_path / "png")[..., None], expected(weights, 3))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the sampler draws."""
    calls: list[int] = []

    def counted(*args: object, n: int, **kwargs: object) -> object:
        calls.append(n)
        return sample(*args, n=n, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("igpt.companion.run.sample_folder.sample", counted)
    return calls


@pytest.mark.parametrize("format", FORMATS)
def test_a_larger_number_adds_images_and_the_same_command_draws_none(
    weights: Path, tmp_path: Path, format: str, drawn: list[int]
) -> None:
    draw(weights, tmp_path / "whole", n=70, format=format)
    assert drawn == [16] * 5
    for n, parts in ((20, 2), (20, 0), (32, 1), (70, 3), (70, 0)):
        drawn.clear()
        done = draw(weights, tmp_path / "grown", n=n, format=format)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("all there already" in done.stdout) == (not parts)
        assert drawn == [16] * parts, n
    assert held(tmp_path / "grown") == held(tmp_path / "whole")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_command_that_is_interrupted_at_any_write_continues(
    weights: Path, tmp_path: Path, format: str, begun: bool, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(weights, tmp_path / "whole", n=37, format=format)
    writes: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: writes.append(target) or replace(self, target))
    # Every write of an npz, of PNGs the first ones of each part and the last ones; then one that does not come.
    stops = range(1, 8) if format == "npz" else (1, 2, 18, 38, 39, 40)
    for stop in stops:
        out = tmp_path / f"stop-{stop}"
        if begun:  # with fewer images
            draw(weights, out, n=5, format=format)

        def interrupted(self: Path, target: Path, stop: int = stop) -> Path:
            writes.append(target)
            if len(writes) == stop:
                raise KeyboardInterrupt
            return replace(self, target)

        writes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            done = draw(weights, out, n=37, format=format)
        if len(writes) < stop:
            break
        assert (done.returncode, done.stderr) == (130, "igpt: stopped; the same command continues\n")
        drawn.clear()
        there = len(parts_there(out, format))
        assert draw(weights, out, n=37, format=format).returncode == 0
        assert drawn == [16] * (3 - there), stop
        assert held(out) == held(tmp_path / "whole")
    assert done.returncode == 0
    assert stop > 5


def parts_there(out: Path, format: str) -> list[list[int]]:
    """The indices of the images that a folder holds, for each part that is whole; 37 images are to be there."""
    if format == "png":
        there = {int(path.stem) for path in out.glob("*.png")}
    elif (out / "samples.npz").exists() and len(images_of(out)) == 37:
        there = set(range(37))
    else:
        firsts = [int(path.stem) for path in (out / ".parts").glob("[0-9]*.npy")]
        there = {index for first in firsts for index in range(first, min(first + 16, 37))}
    parts = [list(range(first, min(first + 16, 37))) for first in range(0, 37, 16)]
    return [part for part in parts if there.issuperset(part)]


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_command_continues_to_the_same_bytes(weights: Path, tmp_path: Path, format: str) -> None:
    draw(weights, tmp_path / "whole", n=40, format=format)
    out, writes = tmp_path / "killed", 3 if format == "npz" else 20
    code = f"""
import os, signal, sys
from pathlib import Path
from igpt.companion import cli
replace, writes = Path.replace, []
def killed(self, target):
    writes.append(target)
    if len(writes) == {writes}:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killed
sys.argv = ["igpt", "sample", "--model", {str(weights)!r}, "--n", "40", "--format", {format!r}, "--out", {str(out)!r}]
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (out / "plan.json").exists()
    assert [name for name in held(out) if name.endswith(".part")]
    done = draw(weights, out, n=40, format=format)
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 images" not in done.stdout
    assert held(out) == held(tmp_path / "whole")


def test_an_image_that_was_deleted_is_drawn_again(weights: Path, tmp_path: Path, drawn: list[int]) -> None:
    draw(weights, tmp_path / "out", n=40)
    before = held(tmp_path / "out")
    (tmp_path / "out" / "00020.png").unlink()
    drawn.clear()
    assert draw(weights, tmp_path / "out", n=40).returncode == 0
    assert drawn == [16]
    assert held(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--seed", "1"],
            "was begun with --seed 0, not with --seed 1: give the same settings, or name another folder with --out",
        ),
        (["--temperature", "0.5"], "was begun with --temperature 1.0, not with --temperature 0.5: "),
        (["--top-k", "3"], "was begun without --top-k, not with --top-k 3: "),
        (["--top-p", "0.5"], "was begun without --top-p, not with --top-p 0.5: "),
        (["--n", "19"], "was begun with --n 20, not with --n 19: "),
        (["--format", "npz"], "was begun with --format png, not with --format npz: "),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_in_a_folder_that_was_begun(
    weights: Path, tmp_path: Path, words: list[str], message: str, finished: bool
) -> None:
    out = tmp_path / "out"
    draw(weights, out)
    if not finished:
        (out / JSON).rename(out / "plan.json")
        (out / "00019.png").unlink()
    before = held(out)
    done = draw(weights, out, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"igpt: {out} {message}")
    assert done.stderr.count("\n") == 1
    assert held(out) == before


def test_other_weights_are_refused_and_the_same_ones_elsewhere_are_not(weights: Path, tmp_path: Path) -> None:
    draw(weights, tmp_path / "out")
    before = held(tmp_path / "out")
    other = save_model(tmp_path / "other", heads=4)  # of which every tensor is the same
    done = draw(other, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == (
        f"igpt: {tmp_path / 'out'} holds samples of other weights, named {weights}: name another folder with --out\n"
    )
    assert held(tmp_path / "out") == before
    moved = shutil.copytree(weights, tmp_path / "moved")
    assert "all there already" in draw(moved, tmp_path / "out").stdout
    colours = Palette(np.random.default_rng(1).uniform(-1, 1, (12, 3)).astype(np.float32))
    save_weights(tmp_path / "colours", load_weights(weights)[0], colours)
    assert "other weights" in draw(tmp_path / "colours", tmp_path / "out").stderr


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be opened."""

    def opened(*_: object) -> None:
        raise AssertionError("weights are opened")

    monkeypatch.setattr("igpt.companion.run.sample_folder.open_weights", opened)
    monkeypatch.setattr("igpt.companion.run.samples.open_weights", opened)


def test_a_folder_that_cannot_be_written_is_refused_before_weights_are_opened(
    tmp_path: Path, unopened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "00000.png").write_text("somebody's")
    before = held(tmp_path)
    named = "is a file, or named as one, and --format writes a folder: name another folder with --out"
    for out, message in (
        (tmp_path / "file", named),
        (tmp_path / "a.PNG", named),
        (tmp_path / "file" / "out", f"cannot be written, since {tmp_path / 'file'} is a file: name another path"),
        (tmp_path / "full", "holds other files, such as 00000.png: name a folder that is new or empty with --out"),
    ):
        done = draw(tmp_path / "none", out)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"igpt: {out} {message}\n")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = draw(tmp_path / "none", tmp_path / "new" / "out")
    assert (done.returncode, done.stderr) == (2, f"igpt: {tmp_path} is not writable: name another folder with --out\n")
    assert held(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_files_of_others_are_refused_and_those_of_a_file_browser_are_not(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_bytes(b"x")
    assert draw(weights, out, n=3).returncode == 0
    for name in ("cat.png", "0.png", "fid.txt"):
        (out / name).write_bytes(b"x")
        done = draw(weights, out, n=4)
        assert done.returncode == 2
        assert f"{out} holds other files, such as {name}: " in done.stderr
        (out / name).unlink()
    assert draw(weights, out, n=4).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", "2"], "igpt: n and top_k are whole numbers of at least 1, .*: give another top_p"),
        (["--top-p", "0"], "igpt: n and top_k are whole numbers of at least 1, .*: give another top_p"),
        (["--temperature", "inf"], "igpt: .*: give another temperature"),
        (["--temperature", "nan"], "(?s).*Invalid value for '--temperature'"),
        (["--n", "0"], "(?s).*Invalid value for '--n'"),
        (["--n", str(2**31)], "igpt: .*: give another n"),
        (["--top-k", str(10**30)], "igpt: .*: give another top_k"),
        (["--seed", "-1"], "igpt: a seed is a whole number from 0 to 4294967295, not -1: choose another"),
    ],
)
def test_settings_outside_their_range_leave_no_folder(weights: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = draw(weights, tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 or not message.startswith("igpt")
    assert not (tmp_path / "out").exists()


def test_a_first_part_that_fails_begins_nothing(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = draw(weights, out, "--temperature", "1e-39")
    assert done.returncode == 2
    assert "not finite at temperature 1e-39" in done.stderr
    assert held(out) == {}
    assert draw(weights, out).returncode == 0


def test_more_images_than_a_png_holds_need_a_format(tmp_path: Path, unopened: None) -> None:
    done = igpt_here("sample", "--n", "257", "--out", "a.png", root=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "igpt: one PNG holds up to 256 images, not 257: give --format npz or png, or a smaller --n\n"


def written(name: str, **changes: object) -> Callable[[Path], object]:
    """A change of the card."""
    return lambda out: (out / name).write_text(json.dumps({**json.loads((out / JSON).read_text()), **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / JSON).write_text(""),
        lambda out: (out / JSON).write_text("[" * 100_000),
        lambda out: (out / JSON).write_text("[]"),
        lambda out: (out / JSON).write_text('{"n": 1, "n": 2}'),
        lambda out: (out / JSON).write_text('{"n": ' + "9" * 10_000 + "}"),
        lambda out: (out / JSON).write_bytes(bytes(2**23)),
        lambda out: (out / JSON).write_bytes(b"\xff\xfe"),
        lambda out: ((out / JSON).unlink(), (out / JSON).mkdir()),
        lambda out: ((out / JSON).unlink(), os.mkfifo(out / JSON)),
        written(JSON, n="20"),
        written(JSON, n=True),
        written(JSON, n=10**30),
        written(JSON, seed=-1),
        written(JSON, more=1),
        written("plan.json", format="gif"),
    ],
)
def test_a_card_that_is_damaged_or_crafted_is_one_sentence(
    weights: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    out = tmp_path / "out"
    draw(weights, out)
    damage(out)
    done = draw(weights, out)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    name = "plan.json" if (out / "plan.json").exists() else JSON
    assert done.stderr.startswith(f"igpt: {out / name} ")
    assert done.stderr.endswith(": name another folder with --out\n")
    assert len(done.stderr) < 500


def test_a_name_in_a_crafted_card_cannot_steer_the_terminal(weights: Path, tmp_path: Path) -> None:
    draw(weights, tmp_path / "out")
    written(JSON, model="\x1b[2J" + "x" * 10**6, weights_sha256="0")(tmp_path / "out")
    done = draw(weights, tmp_path / "out")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert len(done.stderr) < 500


def npz(**arrays: object) -> bytes:
    """An npz as numpy writes it, pickles too."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit of an image is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def bomb() -> bytes:
    """An npz that unpacks to far more than its header says."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as array:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 8, 8, 3)}
        np.lib.format.write_array_header_1_0(array, header)
        for _ in range(64):
            array.write(bytes(2**20))
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npz(arr_0=np.zeros((20, 8, 8, 3), np.uint8))[:2000],
        flipped(npz(arr_0=np.zeros((20, 8, 8, 3), np.uint8))),
        npz(arr_1=np.zeros((20, 8, 8, 3), np.uint8)),
        npz(arr_0=np.zeros((20, 8, 8, 1), np.uint8)),
        npz(arr_0=np.zeros((20, 8, 8, 3), np.float32)),
        npz(arr_0=np.asfortranarray(np.zeros((20, 8, 8, 3), np.uint8))),
        npz(arr_0=np.zeros((99, 8, 8, 3), np.uint8)),
        npz(arr_0=np.array([Path], object)),
        npz(arr_0=np.uint8(3)),
        bomb(),
    ],
    ids=["empty", "head", "cut", "flipped", "name", "channels", "floats", "fortran", "more", "pickle", "number", "bomb"],
)
def test_an_npz_that_holds_anything_else_is_one_sentence(weights: Path, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    draw(weights, out, format="npz")
    (out / "samples.npz").write_bytes(content)
    before = held(out)
    done = draw(weights, out, n=40, format="npz")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"igpt: {out / 'samples.npz'} ")
    assert held(out) == before


def test_a_part_that_is_damaged_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("igpt.companion.run.sample_folder._Array.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draw(weights, out, format="npz")
    part = out / ".parts" / "00016.npy"
    whole = part.read_bytes()
    for content in (whole[:100], npz(arr_0=np.zeros(3)), b""):
        part.write_bytes(content)
        done = draw(weights, out, format="npz")
        assert done.returncode == 2
        assert done.stderr.startswith(f"igpt: {part} ")
        assert done.stderr.endswith(": delete it, and the same command draws it again\n")
        assert not (out / "samples.npz").exists()
    part.unlink()
    assert "4 images drawn" in draw(weights, out, format="npz").stdout
    assert np.array_equal(images_of(out), expected(weights, 20, seed=0))


def test_a_full_disk_is_one_sentence_and_the_same_command_continues(
    weights: Path, tmp_path: Path, small_disk: Callable[[Path, str], None]
) -> None:
    disk = tmp_path / "disk"
    small_disk(disk, "1m")
    filler = disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    done = draw(weights, disk / "out", n=400, format="npz")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "No space left on device" in done.stderr
    filler.unlink()
    done = draw(weights, disk / "out", n=400, format="npz")
    assert (done.returncode, done.stderr) == (0, "")
    draw(weights, tmp_path / "whole", n=400, format="npz")
    assert held(disk / "out") == held(tmp_path / "whole")


def test_a_second_command_waits_for_the_first(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ["sample", "--model", str(weights), "--n", "3", "--format", "png", "--out", str(out)]
    said = tmp_path / "said"
    with FileLock(out / ".lock").acquire():
        with said.open("w") as stream:
            waiting = subprocess.Popen([sys.executable, "-m", "igpt", *words], stderr=stream, stdout=subprocess.DEVNULL)
        wait_until(lambda: said.read_text(), said=said.read_text)
        assert said.read_text() == f"igpt: {out} is being written by another process: waiting until it is done\n"
        assert list(out.glob("*.png")) == []
    assert waiting.wait() == 0
    assert sorted(held(out)) == ["00000.png", "00001.png", "00002.png", JSON]


def test_the_default_folder_is_called_samples(weights: Path, tmp_path: Path) -> None:
    done = igpt_here("sample", "--model", str(weights), "--n", "2", "--format", "png", root=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(held(tmp_path / "samples")) == ["00000.png", "00001.png", JSON]
