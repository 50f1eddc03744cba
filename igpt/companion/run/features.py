"""``igpt features``: features of a user's pictures as a table, ``.parquet`` for pandas or ``.npz`` for numpy."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.companion.run.per_picture import check_unchanged, rate_line, shown_name, working_folder
from igpt.data.folders import PictureFiles, PictureTokens, find_pictures
from igpt.data.npz import array_member
from igpt.errors import UsageError
from igpt.evaluate.feature_store import store_features
from igpt.evaluate.linear_probe import chosen_layers
from igpt.files import check_writable, write_atomically
from igpt.pictures import Resize
from igpt.pretrained import open_weights, resample_of
from igpt.progress import Bar
from igpt.text import counted
from igpt.weights.own import weights_digest

PIECE = 2**26  # bytes of features in memory at once, and of a row group of Parquet
Layers = Mapping[int, NDArray[np.float32]]


def write_features(model: str, paths: Sequence[Path], *, layers: str, out: Path, resize: Resize, skip: bool) -> str:
    """Write the features of the pictures in files and folders, a row each; the line to print.

    layers : as `igpt.evaluate.linear_probe.chosen_layers` parses them
    out : a ``.parquet`` or ``.npz`` file
    resize : see `igpt.data.resize.fitted`
    skip : whether to leave out pictures that cannot be read

    Features are those of the probe: computed in float32 on a CPU, in bfloat16 on a GPU, averaged in float32, with masks from
    seed 0 for BERT. A stopped call is continued by the next one.
    Raises UsageError for another file, as `find_pictures`, `open_weights` and `chosen_layers` do, for a picture that cannot be
    read, and when the pictures changed meanwhile.
    """
    writers = {".parquet": _write_parquet, ".npz": _write_npz}
    write = writers.get(out.suffix.lower())
    if write is None:
        raise UsageError(f"features are written as .parquet or .npz, not as {out.name}: name a file that ends in one of these")
    if write is _write_parquet:
        import pyarrow  # noqa: F401  # comes with an extra, of which to tell at once
    check_writable(out)
    found = find_pictures(paths)
    before = found.digest()
    network, palette = open_weights(model)
    chosen = chosen_layers(layers, last=network.shape.n_layer)
    key = {"weights": weights_digest(network)}
    if torch.cuda.is_available():
        network.to("cuda", torch.bfloat16)
    side = math.isqrt(network.shape.n_ctx)
    with working_folder(out) as work:
        pictures = PictureTokens(found, palette, side, resize, resample_of(model), skip, work)
        key |= {"pictures": pictures.digest, "precision": str(network.wte.dtype)}
        start = time.monotonic()
        with closing(pictures), Bar(model, " pictures") as bar:
            store = store_features(work, network, pictures, key=key, layers=chosen, dtype="float32", seed=None, report=bar)
        seconds = time.monotonic() - start
        check_unchanged(paths, before)
        rows = np.setdiff1d(np.arange(len(found)), list(pictures.broken))
        if len(rows):
            write(out, found, rows, store.layers)
    pictures.tell()
    if not len(rows):
        raise UsageError(f"none of the {counted(len(found), 'picture')} can be read: nothing was written")
    return f"{rate_line(len(rows), seconds, out, read=pictures.read)}; layers {', '.join(map(str, chosen))}"


def _write_parquet(out: Path, found: PictureFiles, rows: NDArray[np.int64], layers: Layers) -> None:
    """Write some pictures' rows as Parquet, atomically: features as lists of fixed length, in row groups of `PIECE` bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    width = next(iter(layers.values())).shape[1]
    labelled = any(found.labels)
    vectors = {f"layer_{layer}": pa.list_(pa.float32(), width) for layer in layers}
    schema = pa.schema([("file", pa.string()), *([("label", pa.string())] if labelled else []), *vectors.items()])
    dictionary = ["label"] if labelled else False  # features do not repeat
    with write_atomically(out) as stream, parquet.ParquetWriter(stream, schema, use_dictionary=dictionary) as writer:
        for piece in _pieces(rows, layers):
            columns = [pa.array([shown_name(found.paths[row]) for row in piece.tolist()], pa.string())]
            if labelled:
                columns.append(pa.array([shown_name(found.labels[row]) or None for row in piece.tolist()], pa.string()))
            for features in layers.values():
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(features[piece].ravel()), width))
            writer.write_table(pa.table(columns, schema=schema))


def _write_npz(out: Path, found: PictureFiles, rows: NDArray[np.int64], layers: Layers) -> None:
    """Write some pictures' rows as arrays of their own, atomically and in pieces."""
    columns: dict[str, Callable[[int], str]] = {"file": lambda row: shown_name(found.paths[row])}
    if any(found.labels):
        columns["label"] = lambda row: shown_name(found.labels[row])
    with write_atomically(out) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, value in columns.items():
            dtype = np.dtype(f"<U{max(len(value(row)) for row in rows.tolist()) or 1}")
            with array_member(archive, name, dtype, (len(rows),)) as member:
                for piece in _pieces(rows, layers):
                    member.write(np.array([value(row) for row in piece.tolist()], dtype).tobytes())
        for layer, features in layers.items():
            with array_member(archive, f"layer_{layer}", features.dtype, (len(rows), features.shape[1])) as member:
                for piece in _pieces(rows, layers):
                    member.write(features[piece].tobytes())


def _pieces(rows: NDArray[np.int64], layers: Layers) -> Iterator[NDArray[np.int64]]:
    """The rows in pieces whose features take at most `PIECE` bytes."""
    at_once = max(PIECE // sum(features[0].nbytes for features in layers.values()), 1)
    return (rows[start : start + at_once] for start in range(0, len(rows), at_once))
