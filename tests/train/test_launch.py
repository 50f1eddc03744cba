from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, random_model, wait_until

from igpt.data.store import TokenStore
from igpt.data.tokens import TokenizeSettings, make_store, train_parts
from igpt.errors import UsageError
from igpt.files import try_lock
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.checkpoint import checkpoints, step_of
from igpt.train.engine import Stopped
from igpt.train.launch import train_store
from igpt.train.loop import pretrain
from igpt.train.recipe import Recipe
from igpt.train.runtime import Launch, Runtime
from igpt.weights.own import save_weights

TWO = Launch(devices=2)


@pytest.fixture
def store(home: Path) -> tuple[Path, Palette]:
    """A store of the digits, and its palette."""
    palette = Palette.fit(torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).numpy(), k=16, seed=0)
    return make_store(TokenizeSettings("digits", "train", 8), palette)[0].folder, palette


def recipe(objective: str = "autoregressive", **changes: object) -> Recipe:
    plan = Recipe(
        name="test",
        shape=ModelShape(2, 16, 2, 16, 64, objective),  # type: ignore[arg-type]
        dataset="digits",
        palette_colours=16,
        batch=8,
        steps=20,
        warmup=2,
        learning_rate=0.01,
        milestones=(0.5, 1),
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def steps_of(folder: Path) -> list[float]:
    """Every step's loss: the windows are as long as the run."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("objective", "runtime"),
    [
        ("autoregressive", Runtime()),
        ("bert", Runtime(micro_batch=2)),
        ("autoregressive", Runtime(shard=True, recompute=True, micro_batch=1)),
        ("biases", Runtime(shard=True)),
    ],
)
def test_two_processes_find_the_losses_of_one(
    store: tuple[Path, Palette], tmp_path: Path, objective: str, runtime: Runtime
) -> None:
    plan = recipe(objective) if objective != "biases" else recipe(shape=ModelShape(2, 16, 2, 16, 64, biases=True))
    one = train_store(plan, *store, seed=1, folder=tmp_path / "one", runtime=Runtime())
    two = train_store(plan, *store, seed=1, folder=tmp_path / "two", runtime=runtime, launch=TWO)
    assert two.steps == one.steps
    assert two.train == pytest.approx(one.train, abs=1e-5)
    assert two.validation == pytest.approx(one.validation, abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "two").glob("weights-*")) == ["weights-0000010", "weights-0000020"]


def test_two_processes_begin_from_weights_and_train_on_chosen_classes_as_one_does(
    store: tuple[Path, Palette], tmp_path: Path
) -> None:
    shape = recipe().shape
    save_weights(tmp_path / "start", random_model(shape), store[1])
    given = {"seed": 1, "classes": [3, 8], "begin_from": tmp_path / "start"}
    one = train_store(recipe(), *store, **given, folder=tmp_path / "one", runtime=Runtime())
    two = train_store(recipe(), *store, **given, folder=tmp_path / "two", runtime=Runtime(shard=True, micro_batch=2), launch=TWO)
    assert one.steps == [0, 10, 20]
    assert one.validation[0] > 2.9  # of a random output matrix, unlike log 16 of an untrained one
    assert (two.train, two.validation) == (pytest.approx(one.train, abs=1e-5), pytest.approx(one.validation, abs=1e-5))


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_goes_on_with_another_number_of_devices(store: tuple[Path, Palette], tmp_path: Path, shard: bool) -> None:
    whole = train_store(recipe(), *store, seed=1, folder=tmp_path / "whole", runtime=Runtime())
    parts = train_parts(TokenStore(store[0]))
    folder = tmp_path / "parts"
    with pytest.raises(Stopped):  # on one
        pretrain(
            recipe(), *parts, palette=store[1], seed=1, folder=folder, runtime=Runtime(stop=lambda: True)
        )  # fmt: skip
    asked = iter([False, False])
    with pytest.raises(Stopped, match="the same command continues"):  # then on two
        train_store(
            recipe(steps=20),
            *store,
            seed=1,
            folder=folder,
            runtime=Runtime(shard=shard, stop=lambda: next(asked, True)),
            launch=TWO,
        )
    reached = step_of(checkpoints(folder)[-1])
    found = train_store(recipe(), *store, seed=1, folder=folder, runtime=Runtime())  # and on one again
    assert 1 < reached <= 20
    assert found.train == pytest.approx(whole.train, abs=1e-5)
    assert found.validation == pytest.approx(whole.validation, abs=1e-5)


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from test_launch import *
if __name__ == "__main__":
    palette = Palette.load(Path({palette!r}))
    train_store(recipe(steps=100_000), Path({store!r}), palette, seed=1, folder=Path({out!r}), runtime=Runtime(), launch=TWO)
"""


def test_a_group_ends_with_its_run_when_that_is_killed(store: tuple[Path, Palette], tmp_path: Path) -> None:
    store[1].save(tmp_path / "palette.npy")
    out = tmp_path / "out"
    given = {"tests": Path(__file__).parent, "palette": tmp_path / "palette.npy", "store": store[0], "out": out}
    code = KILLED.format(**{name: str(path) for name, path in given.items()})
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text() != "")
    assert try_lock(out / ".training.lock") is None
    process.kill()
    process.wait()

    def free() -> bool:
        lock = try_lock(out / ".training.lock")
        return lock is not None and lock.lock.release() is None

    wait_until(free)


def test_a_mistake_in_a_group_is_one_sentence_here(store: tuple[Path, Palette], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 7 images cannot be shared by 2 devices"):
        train_store(recipe(batch=7), *store, seed=1, folder=tmp_path / "out", runtime=Runtime(), launch=TWO)
    with pytest.raises(UsageError, match="each device's 4 images of a batch cannot be cut into pieces of 3"):
        train_store(recipe(), *store, seed=1, folder=tmp_path / "out", runtime=Runtime(micro_batch=3), launch=TWO)


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to nobody before the group has come up: a low one."""
    while True:
        port = random.SystemRandom().randint(10_000, 19_999)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


def test_two_nodes_join_one_group(store: tuple[Path, Palette], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launchers on this machine, as two nodes have them, which meet at an address."""
    for name, value in (("NODES", "2"), ("DEVICES", "1"), ("RENDEZVOUS", f"127.0.0.1:{free_port()}")):
        monkeypatch.setenv(f"IGPT_{name}", value)
    one = train_store(recipe(), *store, seed=1, folder=tmp_path / "one", runtime=Runtime())
    other = subprocess.Popen([sys.executable, "-m", "igpt.train.launch", str(tmp_path / "two")], env=dict(os.environ))
    try:
        two = train_store(recipe(), *store, seed=1, folder=tmp_path / "two", runtime=Runtime(), launch=Launch.here())
        assert other.wait(timeout=PATIENCE) == 0
    finally:
        other.kill()
    assert two.train == pytest.approx(one.train, abs=1e-5)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"IGPT_NODES": "two"}, "are numbers"),
        ({"IGPT_NODES": "2"}, "set IGPT_RENDEZVOUS"),
        ({"IGPT_DEVICES": "0"}, "set IGPT_RENDEZVOUS"),
    ],
)
def test_an_environment_that_says_no_group_is_refused(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        Launch.here()
