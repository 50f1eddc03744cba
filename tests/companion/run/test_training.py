from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, random_model
from conftest import igpt_here as igpt

from igpt.companion.run.training import CARD, product_rate, token_flops, train
from igpt.data.store import HEADER, LABELS, Header, shard_path, write_header
from igpt.errors import UsageError
from igpt.files import write_array
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train import engine
from igpt.train.engine import Stopped
from igpt.train.launch import store_parts
from igpt.train.memory import USED, Step
from igpt.train.recipes import recipe
from igpt.train.runtime import Runtime
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import load_weights, save_weights, weights_digest


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Path]:
    """A train store of random tokens as of the digits, for tiny-s; and its palette."""
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    palette.save(tmp_path / "palette.npy")
    folder = tmp_path / "store"
    tokens = np.random.default_rng(0).integers(0, 16, (1437, 64)).astype(np.uint16)
    write_array(shard_path(folder, 0), tokens)
    write_array(folder / LABELS, np.arange(1437) % 10)
    header = Header(
        version=1,
        dataset="digits",
        split="train",
        resolution=8,
        filter="bicubic",
        crops=0,
        seed=0,
        palette_sha256=palette.digest,
        images=1437,
        held_out_sha256="",
    )
    write_header(folder / HEADER, header)
    return folder, tmp_path / "palette.npy"


def words(store: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return ["train", "tiny-s", "--data", str(store[0]), "--out", str(out), "--palette", str(store[1]), *more]


def test_a_recipe_trains_on_a_store_and_again_finds_it_done(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    done = igpt(*words(store, tmp_path / "out", "--steps", "60"), root=project.root)
    assert done.returncode == 0, done.stderr
    assert "nats per token held out; weights in" in done.stdout
    assert "step 50 of 60: loss" in done.stderr
    model, palette = load_weights(tmp_path / "out" / "weights-0000060")
    assert (model.shape.n_ctx, len(palette)) == (64, 16)
    again = igpt(*words(store, tmp_path / "out", "--steps", "60"), root=project.root)
    assert again.stdout == done.stdout
    assert "step 50" not in again.stderr


def begun(store: tuple[Path, Path], out: Path, start: Path | str, *more: str) -> list[str]:
    """The command that begins from weights, whose palette it takes."""
    return ["train", "tiny-s", "--data", str(store[0]), "--out", str(out), "--from", str(start), "--steps", "12", *more]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder)[0].state_dict()


def equal(one: Path, other: Path) -> bool:
    """Whether two folders of weights hold the same numbers, to the bit."""
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def trained(project: Project, store: tuple[Path, Path], tmp_path: Path) -> Path:
    """The folder of a run of 20 steps that has ended."""
    done = igpt(*words(store, tmp_path / "first", "--steps", "20"), root=project.root)
    assert done.returncode == 0, done.stderr
    return tmp_path / "first"


def test_a_run_begins_from_weights_in_any_format_with_the_same_result_to_the_bit(
    project: Project, store: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    model, palette = load_weights(trained / "weights-0000020")
    write_huggingface(tmp_path / "transformers", model, palette)
    starts = {"run": trained, "ours": trained / "weights-0000020", "theirs": tmp_path / "transformers"}
    for name, start in starts.items():
        done = igpt(*begun(store, tmp_path / name, start), root=project.root)
        assert done.returncode == 0, done.stderr
        assert done.stderr == (f"igpt: {trained} holds a training, read after step 20\n" if name == "run" else "")
    for name in starts:
        assert equal(tmp_path / name / "weights-0000000", trained / "weights-0000020")
        assert equal(tmp_path / name / "weights-0000012", tmp_path / "run" / "weights-0000012")
    assert not equal(tmp_path / "run" / "weights-0000012", trained / "weights-0000020")
    done = igpt(*begun(store, tmp_path / "seed", trained, "--seed", "1"), root=project.root)
    assert not equal(tmp_path / "seed" / "weights-0000012", tmp_path / "run" / "weights-0000012")  # other batches


@contextmanager
def interrupted_at(at: int) -> Iterator[None]:
    """A block in which every training gets a Ctrl-C before a step."""
    take = engine._Run._step

    def step(run: engine._Run, number: int) -> float:
        if number == at:
            raise KeyboardInterrupt
        return take(run, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Run, "_step", step)
        yield


def test_a_run_that_begins_from_weights_stops_and_resumes_exactly(
    project: Project, store: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    igpt(*begun(store, tmp_path / "whole", trained), root=project.root)
    stopped = tmp_path / "stopped"
    with interrupted_at(7):
        assert igpt(*begun(store, stopped, trained), root=project.root).returncode == 130
    assert not (stopped / "weights-0000012").exists()
    assert igpt(*begun(store, stopped, trained), root=project.root).returncode == 0
    assert equal(stopped / "weights-0000012", tmp_path / "whole" / "weights-0000012")
    cards = [json.loads((folder / "weights-0000012" / CARD).read_text()) for folder in (stopped, tmp_path / "whole")]
    assert cards[0]["losses"] == cards[1]["losses"]


def test_a_folder_is_never_resumed_from_other_weights(
    project: Project, store: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    out, milestone = tmp_path / "out", trained / "weights-0000010"
    assert igpt(*begun(store, out, trained), root=project.root).returncode == 0
    before = {path: path.read_bytes() for path in (*out.rglob("*"), *trained.rglob("*")) if path.is_file()}
    cases = [
        (
            begun(store, out, milestone),
            f"begins from other weights than {milestone}: give its own (--from {out}/weights-0000000)",
        ),
        (words(store, out, "--steps", "12"), f"{out} holds a training that begins from weights: give them too"),
        (begun(store, trained, out), f"{trained} holds a training that begins from no weights: leave --from out"),
        (begun(store, out, trained, "--seed", "3"), "is of another recipe, seed or data: give another folder"),
    ]
    for command, message in cases:
        done = igpt(*command, root=project.root)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert {path: path.read_bytes() for path in (*out.rglob("*"), *trained.rglob("*")) if path.is_file()} == before
    shutil.rmtree(trained)  # the weights begun from are in the run's folder too
    done = igpt(*begun(store, out, out / "weights-0000000"), root=project.root)
    assert (done.returncode, done.stderr) == (0, "")


def test_weights_that_are_not_the_recipes_are_refused_before_anything_is_written(
    project: Project, store: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    shape, greys = recipe("tiny-s").shape, Palette(np.linspace(-1, 0.5, 16, dtype=np.float32)[:, None])
    save_weights(tmp_path / "deep", random_model(replace(shape, n_layer=3)), greys)
    save_weights(tmp_path / "bert", random_model(replace(shape, objective="bert")), greys)
    save_weights(tmp_path / "other", random_model(shape), greys)
    out, palette = tmp_path / "out", ["--palette", str(store[1])]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    cases = [
        (begun(store, out, tmp_path / "deep"), "holds 3 blocks of width 16, .* and tiny-s is 2 blocks of width 16, .* give"),
        (begun(store, out, tmp_path / "bert"), "objective bert, or begin|, bert, and tiny-s is .* autoregressive: give"),
        (begun(store, out, tmp_path / "other", *palette), "has the palette [0-9a-f]{12}, and --palette is [0-9a-f]{12}: leave"),
        (
            begun(store, out, tmp_path / "other"),
            "tokenised with another palette than the model's \\([0-9a-f]{12}, not [0-9a-f]{12}\\)",
        ),
        (begun(store, out, trained, "--micro-batch", "5"), "a batch of 16 images cannot be cut into pieces of 5"),
        (begun(store, out, tmp_path / "cut"), "there is no palette at|is missing"),
        (begun(store, tmp_path / "other", trained), "other holds weights: give another folder for the training"),
        (begun(store, out, "laptop-l"), "laptop-l holds 4 blocks of width 128, .* give the recipe laptop-l and"),
        (begun(store, out, tmp_path / "nothing"), "there are no weights at"),
    ]
    for command, message in cases:
        done = igpt(*command, root=project.root)
        assert done.returncode == 2, done.stderr
        assert re.search(message, done.stderr), done.stderr
        assert len([line for line in done.stderr.splitlines() if "read after step" not in line]) == 1
        assert not out.exists()


def test_a_card_says_what_the_weights_are(project: Project, store: tuple[Path, Path], trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    (tmp_path / "mine.yaml").write_text("base: tiny-s\nclasses: [3, 8]\n")
    command = ["train", "mine.yaml", *begun(store, out, trained)[2:]]
    assert igpt(*command, root=project.root).returncode == 0
    assert [path.parent.name for path in out.rglob(CARD)] == ["weights-0000012"]
    content = (out / "weights-0000012" / CARD).read_text()
    card = json.loads(content)
    assert (card["model"], card["seed"], card["recipe"]["steps"], card["classes"]) == ("mine", 0, 12, [3, 8])
    assert card["from"] == {
        "weights": f"{trained} after step 20",
        "sha256": weights_digest(load_weights(trained / "weights-0000020")[0]),
    }
    assert card["tokens"]["dataset"] == "digits"
    assert card["tokens"]["palette_sha256"] == Palette.load(store[1]).digest
    assert card["data"] == "scikit-learn's handwritten digits"
    assert [row["step"] for row in card["losses"]] == [0, 1, 2, 3, 6, 12]
    assert card["command"] == shlex.join(["igpt", *command])
    assert card["versions"].keys() == {"igpt", "torch", "numpy", "python"}
    first = json.loads((trained / "weights-0000020" / CARD).read_text())
    assert (first["from"], first["classes"], first["losses"][0]["held_out"]) == (None, "all", math.log(16))
    # Loss before the first step: of the weights begun from, on the images of the two classes.
    assert card["losses"][0]["held_out"] != pytest.approx(first["losses"][-1]["held_out"], rel=1e-6)
    igpt(*command, "--micro-batch", "8", root=project.root)
    assert (out / "weights-0000012" / CARD).read_text() == content  # the run had ended
    (out / "weights-0000012" / CARD).unlink()  # as when the command was killed before it wrote the card
    igpt(*command, root=project.root)
    again = json.loads((out / "weights-0000012" / CARD).read_text())
    assert again == {name: value for name, value in card.items() if name not in ("precision", "command", "finished", "versions")}


def test_only_the_images_of_the_chosen_classes_are_trained_on(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    plan, palette = recipe("tiny-s"), Palette.load(store[1])
    every = store_parts(plan, store[0], palette)
    some = store_parts(plan, store[0], palette, classes=[3, 8])
    for all_images, chosen in zip(every, some, strict=True):
        assert set(chosen.labels) == {3, 8}
        assert len(chosen) == np.isin(all_images.labels, [3, 8]).sum()
    (tmp_path / "a.yaml").write_text("base: tiny-s\nsteps: 4\n")
    assert (
        igpt(*words(store, tmp_path / "out")[:1], "a.yaml", *words(store, tmp_path / "out")[2:], root=project.root).returncode
        == 0
    )
    (tmp_path / "a.yaml").write_text("base: tiny-s\nsteps: 4\nclasses: ['3', 8]\n")
    done = igpt("train", "a.yaml", *words(store, tmp_path / "out")[2:], root=project.root)
    assert "is of another recipe, seed or data: give another folder" in done.stderr
    write_array(store[0] / LABELS, np.zeros(1437, np.int64))
    done = igpt("train", "a.yaml", *words(store, tmp_path / "empty")[2:], root=project.root)
    assert "has 0 training and 0 held-out images of these classes, and training needs both: choose other classes" in done.stderr
    assert not (tmp_path / "empty").exists()


def test_commands_take_a_run_in_its_midst_as_a_model(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with interrupted_at(3):
        assert igpt(*words(store, out, "--steps", "20"), root=project.root).returncode == 130
    assert sorted(path.name for path in out.glob("weights-*")) == ["weights-0000001", "weights-0000002"]
    shutil.rmtree(out / "weights-0000001")
    shutil.rmtree(out / "weights-0000002")
    for command in (
        ["sample", "--model", str(out), "--n", "1"],
        ["evaluate-loss", str(out), "--tokens", str(store[0]), "--images", "8"],
        ["export", "--model", str(out), "--to", "ours", str(tmp_path / "exported")],
        begun(store, tmp_path / "next", out),
    ):
        done = igpt(*command, root=project.root)
        assert (done.returncode, f"igpt: {out} holds a training, read after step 2\n" in done.stderr) == (0, True), done.stderr
    assert equal(tmp_path / "exported", tmp_path / "next" / "weights-0000000")


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_says_so_by_its_code_and_the_same_command_continues(
    project: Project, store: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "igpt", *words(store, tmp_path / "cut", "--steps", "400")]
    environment = {**os.environ, "IGPT_ROOT": str(project.root), "OMP_NUM_THREADS": "1"}
    for number in (signal.SIGTERM, signal.SIGUSR1):
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert child.stderr is not None
        said = ""
        for line in child.stderr:
            said += line
            if line.startswith("step"):
                child.send_signal(number)
                break
        said += child.stderr.read()
        assert child.wait(timeout=PATIENCE) == 75
        assert "of 400 steps; the same command continues" in said
        assert list((tmp_path / "cut").glob("checkpoint-*"))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole = [sys.executable, "-m", "igpt", *words(store, tmp_path / "whole", "--steps", "400")]
    subprocess.run(whole, env=environment, check=True, capture_output=True)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cut", "whole")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_mistakes_are_one_sentence(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = [
        (["train", "igpt-q", *words(store, out)[2:]], "there is no autoregressive model 'igpt-q'"),
        (["train", "igpt-s", *words(store, out)[2:]], "igpt-s has 512 colours, the palette 16: give another palette"),
        (["train", "custom-2x16x1-16-256", *words(store, out)[2:]], "images of 8 x 8, the model takes 16 x 16: tokenise again"),
        (["train", "tiny-s", "--data", str(tmp_path), "--out", str(out)], "is not a finished token store"),
        (["train", "tiny-s", "--data", str(store[0]), "--out", str(out)], "tiny-s has 16 colours, the palette 512: give another"),
        (words(store, out, "--micro-batch", "5"), "a batch of 16 images cannot be cut into pieces of 5"),
    ]
    for command, message in cases:
        done = igpt(*command, root=project.root)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(("holds", "taken"), [(16, None), (15, 8), (5, 4), (1, 1)])
def test_as_many_images_go_through_at_once_as_fit(
    holds: int, taken: int | None, store: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, machines = recipe("tiny-s").shape, []

    def stopped(*_: object, runtime: Runtime, **__: object) -> None:
        machines.append(runtime)
        raise Stopped("seen")

    room = Step(shape, images=holds, half=Runtime.here(shape).bfloat16).memory + 1
    monkeypatch.setattr("igpt.train.runtime.free_memory", lambda: room / USED)
    monkeypatch.setattr("igpt.train.runtime.cores", torch.get_num_threads)  # no part of it is for others
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("igpt.companion.run.training.train_store", stopped)
    asked = {"data": store[0], "out": tmp_path / "out", "steps": 1, "seed": 0, "palette": store[1], "devices": 1}
    for micro_batch in (None, 2):
        assert train("tiny-s", "autoregressive", **asked, micro_batch=micro_batch) == (None, 75)
    assert [runtime.micro_batch for runtime in machines] == [taken, 2]
    assert not any(runtime.recompute for runtime in machines)
    monkeypatch.setattr("igpt.train.runtime.free_memory", lambda: 0.0)
    with pytest.raises(UsageError, match="does not fit into the 0.0 GiB that the device has for it: take"):
        train("tiny-s", "autoregressive", **asked, micro_batch=None)


def test_a_run_resumes_with_the_same_rounding_however_much_memory_is_free_then(
    project: Project, store: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, take = recipe("tiny-s").shape, engine._Run._step
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    room = Step(shape, images=5, half=Runtime.here(shape).bfloat16).memory + 1

    def killed(run: engine._Run, step: int) -> float:
        if step == 7:
            raise KeyboardInterrupt
        return take(run, step)

    with monkeypatch.context() as little:
        little.setattr("igpt.train.runtime.cores", torch.get_num_threads)
        little.setattr("igpt.train.runtime.free_memory", lambda: room / USED)
        assert igpt(*words(store, tmp_path / "little", "--steps", "12"), root=project.root).returncode == 0
        little.setattr(engine._Run, "_step", killed)
        assert igpt(*words(store, tmp_path / "less", "--steps", "12"), root=project.root).returncode == 130
    for name in ("less", "much"):
        assert igpt(*words(store, tmp_path / name, "--steps", "12"), root=project.root).returncode == 0
    weights = {name: tmp_path / name / "weights-0000012" for name in ("little", "less", "much")}
    assert equal(weights["less"], weights["little"])
    assert not equal(weights["much"], weights["little"])  # the pieces of a batch round otherwise than the whole


@pytest.mark.parametrize("half", [False, True])
def test_the_peak_of_this_machine_is_a_rate(half: bool) -> None:
    assert 1e7 < product_rate(Runtime(bfloat16=half)) < 1e16


def test_a_step_counts_what_causal_attention_computes() -> None:
    shape = ModelShape(8, 256, 8, 512, 1024)
    weights = 8 * 12 * 256**2 + 512 * 256
    causal = 3 * (2 * weights + 2 * 8 * 256 * 1024)  # of 4, the half that is not masked
    assert token_flops(shape) == pytest.approx(causal, rel=0.02)
    assert token_flops(replace(shape, objective="bert")) == pytest.approx(causal + 3 * 2 * 8 * 256 * 1024, rel=0.02)
