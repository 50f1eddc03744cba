"""The released tier at toy size, from addresses to verdicts: fetched, verified, evaluated, killed, continued."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until
from released_mirror import Fault, serving, variables_of, write_checkpoint
from released_toy import SHARDS, TOKENS, Toy, make_toy, release, toy_model

EARLY = "weights,model=igpt-s,step=131000"  # which Hugging Face does not have
STEM = "model.ckpt-131000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published."""
    folder = tmp_path_factory.mktemp("served")
    release(folder)
    return folder


@pytest.fixture
def toy(served: Path, tmp_path: Path) -> Iterator[Toy]:
    """A checkout that has nothing yet."""
    with serving(served) as mirror:
        yield make_toy(tmp_path / "checkout", mirror)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which a command refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    text = done.stderr.splitlines()[-1]
    assert text.startswith("igpt: ") and ". " not in text and "Traceback" not in done.stderr, done.stderr
    return text


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said that did its work."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def standing(folder: Path) -> list[str]:
    """Files under their final names."""
    return sorted(path.name for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))


# Two cells; all of them where this is set, which takes two cores some minutes.
WHOLE = bool(os.environ.get("IGPT_WHOLE_TIER"))
CELLS = ["released-loss-078", "headline-001"]


@pytest.mark.slow
def test_the_tier_goes_on_after_a_kill_and_then_wants_nothing_more(toy: Toy) -> None:
    targets = [*([] if WHOLE else CELLS), "--tier", "released"]
    records = toy.root / "book" / "records" / "released"
    with toy.start("run", *targets) as process:
        wait_until(lambda: len(list(records.glob("*.json"))) >= 2 or process.poll() is not None)
        process.kill()  # whose kernels end by themselves
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = {path: path.read_bytes() for path in records.glob("*.json")}
    succeeded(toy.igpt("run", *targets))
    assert {path: path.read_bytes() for path in finished} == finished  # none was done twice
    asked = len(toy.mirror.asked)
    assert "nothing to run" in succeeded(toy.igpt("run", *targets))
    assert len(toy.mirror.asked) == asked
    shown = csv.DictReader(succeeded(toy.igpt("table", "headline", "--format", "csv")).splitlines())
    verdicts = [row["Released weights"] for row in shown]
    assert sum(text.endswith(("differs", "reproduced")) for text in verdicts) == (5 if WHOLE else 1), verdicts
    planned = succeeded(toy.igpt("plan", *targets))
    assert re.search(r"(\d+) stages: \1 fresh, 0 stale, 0 missing", planned), planned


def test_what_is_faulty_or_does_not_fit_is_refused_in_a_sentence_and_the_same_command_continues(
    toy: Toy, small_disk: Callable[[Path, str], None]
) -> None:
    place, published = toy.root / "weights" / "igpt-s", toy.mirror.folder / "checkpoints" / "igpt-s" / "131000"
    index, *shards = (f"{STEM}.index", *(f"{STEM}.data-{number:05d}-of-{SHARDS:05d}" for number in range(SHARDS)))

    def serve(name: str, *faults: Fault) -> None:
        toy.mirror.faults[str((published / name).relative_to(toy.mirror.folder))] = list(faults)

    small_disk(toy.root / "weights", "64k")
    assert re.search(r"it needs [\d.]+ GB of the disk of .*igpt-s, and [\d.]+ GB are free", refusal(toy.igpt("run", EARLY)))
    subprocess.run(["mount", "-o", "remount,size=16m", str(toy.root / "weights")], check=True)
    larger = write_checkpoint(toy.root / "larger", 131_000, variables_of(toy_model("igpt-m")), shards=SHARDS)
    serve(index, Fault(content=larger.with_name(index).read_bytes()))
    assert "is of another model (3 blocks" in refusal(toy.igpt("run", EARLY))
    assert index not in standing(place)
    serve(shards[0], Fault(cut=5_000), Fault(status=403))
    assert "HTTP 403" in refusal(toy.igpt("run", EARLY))
    assert index in standing(place) and shards[0] not in standing(place)
    other = published.with_name("262000") / shards[1].replace("131000", "262000")
    serve(shards[1], Fault(content=other.read_bytes()))
    assert shards[1] in refusal(toy.igpt("run", EARLY))
    assert shards[0] in standing(place) and shards[1] not in standing(place)
    assert [wanted for path, wanted in toy.mirror.asked if path.endswith(shards[0])][-1] == "bytes=5000-"
    assert not list(toy.root.glob("runs/weights*/record.json"))
    assert "1 stage run" in succeeded(toy.igpt("run", EARLY))
    assert all((place / name).read_bytes() == (published / name).read_bytes() for name in (index, *shards))


def test_tokens_that_do_not_fit_are_refused_and_fail_no_weights_for_which_they_are_optional(toy: Toy) -> None:
    path, loss = toy.root / "data" / "imagenet-tokens" / "imagenet_teX.npy", "released_loss,model=igpt-s"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((TOKENS[2] - 1, 64), np.int64))
    done = toy.igpt("run", loss)
    assert "imagenet_teX.npy has the tokens of 49 images, the released one of 50: move it away, and" in refusal(done)
    assert re.search("igpt: the loss on the first images is left out: .*imagenet_teX.npy has the tokens of 49", done.stderr)
    assert list(toy.root.glob("runs/weights*/record.json")) and not list(toy.root.glob("runs/released_loss*/record.json"))
    path.unlink()
    assert "1 stage run" in succeeded(toy.igpt("run", loss))
    np.save(path, np.zeros((TOKENS[2], 64), np.int64))  # as many as released, but others
    done = toy.igpt("run", "weights,model=igpt-m")
    says = r"igpt: the loss of igpt-m on the first 8 images is 6\.\d\d .* 2\.06 is published: are these the right"
    assert "1 stage run" in succeeded(done) and re.search(says, done.stderr), done.stderr
