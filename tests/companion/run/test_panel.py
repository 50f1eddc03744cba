"""The files of the book's live panel: made once, no larger than a reader may download; neighbours against scikit-learn's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import random_model, some_receipt
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from igpt.companion.report.live import live_folder
from igpt.companion.results.record import SCHEMA, Record, write_record
from igpt.companion.run import live
from igpt.companion.run.live import NEIGHBOURS, QUERIES, find_neighbours, probe_record
from igpt.companion.stage import Stage
from igpt.data import load_split, tokenize
from igpt.errors import UsageError
from igpt.evaluate.features import extract_features
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.project import Project
from igpt.train.recipes import recipe
from igpt.weights.own import released_palette, save_weights


@pytest.fixture
def ready(project: Project, model: ImageGPT, greys: Palette) -> Project:
    """A project with a runtime of a few bytes and a folder of weights called ``nine``."""
    runtime = project.root / "node_modules" / "onnxruntime-web"
    (runtime / "dist").mkdir(parents=True)
    (runtime / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3", "license": "MIT"}')
    for names in live.RUNTIMES.values():
        for name in names:
            (runtime / "dist" / name).write_text(name)
    (project.root / "package-lock.json").write_text("{}")
    save_weights(project.root / "nine", model, greys)
    return project


def publish(folder: Path, stage: Stage, **series: object) -> None:
    """A record written by hand."""
    record = Record(
        schema_version=SCHEMA,
        stage=stage.name,
        parameters=stage.parameters,
        signature="0" * 64,
        parts={},
        values={},
        series=series,  # type: ignore[arg-type]
        receipt=some_receipt(stage),
    )
    write_record(folder / f"{stage.name}.json", record)


def record_of(project: Project, original: list[int]) -> None:
    rows = [{"image": image, "kept": 4, "original": original, "tokens": original} for image in range(2)]
    publish(project.records / "small", Stage.of("samples", model="nine", seed=0), completions=rows)


def made(project: Project) -> dict[str, object]:
    found: dict[str, object] = json.loads((live_folder(project) / "live.json").read_text())
    return found


def test_every_file_is_what_its_description_says(ready: Project) -> None:
    record_of(ready, [0, 1, 2, 3, 4, 5, 6, 7, 0])
    live.prepare_live(str(ready.root / "nine"))
    about = made(ready)
    assert (about["model"], about["side"], about["channels"], about["n_vocab"]) == ("nine", 3, 1, 8)
    assert about["images"] == [[0, 1, 2, 3, 4, 5, 6, 7, 0]] * 2
    assert about["record"] == "small/samples,model=nine,seed=0.json"
    runtime, model_files = about["runtime"], about["model_files"]
    assert isinstance(runtime, dict)
    assert isinstance(model_files, list)
    assert (runtime["version"], runtime["license"]) == ("1.2.3", "MIT")
    for file in [*model_files, *(f for files in runtime["backends"].values() for f in files)]:
        content = (live_folder(ready) / file["name"]).read_bytes()
        assert len(content) == file["bytes"]
        assert file["integrity"] == "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
    prepacked = live_folder(ready) / "ort-wasm-simd-threaded.wasm.gz"
    assert gzip.decompress(prepacked.read_bytes()) == b"ort-wasm-simd-threaded.wasm"


def test_it_is_made_again_when_an_input_has_changed_and_only_then(ready: Project) -> None:
    model = str(ready.root / "nine")
    live.prepare_live(model)
    assert made(ready)["images"] == []  # no record of its samples, so no held-out image
    assert "as it was" in live.prepare_live(model)
    record_of(ready, [0] * 9)
    assert "as it was" not in live.prepare_live(model)
    (ready.root / "package-lock.json").write_text('{"other": 1}')
    assert "as it was" not in live.prepare_live(model)
    assert "as it was" in live.prepare_live(model)


def test_weights_that_half_precision_holds_are_stored_in_it(ready: Project, model: ImageGPT, greys: Palette) -> None:
    live.prepare_live(str(ready.root / "nine"))
    whole = (live_folder(ready) / "weights.bin").stat().st_size
    save_weights(ready.root / "nine", model.half().float(), greys)
    live.prepare_live(str(ready.root / "nine"))
    assert (live_folder(ready) / "weights.bin").stat().st_size < 0.6 * whole


def test_without_npm_the_book_goes_without(ready: Project) -> None:
    live.prepare_live(str(ready.root / "nine"))
    (ready.root / "node_modules" / "onnxruntime-web" / "package.json").unlink()
    assert "install npm" in live.prepare_live(str(ready.root / "nine"))
    assert not live_folder(ready).exists()


def test_what_is_too_large_for_a_reader_or_of_another_size_is_refused_and_leaves_what_stood(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(ready.root / "nine")
    live.prepare_live(model)
    before = made(ready)
    record_of(ready, [0] * 4)
    with pytest.raises(UsageError, match="another size"):
        live.prepare_live(model)
    record_of(ready, [0] * 9)
    monkeypatch.setattr(live, "LARGEST", 1000)
    (ready.root / "package-lock.json").write_text('{"other": 1}')
    with pytest.raises(UsageError, match="would download"):
        live.prepare_live(model)
    assert made(ready) == before
    assert not Path(ready.root / "book" / ".live.part").exists()


def test_a_published_model_counts_by_its_files(ready: Project) -> None:
    shape = recipe("laptop-s").shape
    save_weights(ready.models / "laptop-s", ImageGPT(shape), released_palette())
    live.prepare_live("laptop-s")
    assert live.prepare_live("laptop-s").startswith("the book's panel is as it was")
    path = ready.models / "laptop-s" / "config.json"
    path.write_text(path.read_text() + "\n")
    assert live.prepare_live("laptop-s").startswith("the book's panel has laptop-s")


def test_the_neighbours_are_those_of_another_search(project: Project) -> None:
    assert probe_record(project, "tiny-s") is None
    layers = range(recipe("tiny-s").shape.n_layer + 1)
    rows = [{"layer": layer, "accuracy": 0.5, "low": 0.4, "high": 0.6} for layer in layers]
    publish(project.records / "tiny", Stage.of("linear_probe", model="tiny-s", seed=0), trained=rows)
    assert probe_record(project, "somewhere/weights") is None
    record = probe_record(project, "tiny-s")
    assert record is not None
    model = random_model(recipe("tiny-s").shape)
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    told = find_neighbours("tiny-s", model, palette, record, project)
    train, test = load_split("digits", "train"), load_split("digits", "test")
    shown, neighbours, images = told["shown"], told["neighbours"], told["images"]
    assert isinstance(shown, list) and isinstance(neighbours, list) and isinstance(images, list)
    assert [image["label"] for image in images] == test.labels[:QUERIES].tolist()
    tokens = tokenize(train.images, palette)
    known = extract_features(model, tokens)
    asked = extract_features(model, tokenize(test.images[:QUERIES], palette))
    for layer, (k, a) in enumerate(zip(known, asked, strict=True)):
        scale = StandardScaler().fit(k)
        distances, theirs = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scale.transform(k)).kneighbors(scale.transform(a))
        ours = [[shown[index]["tokens"] for index in row] for row in neighbours[layer]]
        assert (np.array(ours) == tokens.numpy()[theirs]).all(2).mean() > 0.9  # equals may change places
        assert distances.min() > 0
    assert Path(str(told["record"])).stem == "linear_probe,model=tiny-s,seed=0"
