"""The neighbours that the chapter on depth shows, against scikit-learn's search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import random_model, some_receipt
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from igpt.companion.results.record import Record, write_record
from igpt.companion.run.live import ASKED, NEAREST, find_neighbours, probe_record
from igpt.companion.stage import Stage
from igpt.data import load_split, tokenize
from igpt.evaluate.features import extract_features
from igpt.palette import Palette
from igpt.project import Project
from igpt.train.recipes import recipe


def write_probe(project: Project) -> None:
    """A record of the probe, by hand."""
    stage = Stage.of("linear_probe", model="tiny-s", seed=0)
    layers = recipe("tiny-s").shape.n_layer + 1
    rows = [{"layer": layer, "accuracy": 0.5, "low": 0.4, "high": 0.6} for layer in range(layers)]
    record = Record(
        schema_version=1,
        stage=stage.name,
        parameters={},
        signature="",
        parts={},
        values={},
        series={"trained": rows},  # type: ignore[dict-item]
        receipt=some_receipt(stage),
    )
    write_record(project.records / "tiny" / f"{stage.name}.json", record)


def test_the_neighbours_are_those_of_another_search(project: Project) -> None:
    assert probe_record(project, "tiny-s") is None
    write_probe(project)
    assert probe_record(project, "somewhere/weights") is None
    found = probe_record(project, "tiny-s")
    assert found is not None
    model = random_model(recipe("tiny-s").shape)
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    told = find_neighbours("tiny-s", model, palette, found, project)
    train, test = load_split("digits", "train"), load_split("digits", "test")
    shown, neighbours, images = told["shown"], told["neighbours"], told["images"]
    assert isinstance(shown, list)
    assert isinstance(neighbours, list)
    assert isinstance(images, list)
    assert [image["label"] for image in images] == test.labels[:ASKED].tolist()
    tokens = tokenize(train.images, palette)
    known = extract_features(model, tokens)
    asked = extract_features(model, tokenize(test.images[:ASKED], palette))
    for layer, (k, a) in enumerate(zip(known, asked, strict=True)):
        scale = StandardScaler().fit(k)
        distances, theirs = NearestNeighbors(n_neighbors=NEAREST).fit(scale.transform(k)).kneighbors(scale.transform(a))
        ours = [[shown[index]["tokens"] for index in row] for row in neighbours[layer]]
        assert (np.array(ours) == tokens.numpy()[theirs]).all(2).mean() > 0.9  # equals may change places
        assert distances.min() > 0
    assert Path(str(told["record"])).stem == "linear_probe,model=tiny-s,seed=0"
