"""Make the files of the book's live panel, under ``book/live/``: ONNX Runtime, the model, and held-out images.

``layers.json`` is for the chapter on depth: for a few held-out images the nearest training images in the features of each
layer. The files are not committed. The runtime version is fixed by npm's lock file, the model is made from its weights.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.companion.report.live import colours_of, live_about, live_folder
from igpt.companion.results.record import Record, usable_record
from igpt.companion.results.signature import Signer, module_digest
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import write_folder, write_text
from igpt.pretrained import open_weights, published_folder
from igpt.project import Project
from igpt.train.recipes import TINY, recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igpt.model import ImageGPT
    from igpt.palette import Palette

LARGEST = 25_000_000  # largest download in bytes for a reader of the book
IMAGES = 6  # held-out images to choose from
GRAPHICS_PAY = 5_000_000  # parameters from which WebGPU is preferred; smaller models are faster on the CPU (not measured)
QUERIES, NEIGHBOURS = 5, 6  # held-out images in the chapter on depth, and neighbours per image

# The two builds of ONNX Runtime Web: for GPUs, and for CPUs (SIMD, one thread: more threads need HTTP headers that a static
# site cannot send).
RUNTIMES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}

Published = tuple[Path, Record]  # a record's path and the record


def prepare_live(model: str) -> str:
    """Make ``book/live/`` for a model, unless it exists for the same inputs; the line to print.

    model : see `igpt.pretrained.open_weights`

    ``live.json`` is written last and describes the other files. Without the runtime (no npm) the folder is removed, and the
    book is built without its panel. Raises UsageError for missing weights, weights that draw no square image, and
    weights that are too large for a reader to download.
    """
    project = Project.here()
    folder, runtime = live_folder(project), project.root / "node_modules" / "onnxruntime-web"
    if not (runtime / "package.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return "the book's panel is left out: its runtime is missing (install npm, then run make book again)"
    samples = _samples_record(project, model)
    probed = model if model in TINY else "tiny-l"  # its data and labels are always present
    probes = probe_record(project, probed)
    source = _source(project, model, [published[1].signature for published in (samples, probes) if published])
    try:
        if live_about(project)["source"] == source:
            return f"the book's panel is as it was: {folder}"
    except (UsageError, KeyError):
        pass  # not made yet
    weights, palette = open_weights(model)
    with write_folder(folder) as part:
        about: dict[str, Any] = {
            "source": source,
            "runtime": _copy_runtime(runtime, part),
            **_write_model(model, weights, palette, part),
            "images": _images(samples, weights.shape.n_ctx),
            "record": str(samples[0].relative_to(project.records)) if samples else None,
        }
        download = [sum(file["bytes"] for file in [*f, *about["model_files"]]) for f in about["runtime"]["backends"].values()]
        if max(download) > LARGEST:
            raise UsageError(
                f"with {model} a reader of the book would download {max(download) / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}:"
                " choose a smaller model, or store its weights in half precision"
            )
        if probes:
            known = (weights, palette) if probed == model else open_weights(probed)
            write_text(part / "layers.json", json.dumps(find_neighbours(probed, *known, probes, project)) + "\n")
        write_text(part / "live.json", json.dumps(about, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
    return f"the book's panel has {model}, {min(download) / 1e6:.1f} MB for a reader to download: {folder}"


def probe_record(project: Project, model: str) -> Published | None:
    """The published linear-probe record of a tiny model and its path; None for other models or without a record."""
    if model not in TINY:
        return None
    path = project.records / "tiny" / f"{Stage.of('linear_probe', model=model, seed=0).name}.json"
    record = usable_record(path)
    return (path, record) if record else None


def find_neighbours(model: str, weights: ImageGPT, palette: Palette, probes: Published, project: Project) -> dict[str, object]:
    """The content of ``layers.json``: the first held-out images, and by layer their nearest training images.

    The distance is Euclidean, in features standardised over the training images as for the probe.
    ``curve`` is the probe's accuracy by layer, from its record.
    """
    import numpy as np

    from igpt.data import load_split, tokenize
    from igpt.evaluate.features import extract_features

    path, record = probes
    plan = recipe(model)
    train, test = (load_split(plan.dataset, split, side=plan.side) for split in ("train", "test"))
    known = extract_features(weights, tokenize(train.images, palette))  # (layers, images, width)
    queries = extract_features(weights, tokenize(test.images[:QUERIES], palette))
    mean, deviation = known.mean(1, keepdims=True), known.std(1, keepdims=True) + 1e-6
    known, queries = (known - mean) / deviation, (queries - mean) / deviation
    squared = [np.square(k[None].astype(np.float64) - q[:, None]).sum(-1) for k, q in zip(known, queries, strict=True)]
    nearest = np.stack([each.argsort(1, kind="stable")[:, :NEIGHBOURS] for each in squared])  # (layers, QUERIES, NEIGHBOURS)
    shown, index = np.unique(nearest, return_inverse=True)

    def pictures(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[dict[str, object]]:
        tokens = tokenize(images, palette)
        return [{"tokens": row.tolist(), "label": int(label)} for row, label in zip(tokens, labels, strict=True)]

    return {
        "model": model,
        "side": plan.side,
        "colours": colours_of(palette)["colours"],
        "images": pictures(test.images[:QUERIES], test.labels[:QUERIES]),
        "shown": pictures(train.images[shown], train.labels[shown]),
        "neighbours": index.reshape(nearest.shape).tolist(),
        "curve": [{key: row[key] for key in ("layer", "accuracy", "low", "high")} for row in record.series["trained"]],
        "record": str(path.relative_to(project.records)),
    }


def _file(path: Path) -> dict[str, object]:
    """The entry of a file in ``live.json``: name, bytes, and the integrity hash that the browser checks."""
    content = path.read_bytes()
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    return {"name": path.name, "bytes": len(content), "integrity": f"sha384-{digest}"}


def _copy_runtime(runtime: Path, folder: Path) -> dict[str, object]:
    """Copy both builds of the runtime, with compressed WebAssembly; their entry in ``live.json``."""
    backends = {}
    for backend, (script, binary) in RUNTIMES.items():
        shutil.copyfile(runtime / "dist" / script, folder / script)
        compressed = folder / f"{binary}.gz"
        compressed.write_bytes(gzip.compress((runtime / "dist" / binary).read_bytes(), 9, mtime=0))
        backends[backend] = [_file(folder / script), _file(compressed)]
    about = json.loads((runtime / "package.json").read_bytes())
    return {"name": about["name"], "version": about["version"], "license": about["license"], "backends": backends}


def _write_model(name: str, weights: ImageGPT, palette: Palette, folder: Path) -> dict[str, object]:
    """Write the model as ONNX; its entries in ``live.json``. Raises UsageError if it draws no square image."""
    from igpt.weights.onnx import write_onnx

    shape = weights.shape
    side, channels = math.isqrt(shape.n_ctx), palette.centres.shape[1]
    if side**2 != shape.n_ctx or channels not in (1, 3):
        raise UsageError(f"{name} draws no square image in grey or colour: choose other weights for the book's panel")
    # Half precision only if it is lossless, so that the page and the command line draw the same images.
    half = all(bool((t == t.half()).all()) for t in weights.state_dict().values())
    write_onnx(folder / "onnx", weights, palette, half=half)
    files = [_file((folder / "onnx" / part).rename(folder / part)) for part in ("model.onnx", "weights.bin")]
    shutil.rmtree(folder / "onnx")
    return {
        "model": Path(name).name,
        "side": side,
        "channels": channels,
        "parameters": shape.parameters,
        "preferred": ["webgpu", "wasm"] if shape.parameters >= GRAPHICS_PAY else ["wasm"],
        **{key: value for key, value in shape.as_dict().items() if key != "objective"},
        "model_files": files,
        **colours_of(palette),
    }


def _images(samples: Published | None, positions: int) -> list[list[int]]:
    """Held-out images as tokens: the originals of the model's published completions. Raises UsageError for another size."""
    rows = samples[1].series.get("completions", []) if samples else []
    images = [original for original in {row["image"]: row["original"] for row in rows}.values() if isinstance(original, list)]
    if samples and any(len(image) != positions for image in images):
        raise UsageError(f"{samples[0]} has images of another size than the model's: run `igpt run {samples[1].stage}` again")
    return images[:IMAGES]


def _samples_record(project: Project, model: str) -> Published | None:
    """The first published samples record of a model and its path; None if there is none."""
    for path in sorted(project.records.glob(f"*/samples,*model={Path(model).name},*.json")):
        if record := usable_record(path):
            return path, record
    return None


def _source(project: Project, model: str, records: list[str]) -> str:
    """SHA-256 of all inputs of ``book/live/``."""
    if model in TINY:
        weights = Signer(project.notebooks).sign(Stage.of("pretrain", model=model, objective="autoregressive", seed=0)).digest
    else:
        paths = [path for path in sorted((published_folder(model) or Path(model)).glob("*")) if path.is_file()]
        weights = " ".join([model, *(str(_file(path)["integrity"]) for path in paths)])
    parts = {
        "weights": weights,
        "code": [module_digest(name) for name in ("igpt.companion.run.live", "igpt.companion.report.live", "igpt.weights.onnx")],
        "runtime": (project.root / "package-lock.json").read_text(),
        "records": records,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
