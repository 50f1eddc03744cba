"""A checkout in which what OpenAI released is toy: models of two to four blocks, images of 8 x 8, data sets of some hundred images.

What runs there is the package and the notebooks as they are, but for the numbers that are set here, each of which must be there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from conftest import ROOT
from official import cifar10_files, cifar_batch, md5, pictures, python2_pickle, stl_files, tar_of
from released_mirror import (
    STEPS,
    Mirror,
    random_tokens,
    release_hub,
    release_tokens,
    trained_model,
    variables_of,
    write_checkpoint,
)

from igpt.data.dataset import index_digest, stable_order
from igpt.model import ImageGPT
from igpt.shape import ModelShape, Objective

SIDE, COLOURS, SHARDS = 8, 512, 3
SIZES = {"igpt-s": (2, 16, 2), "igpt-m": (3, 16, 2), "igpt-l": (4, 32, 4)}  # blocks, width, heads
HUB = {"igpt-s": "small", "igpt-m": "medium", "igpt-l": "large"}
CLASSES = {"cifar10": 10, "cifar100": 5, "stl10": 10, "imagenet-tokens": 6}
COUNTS = {"cifar10": (240, 60), "cifar100": (120, 40), "stl10": (60, 40)}  # train, test
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "stl10": "stl10_binary"}
TOKENS = (160, 40, 50)  # images of ImageNet's train, validation and test; a probe by gradients takes 128 at once
FEW = {40: 40, 250: 80, 4000: 160}  # labels, by those published
OVERRIDES: dict[str, dict[str, int]] = {
    "samples": {"images": 2, "completions": 1},
    "fine_tune": {"epochs": 1},
    "low_data": {"epochs": 1},
    "sgd_probe": {"iterations": 50, "subset": 40},
    "concatenated_features": {"layers": 3},
}
REPLACE = "from dataclasses import replace\n"
CARDS = f"""{REPLACE}from igpt.data.dataset import Archive
from igpt.data.imagenet_tokens import addresses

def _toy(name, **changes):
    return replace(DATASETS[name], **changes)
"""


def toy_model(name: str, step: int = STEPS[-1]) -> ImageGPT:
    """The weights that are released under a name after a step."""
    size = name.removesuffix("-bert")
    objective: Objective = "autoregressive" if name == size else "bert"
    shape = ModelShape(*SIZES[size], COLOURS, SIDE**2, objective)
    return trained_model(shape, seed=[*SIZES].index(size) + 10 * STEPS.index(step) + 100 * (name != size))


def release(folder: Path) -> None:
    """All that OpenAI, Hugging Face and the owners of the small data sets publish, for a server."""
    for size in SIZES:
        for name in (size, f"{size}-bert"):
            for step in STEPS:
                where = folder / "checkpoints" / name / str(step)
                write_checkpoint(where, step, variables_of(toy_model(name, step)), shards=SHARDS)
        release_hub(folder, HUB[size], toy_model(size))
    release_tokens(folder, "imagenet", random_tokens(TOKENS, positions=SIDE**2), classes=CLASSES["imagenet-tokens"])
    for name, files in dataset_files().items():
        members = [(f"{FOLDERS[name]}/{path}", content) for path, content in files.items()]
        (folder / f"{name}.tar.gz").write_bytes(tar_of(members, "gz"))


def dataset_files() -> dict[str, dict[str, bytes]]:
    """The official files of the small data sets."""
    side = {"cifar10": 32, "cifar100": 32, "stl10": 96}
    images = {name: [pictures(count, side[name], seed) for seed, count in enumerate(COUNTS[name])] for name in COUNTS}
    hundred = {
        name: cifar_batch(part, (np.arange(len(part)) % CLASSES["cifar100"]).tolist(), b"fine_labels")
        for name, part in zip(("train", "test"), images["cifar100"], strict=True)
    }
    names = [b"class%d" % label for label in range(CLASSES["cifar100"])]
    hundred["meta"] = python2_pickle({b"fine_label_names": names, b"coarse_label_names": [b"one"]})
    return {"cifar10": cifar10_files(*images["cifar10"]), "cifar100": hundred, "stl10": stl_files(*images["stl10"])}


@dataclass
class Toy:
    """A toy checkout with its data and weights, and the server that they are fetched from."""

    root: Path
    mirror: Mirror

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs: this checkout's code, and folders of its own."""
        places = {"IGPT_ROOT": self.root, "IGPT_DATA": self.root / "data", "IGPT_WEIGHTS": self.root / "weights"}
        found = {name: str(path) for name, path in places.items()}
        return {**os.environ, **found, "PYTHONPATH": str(self.root), "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command, begun as a user begins it."""
        command = [sys.executable, "-m", "igpt", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=self.root, env=self.environment)

    def igpt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end, which a whole tier may be a long way to: pytest's own limit has to do."""
        with self.start(*words) as process:
            out, err = process.communicate()
            return subprocess.CompletedProcess(words, process.returncode, out, err)


def make_toy(root: Path, mirror: Mirror) -> Toy:
    """A toy checkout at ``root``, which fetches from ``mirror``."""
    for folder in ("igpt", "notebooks", "slurm"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / ".gitignore", root)
    (root / "book" / "records").mkdir(parents=True)
    package = root / "igpt"
    _set(package / "shape.py", SIZES=f"SIZES | {SIZES}")
    _set(package / "train" / "recipes.py", PAPER=f"PAPER | {{name: (name, {SIDE}, *PAPER[name][2:]) for name in {[*SIZES]}}}")
    _set(package / "fetch.py", OPENAI=repr(mirror.address))
    _set(
        package / "weights" / "released.py",
        MIRROR=repr(f"{mirror.address}/openai"),
        RELEASED=f"{{n: replace(r, shards={SHARDS}, shape=replace(r.shape, n_ctx={SIDE**2})) for n, r in RELEASED.items()}}",
    )
    _set(package / "data" / "imagenet_tokens.py", SIDE=str(SIDE))
    _set(package / "data" / "cards.py", DATASETS=f"DATASETS | {{{_datasets(mirror)}}}", first=CARDS)
    _set(package / "evaluate" / "low_data.py", PER_CLASS=str(tuple(count // CLASSES["cifar10"] for count in FEW.values())))
    measures, labels = package / "companion" / "experiments" / "measures.py", f"LABELS = {(*FEW,)}"
    _replace(measures, re.escape(labels), f"{labels}\nFEW = {FEW}", times=1)
    _replace(measures, r'_\{labels\}"\)', '_{FEW[labels]}")', times=3)
    tier = f'TIERS | {{"released": replace(TIERS["released"], overrides={OVERRIDES})}}'
    _set(package / "companion" / "experiments" / "tiers.py", TIERS=tier, first=REPLACE)
    return Toy(root, mirror)


def _datasets(mirror: Mirror) -> str:
    """The data sets of a checkout as the server has them, as items of a dictionary in Python."""
    items = []
    for name, files in dataset_files().items():
        archive = (mirror.folder / f"{name}.tar.gz").read_bytes()
        (train, test), sums = COUNTS[name], {path: md5(content) for path, content in files.items()}
        split = index_digest(np.sort(stable_order(f"igpt split {name}", np.arange(train))[: train // 10]))
        known = f'Archive("{name}.tar.gz", ("{mirror.address}/{name}.tar.gz",), {len(archive)}, "md5:{md5(archive)}")'
        more = f"archives=({known},), unpacked_bytes={1 << 24}, files={sums}, split={split!r}"
        items.append(f"{name!r}: _toy({name!r}, train={train}, test={test}, classes={CLASSES[name]}, {more})")
    beside = "loose=addresses('imagenet'), beside=()"
    counts = f"train={TOKENS[0] + TOKENS[1]}, test={TOKENS[2]}, classes={CLASSES['imagenet-tokens']}, height={SIDE}"
    items.append(f"'imagenet-tokens': _toy('imagenet-tokens', {counts}, {beside})")
    return ", ".join(items)


def _set(path: Path, *, first: str = "", **values: str) -> None:
    """Give names that a module has other values, at its end.

    values : Python, which may use the names as they are; first : what it needs beside
    """
    text = f"{path.read_text()}\n{first}"
    for name, value in values.items():
        assert re.search(rf"^({name}\b.*=|.*, {name} = )", text, re.M), f"{path.name} has no {name}: mend released_toy.py"
        text += f"\n{name} = {value}\n"
    path.write_text(text)


def _replace(path: Path, pattern: str, new: str, *, times: int) -> None:
    """Replace what must be there so many times."""
    text, count = re.subn(pattern, lambda _: new, path.read_text())
    assert count == times, f"{path.name} has {pattern} {count} times: mend released_toy.py"
    path.write_text(text)
