"""What the book's live panel loads: the model as ONNX, a few held-out images, and the runtime, each with its hash.

Made by the book's build from weights that are at hand, under ``book/live/``, and copied into the built book. Nothing
of it is committed: the runtime comes from npm's lock file, the model from its checkpoint.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.results.record import Record, usable_record
from igpt.companion.results.signature import Signer, module_digest
from igpt.companion.run.live_layers import find_neighbours, probe_record
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.pretrained import open_weights, published_folder
from igpt.project import Project
from igpt.train.recipes import TINY

if TYPE_CHECKING:
    from igpt.model import ImageGPT
    from igpt.palette import Palette

MOST = 25_000_000  # bytes that a reader who presses the button downloads
IMAGES = 6  # held-out images to choose from
GRAPHICS_PAY = 5_000_000  # parameters; of a smaller model a processor ends a step before a card has begun it (not measured)

# The two builds of ONNX Runtime Web: for a graphics card, and for the processor (SIMD, one thread: more would need
# headers that a folder of files cannot send).
RUNTIMES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}


@dataclass(frozen=True)
class File:
    """A file that the page fetches: its name, bytes on the way, and what they must hash to."""

    name: str
    bytes: int
    integrity: str

    @classmethod
    def of(cls, path: Path) -> File:
        """A file as it lies there."""
        content = path.read_bytes()
        digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
        return cls(path.name, len(content), f"sha384-{digest}")


def live_folder(project: Project) -> Path:
    """Where the panel's files are made."""
    return project.root / "book" / "live"


def prepare_live(model: str) -> str:
    """Make ``book/live/`` for a model, or leave it where it was made from the same inputs; what to say of it.

    model : as `igpt.pretrained.open_weights` takes it
    ``live.json`` comes last and says what the other files are. Without the runtime (npm was not there) the folder is
    removed: the book is then built without its panel, and says so. Raises UsageError for weights that are none, that
    draw no square image, or that are too large for a reader to wait for.
    """
    project = Project.here()
    folder, runtime = live_folder(project), project.root / "node_modules" / "onnxruntime-web"
    if not (runtime / "package.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return "the book's panel is left out: its runtime is missing (install npm, then run make book again)"
    record = _samples_record(project, model)
    looked_into = model if model in TINY else "tiny-l"  # whose data and labels are always at hand
    probes = probe_record(project, looked_into)
    source = _source(project, model, [found[1].signature for found in (record, probes) if found])
    if _made_from(folder) == source:
        return f"the book's panel is as it was: {folder}"
    weights, palette = open_weights(model)
    part = folder.with_name(".live.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        about = {
            "source": source,
            "runtime": _copy_runtime(runtime, part),
            **_write_model(model, weights, palette, part),
            "images": _images(record, weights.shape.n_ctx),
            "record": str(record[0].relative_to(project.records)) if record else None,
        }
        if probes:
            known = (weights, palette) if looked_into == model else open_weights(looked_into)
            neighbours = find_neighbours(looked_into, *known, probes, project)
            write_text(part / "layers.json", json.dumps(neighbours) + "\n")
        write_text(part / "live.json", json.dumps(about, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return f"the book's panel has {model}, {download_bytes(about, 'wasm') / 1e6:.1f} MB to a reader who asks for it: {folder}"


def download_bytes(about: dict[str, object], backend: str) -> int:
    """Bytes that go to a reader: one of the two runtimes, and the model."""
    runtime, files = about["runtime"], about["model_files"]
    assert isinstance(runtime, dict) and isinstance(files, list)
    return sum(file["bytes"] for file in [*runtime["backends"][backend], *files])


def _copy_runtime(runtime: Path, folder: Path) -> dict[str, object]:
    """Both builds, WebAssembly compressed, with their licence; what ``live.json`` says of them."""
    backends = {}
    for backend, (script, binary) in RUNTIMES.items():
        shutil.copyfile(runtime / "dist" / script, folder / script)
        prepacked = folder / f"{binary}.gz"
        prepacked.write_bytes(gzip.compress((runtime / "dist" / binary).read_bytes(), 9, mtime=0))
        backends[backend] = [vars(File.of(folder / script)), vars(File.of(prepacked))]
    about = json.loads((runtime / "package.json").read_bytes())
    return {"name": about["name"], "version": about["version"], "license": about["license"], "backends": backends}


def _write_model(name: str, weights: ImageGPT, palette: Palette, folder: Path) -> dict[str, object]:
    """The graph and its weights; what ``live.json`` says of them, sizes and colours included."""
    import numpy as np

    from igpt.weights.onnx import write_onnx

    shape = weights.shape
    side, channels = math.isqrt(shape.n_ctx), palette.centres.shape[1]
    if side**2 != shape.n_ctx or channels not in (1, 3):
        raise UsageError(f"{name} draws no square image in grey or colour: choose other weights for the book's panel")
    # Half precision where it loses nothing, so that the page draws what the command line draws.
    half = all(bool((t == t.half()).all()) for t in weights.state_dict().values())
    write_onnx(folder / "onnx", weights, palette, half=half)
    files = [File.of((folder / "onnx" / part).rename(folder / part)) for part in ("model.onnx", "weights.bin")]
    shutil.rmtree(folder / "onnx")
    about: dict[str, object] = {
        "model": Path(name).name,
        "side": side,
        "channels": channels,
        "parameters": shape.parameters,
        "preferred": ["webgpu", "wasm"] if shape.parameters >= GRAPHICS_PAY else ["wasm"],
        **{key: value for key, value in shape.as_dict().items() if key != "objective"},
        "model_files": [vars(file) for file in files],
        "centres": [[float(c) for c in centre] for centre in palette.centres],
        "colours": palette.dequantize(np.arange(len(palette))).tolist(),
    }
    whole = sum(file.bytes for file in files) + max(
        sum((folder / name).stat().st_size for name in (script, f"{binary}.gz")) for script, binary in RUNTIMES.values()
    )
    if whole > MOST:
        raise UsageError(
            f"with {name} a reader of the book would download {whole / 1e6:.0f} MB, more than {MOST / 1e6:.0f}: choose a"
            " smaller model, or store its weights in half precision"
        )
    return about


def _images(record: tuple[Path, Record] | None, positions: int) -> list[list[int]]:
    """Held-out images as tokens: the originals of the model's published completions."""
    if record is None:
        return []
    rows = {row["image"]: row["original"] for row in record[1].series.get("completions", [])}
    images = [original for original in rows.values() if isinstance(original, list)]
    if any(len(image) != positions for image in images):
        raise UsageError(f"{record[0]} has images of another size than the model's: run `igpt run {record[1].stage}` again")
    return images[:IMAGES]


def _samples_record(project: Project, model: str) -> tuple[Path, Record] | None:
    """The first published record of a model's samples, and where it is."""
    for path in sorted(project.records.glob(f"*/samples,*model={Path(model).name},*.json")):
        record = usable_record(path)
        if record is not None:
            return path, record
    return None


def _source(project: Project, model: str, records: list[str]) -> str:
    """SHA-256 over all that the folder is made from."""
    if model in TINY:
        signer = Signer(project.notebooks)
        weights = signer.sign(Stage.of("pretrain", model=model, objective="autoregressive", seed=0)).digest
    else:
        folder = published_folder(model) or Path(model)
        paths = [path for path in sorted(folder.glob("*")) if path.is_file()]
        weights = " ".join([model, *(File.of(path).integrity for path in paths)])
    parts = {
        "weights": weights,
        "code": [
            module_digest(name) for name in ("igpt.companion.run.live", "igpt.companion.run.live_layers", "igpt.weights.onnx")
        ],
        "runtime": (project.root / "package-lock.json").read_text(),
        "records": records,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _made_from(folder: Path) -> str | None:
    """What a finished folder was made from."""
    try:
        found = read_json(folder / "live.json")
        return str(found["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
