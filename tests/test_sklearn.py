"""`igpt.sklearn`: a transformer as scikit-learn has them, by its own checks and tools; features as `igpt features` writes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from conftest import random_model
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

from igpt.companion.run.features import write_features
from igpt.data import folders
from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.sklearn import ImageGPTFeatures
from igpt.weights.own import save_weights

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))


class OfNumbers(ImageGPTFeatures):
    """scikit-learn's checks give numbers (N, columns): here they are rows of grey pixels."""

    def fit(self, X: Any, y: Any = None) -> OfNumbers:
        return super().fit(as_pictures(validate_data(self, X)), y)

    def transform(self, X: Any) -> Any:
        return super().transform(as_pictures(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = True, False, False
        return tags


def as_pictures(X: np.ndarray) -> np.ndarray:
    """Numbers (N, columns) as uint8 (N, 1, columns)."""
    return (np.abs(X) * 37 % 256).astype(np.uint8)[:, None]


@parametrize_with_checks([OfNumbers()])
def test_scikit_learns_checks_hold_for_numbers_as_pixels(estimator: OfNumbers, check: Any) -> None:
    check(estimator)


@parametrize_with_checks([ImageGPTFeatures()])  # those that give no data: the others need a table of numbers
def test_scikit_learns_checks_hold(estimator: ImageGPTFeatures, check: Any) -> None:
    check(estimator)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small model of three blocks."""
    save_weights(tmp_path / "model", random_model(ModelShape(3, 16, 2, 8, 16)), COLOURS)
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Twelve pictures of two classes, one of them grey and one with transparency."""
    monkeypatch.setattr(folders, "cores", lambda: 1)
    paths = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 20 - number, 3), np.uint8) // (1 + number % 2)
        picture = Image.fromarray(pixels).convert({3: "L", 4: "RGBA"}.get(number, "RGB"))
        if number == 4:
            picture.putalpha(Image.fromarray(pixels[..., 0]))
        if number == 5:
            exif = Image.Exif()
            exif[274] = 6  # lies on its side
            picture.save(tmp_path / "05.png", exif=exif)
        else:
            picture.save(tmp_path / f"{number:02d}.png")
        paths.append(tmp_path / f"{number:02d}.png")
    return paths


@pytest.mark.parametrize("resize", ["crop", "squeeze"])
def test_features_are_those_that_the_command_writes(weights: Path, photos: list[Path], tmp_path: Path, resize: Any) -> None:
    write_features(str(weights), photos, layers="all", out=tmp_path / "f.npz", resize=resize, skip=False)
    written = np.load(tmp_path / "f.npz")
    for layer in range(4):
        features = ImageGPTFeatures(weights, layer, resize=resize).fit_transform(photos)
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, written[f"layer_{layer}"])
    np.testing.assert_array_equal(ImageGPTFeatures(weights, resize=resize).fit_transform(photos), written["layer_1"])


def test_paths_pictures_and_arrays_give_the_same(weights: Path, photos: list[Path]) -> None:
    transformer = ImageGPTFeatures(str(weights)).fit(photos)
    expected = transformer.transform(photos)
    opened = [Image.open(path) for path in photos]
    np.testing.assert_array_equal(transformer.transform(opened), expected)
    np.testing.assert_array_equal(transformer.transform(opened), expected)  # nothing is changed in them
    np.testing.assert_array_equal(transformer.transform(np.array(list(map(str, photos)))), expected)
    np.testing.assert_array_equal(transformer.transform([photos[0], opened[1], *photos[2:]]), expected)
    upright = [np.asarray(Image.open(path)) for path in photos]
    upright[5] = np.rot90(upright[5], -1)
    np.testing.assert_array_equal(transformer.transform(upright), expected)
    same_size = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    np.testing.assert_array_equal(transformer.transform(same_size), transformer.transform(list(same_size)))
    grey = transformer.transform(same_size[..., 0])
    np.testing.assert_array_equal(grey, transformer.transform(same_size[..., :1]))
    np.testing.assert_array_equal(grey, transformer.transform(np.repeat(same_size[..., :1], 3, axis=3)))


def test_it_works_in_a_pipeline_in_searches_and_in_processes(weights: Path, photos: list[Path]) -> None:
    labels = ["bright", "dark"] * 6
    pipeline = make_pipeline(ImageGPTFeatures(weights, layer=1), StandardScaler(), LogisticRegression())
    assert pipeline.fit(photos, labels).score(photos, labels) == 1.0
    opened = [Image.open(path).convert("RGB") for path in photos]
    alone = cross_val_score(pipeline, opened, labels, cv=3)
    np.testing.assert_array_equal(cross_val_score(pipeline, photos, labels, cv=3, n_jobs=2), alone)
    search = GridSearchCV(
        pipeline, {"imagegptfeatures__layer": [0, None, 3], "imagegptfeatures__resize": ["crop", "squeeze"]}, cv=3
    )
    assert search.fit(photos, labels).best_score_ == 1.0
    names = ImageGPTFeatures(weights).fit(photos).get_feature_names_out()
    assert list(names[[0, -1]]) == ["imagegptfeatures0", "imagegptfeatures15"]
    frame = ImageGPTFeatures(weights).set_output(transform="pandas").fit_transform(photos)
    assert list(frame.columns) == list(names)


def test_a_pickle_has_no_weights_and_notices_others(weights: Path, photos: list[Path]) -> None:
    fitted = ImageGPTFeatures(weights, 2).fit(photos)
    content = pickle.dumps(fitted)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).transform(photos), fitted.transform(photos))
    assert not hasattr(clone(fitted), "digest_")
    model = random_model(ModelShape(3, 16, 2, 8, 16))
    model.wpe.data += 1
    save_weights(weights, model, COLOURS)
    with pytest.raises(UsageError, match="have changed since `fit`: fit again"):
        pickle.loads(content).transform(photos)


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [
        (np.zeros((2, 5, 5, 3)), r"the pictures are float64 \(2, 5, 5, 3\): give uint8 arrays"),
        (np.zeros((2, 75), np.uint8), r"the pictures are uint8 \(2, 75\)"),
        (np.zeros((2, 5, 5, 2), np.uint8), r"the pictures are uint8 \(2, 5, 5, 2\)"),
        (np.zeros((0, 5, 5), np.uint8), "there are no pictures"),
        (np.zeros((2, 0, 5), np.uint8), "there are no pictures"),
        ([], "there are no pictures"),
        ("photos", "the pictures are a str: give uint8"),
        (7, "the pictures are a int: give"),
        ([np.zeros((5, 5)), 3], r"picture 0 is float64 \(5, 5\)"),
        (["a.png", 3], "picture 1 is a int"),
        (["a.png"], "there is no file a.png: name an image file$"),
        ([Image.new("F", (4, 4))], "picture 0 has floats, and does not say which are black and white"),
    ],
)
def test_what_is_no_picture_is_a_value_error_in_a_sentence(weights: Path, pictures: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        ImageGPTFeatures(weights).fit_transform(pictures)
    assert isinstance(caught.value, UsageError)


def test_a_layer_weights_and_a_resize_that_there_are_not_are_said(weights: Path, tmp_path: Path, photos: list[Path]) -> None:
    for layer in (-1, 4, 1.0, True, "2"):
        with pytest.raises(ValueError, match=f"layer is {layer!r}, and .* has layers 0 to 3: give one of these, or None for 1"):
            ImageGPTFeatures(weights, layer).fit(photos)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize is 'stretch': give crop or squeeze"):
        ImageGPTFeatures(weights, resize="stretch").fit(photos)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no weights at"):
        ImageGPTFeatures(tmp_path / "nothing").fit(photos)
    closed = Image.open(photos[0])
    closed.close()
    with pytest.raises(ValueError, match="picture 0 cannot be read .*: open it again, or copy its file"):
        ImageGPTFeatures(weights).transform([closed])
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:150])
    with pytest.raises(ValueError, match=r"cut\.png is damaged .*: copy it again$"):
        ImageGPTFeatures(weights).fit(photos).transform([*photos, tmp_path / "cut.png"])
    with pytest.raises(ValueError, match="picture 1 cannot be read .*: open it again, or copy its file"):
        ImageGPTFeatures(weights).transform([Image.open(photos[0]), Image.open(tmp_path / "cut.png")])


def test_scikit_learn_itself_is_still_found() -> None:
    assert Path(sklearn.__file__).parent.name == "sklearn" and sklearn.base.clone is clone
    assert not hasattr(sklearn, "ImageGPTFeatures")
