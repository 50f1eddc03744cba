"""Classifiers in transformers' format, against the real library in both conventions of the network's input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_huggingface import as_pickle, configure, shifted
from torch import Tensor
from torch.testing import assert_close

from igpt import ImageGPT as Pretrained
from igpt.errors import UsageError
from igpt.evaluate.fine_tune import Classifier
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.weights.classifier import HEAD, ImageClassifier, class_logits, read_classifier, write_classifier
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import save_weights
from igpt.weights.processor import write_processor

NAMES = ("cat", "собака", "گربه‌ها 🐈‍⬛")  # of three scripts, with joiners that some need


@pytest.fixture
def classifier(model: ImageGPT, greys: Palette) -> ImageClassifier:
    """What fine-tuning here gives."""
    tuned = Classifier(model, len(NAMES))
    torch.nn.init.normal_(tuned.head.weight, generator=torch.Generator().manual_seed(5))
    return ImageClassifier(tuned.model, tuned.head.weight.detach(), NAMES, greys, shifted=True)


@pytest.fixture
def ours(classifier: ImageClassifier, tmp_path: Path) -> Path:
    """Its folder."""
    write_classifier(tmp_path / "ours", classifier)
    return tmp_path / "ours"


def opened(folder: Path, *unexpected: str) -> torch.nn.Module:
    """A folder as transformers opens it, with every tensor in its place."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    library = transformers.ImageGPTForImageClassification
    loaded, report = library.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) == set(unexpected)
    return loaded.eval()


@pytest.fixture
def theirs(biased: ImageGPT, greys: Palette, tmp_path: Path) -> Path:
    """A folder as transformers saves it after fine-tuning: with biases, a head, names, and no field of ours."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    write_huggingface(tmp_path / "start", biased)
    tuned = transformers.ImageGPTForImageClassification.from_pretrained(
        tmp_path / "start", id2label=dict(enumerate(NAMES)), label2id={name: number for number, name in enumerate(NAMES)}
    )
    torch.nn.init.normal_(tuned.score.weight, generator=torch.Generator().manual_seed(6))
    tuned.save_pretrained(tmp_path / "theirs")
    write_processor(tmp_path / "theirs", greys, side=3)
    (tmp_path / "theirs" / "palette.npy").unlink()
    return tmp_path / "theirs"


def test_a_classifier_of_transformers_gives_its_logits(theirs: Path, tokens: Tensor) -> None:
    found = read_classifier(theirs)
    assert found.names == NAMES and not found.shifted and found.network.wtet is None and found.network.shape.biases
    assert found.head.dtype == torch.float32
    with torch.no_grad():
        expected = opened(theirs)(input_ids=tokens).logits
        assert_close(class_logits(found, tokens), expected, atol=2e-5, rtol=1e-5)
        assert not torch.allclose(class_logits(replace(found, shifted=True), tokens), expected, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", ["safetensors", "bin", "shards"])
def test_every_make_of_theirs_is_read_in_half_precision_too(
    theirs: Path, tokens: Tensor, tmp_path: Path, make: str, dtype: torch.dtype
) -> None:
    library = opened(theirs).to(dtype)
    library.save_pretrained(tmp_path / make, **({"max_shard_size": "8KB"} if make == "shards" else {}))
    shutil.copy(theirs / "preprocessor_config.json", tmp_path / make)
    if make == "bin":
        as_pickle(tmp_path / make, lambda tensors: None)
    assert (tmp_path / make / "model.safetensors").exists() == (make == "safetensors")
    with torch.no_grad():
        found = class_logits(read_classifier(tmp_path / make), tokens)
        assert found.dtype == torch.float32
        assert_close(found, library.float()(input_ids=tokens).logits, atol=2e-5, rtol=1e-5)


def test_ours_gives_its_logits_in_transformers_behind_the_start_token(
    classifier: ImageClassifier, ours: Path, tokens: Tensor
) -> None:
    library = opened(ours, "lm_head.weight")
    tuned = Classifier(classifier.network, len(NAMES))
    tuned.head.weight.data = classifier.head
    with torch.no_grad():
        expected = class_logits(classifier, tokens)
        assert torch.equal(tuned(tokens)[0], expected)
        assert_close(library(input_ids=shifted(tokens)).logits, expected, atol=2e-5, rtol=1e-5)
    assert library.config.id2label == dict(enumerate(NAMES))
    assert library.config.label2id == {name: number for number, name in enumerate(NAMES)}


def test_transformers_processor_has_the_colours_of_ours(ours: Path, classifier: ImageClassifier) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    processor = transformers.AutoImageProcessor.from_pretrained(ours)
    assert np.allclose(np.array(processor.clusters), np.broadcast_to(classifier.palette.centres, (8, 3)))


def test_ours_comes_back_the_same(ours: Path, classifier: ImageClassifier, tokens: Tensor) -> None:
    found = read_classifier(ours)
    assert (found.names, found.shifted, found.palette.digest) == (NAMES, True, classifier.palette.digest)
    assert torch.equal(found.head, classifier.head)
    assert torch.equal(class_logits(found, tokens), class_logits(classifier, tokens))
    assert torch.equal(found.network(tokens), classifier.network(tokens))  # the output matrix too


def test_the_mark_of_ours_outlives_their_library(ours: Path, classifier: ImageClassifier, tokens: Tensor, tmp_path: Path) -> None:
    opened(ours, "lm_head.weight").save_pretrained(tmp_path / "saved")
    shutil.copy(ours / "palette.npy", tmp_path / "saved")
    found = read_classifier(tmp_path / "saved")
    assert found.shifted and found.network.wtet is None and found.names == NAMES
    assert torch.equal(class_logits(found, tokens), class_logits(classifier, tokens))
    opened(tmp_path / "saved")  # without anything unexpected


def test_theirs_is_written_again_in_their_convention(theirs: Path, tokens: Tensor, tmp_path: Path) -> None:
    found = read_classifier(theirs)
    write_classifier(tmp_path / "again", found)
    assert "igpt_shifted" not in json.loads((tmp_path / "again" / "config.json").read_text())
    with torch.no_grad():
        assert torch.equal(opened(tmp_path / "again")(input_ids=tokens).logits, opened(theirs)(input_ids=tokens).logits)
    assert torch.equal(class_logits(read_classifier(tmp_path / "again"), tokens), class_logits(found, tokens))


def test_the_network_of_a_classifier_has_features_and_if_written_its_samples(ours: Path, theirs: Path, tokens: Tensor) -> None:
    assert Pretrained.from_pretrained(ours).sample(1).shape == (1, 9)
    bare = Pretrained.from_pretrained(theirs)
    assert torch.equal(bare.features(tokens)[2], read_classifier(theirs).network.features(tokens)[2])
    with pytest.raises(UsageError, match="no output matrix"):
        bare.sample(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"igpt_shifted": 1}, "has igpt_shifted 1, which is true or false"),
        ({"igpt_shifted": "true"}, "has igpt_shifted 'true'"),
        ({"id2label": {"0": "a", "1": "b"}}, "does not name the 3 classes of its head"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "does not name the 3 classes"),
        ({"id2label": {"0": "a", "1": "b", "2": 3}}, "does not name the 3 classes"),
        ({"id2label": {"0": "a", "1": "b", "02": "c"}}, "does not name the 3 classes"),
        ({"id2label": ["a", "b", "c"]}, "does not name the 3 classes"),
        ({"id2label": {"0": "a", "1": "b", "2": " "}}, "calls class 2 ' ', and a name has 1 to 255 characters"),
        ({"id2label": {"0": "a", "1": "b\n", "2": "c"}}, r"calls class 1 'b\\n', and"),
        ({"id2label": {"0": "\x1b[2Ja", "1": "b", "2": "c"}}, r"calls class 0 '\\x1b\[2Ja'"),
        ({"id2label": {"0": "a", "1": "b\u202egpj", "2": "c"}}, r"calls class 1 'b\\u202egpj'"),
        ({"id2label": {"0": "a", "1": "b", "2": "\ud800"}}, r"calls class 2 '\\ud800'"),
        ({"id2label": {"0": "a", "1": "b", "2": "c" * 256}}, r"calls class 2 'c{40}… \(256 characters\)'"),
        ({"label2id": {"cat": 1}}, "two orders of its classes .id2label and label2id differ in 'cat'"),
        ({"label2id": {"cat": [[0]]}}, "differ in 'cat'"),
        ({"label2id": {"cat": False}}, "differ in 'cat'"),
        ({"problem_type": "multi_label_classification"}, "does not choose one of several classes"),
        ({"problem_type": "regression"}, "does not choose one of several classes"),
        ({"model_type": "vit"}, "is no classifier's folder in transformers' format"),
        ({"model_type": None}, "is no classifier's folder"),
    ],
)
def test_a_configuration_of_something_else_is_one_sentence(ours: Path, change: dict[str, object], message: str) -> None:
    configure(ours, **change)
    with pytest.raises(UsageError, match=message) as caught:
        read_classifier(ours)
    assert str(ours) in str(caught.value) and str(caught.value).isprintable()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "2", "cat", "LABEL_0", ""]), inner),
    max_leaves=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(st.sampled_from(["id2label", "label2id", "problem_type", "igpt_shifted"]), ANYTHING, min_size=1))
def test_fields_of_any_kind_are_names_or_one_sentence(ours: Path, change: dict[str, object]) -> None:
    kept = (ours / "config.json").read_text()
    try:
        configure(ours, **change)
        names = read_classifier(ours).names
        assert len(names) == 3 and all(name.strip() for name in names)
    except UsageError as error:
        assert str(ours) in str(error) and str(error).isprintable()
    finally:
        (ours / "config.json").write_text(kept)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"id2label": None}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"label2id": None}, NAMES),
        ({"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, NAMES),  # left over when only id2label was given
        ({"label2id": {"cat": "0"}}, NAMES),  # as some guides write it
        ({"id2label": {"0": "crane", "1": "b", "2": "crane"}, "label2id": {"crane": 2}}, ("crane", "b", "crane")),  # ImageNet's
        ({"problem_type": "single_label_classification"}, NAMES),
    ],
)
def test_names_are_those_that_transformers_shows(ours: Path, change: dict[str, object], names: tuple[str, ...]) -> None:
    configure(ours, **change)
    assert read_classifier(ours).names == names


def test_a_configuration_without_names_has_theirs(ours: Path) -> None:
    config = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")}))
    assert read_classifier(ours).names == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (torch.ones(3, 15), r"score.weight has the shape \(3, 15\), not \(3, 16\)"),
        (torch.ones(16), r"a head \(score.weight\) of the shape \(16,\)"),
        (torch.ones(0, 16), r"a head \(score.weight\) of the shape \(0, 16\)"),
        (torch.ones(1).expand(2**50, 16), r"a head \(score.weight\) of the shape \(1125899906842624, 16\)"),
        (torch.ones(3, 16, dtype=torch.int64), r"score.weight is torch.int64"),
        (torch.full((3, 16), torch.nan), "48 in score.weight"),
        (torch.ones(1, 16), "outputs 1"),
        (None, r"holds weights without a head \(score.weight\)"),
    ],
    ids=["narrow", "flat", "empty", "endless", "integers", "nan", "regression", "none"],
)
def test_a_head_of_another_kind_is_one_sentence(ours: Path, head: Tensor | None, message: str) -> None:
    as_pickle(ours, lambda tensors: tensors.update({HEAD: head}) if head is not None else tensors.pop(HEAD))
    with pytest.raises(UsageError, match=message) as caught:
        read_classifier(ours)
    assert str(ours) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_classifiers_folder_is_said(model: ImageGPT, greys: Palette, tmp_path: Path) -> None:
    save_weights(tmp_path / "own", model, greys)
    with pytest.raises(UsageError, match="own is no classifier's folder in transformers' format"):
        read_classifier(tmp_path / "own")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        read_classifier(tmp_path / "none")


def test_a_classifier_without_its_colours_is_refused(ours: Path) -> None:
    for name in ("palette.npy", "preprocessor_config.json"):
        (ours / name).unlink()
    with pytest.raises(UsageError, match="has 8 colours and no palette beside it"):
        read_classifier(ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": torch.ones(3, 15)}, r"a head is float32 of at least two classes by 16, .* torch.float32 \(3, 15\)"),
        ({"head": torch.ones(1, 16), "names": ("a",)}, r"\(1, 16\)"),
        ({"head": torch.ones(3, 16).half()}, "torch.float16"),
        ({"names": ("a", "b")}, "2 classes are named, and the head has 3"),
        ({"names": ("a", "b", "c\x07")}, r"a classifier calls class 2 'c\\x07'"),
        ({"palette": Palette(np.zeros((9, 1), np.float32))}, "the palette has 9 colours, and the network 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(classifier: ImageClassifier, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(classifier, **change)  # type: ignore[arg-type]


def test_what_cannot_be_written_leaves_nothing(classifier: ImageClassifier, bert: ImageGPT, tmp_path: Path) -> None:
    wrong = replace(classifier, head=torch.full((3, 16), torch.inf))
    with pytest.raises(UsageError, match=r"the classifier for .* holds numbers that are NaN or infinite \(48 in score.weight\)"):
        write_classifier(tmp_path / "new", wrong)
    with pytest.raises(UsageError, match="transformers has no Image GPT with BERT's objective"):
        write_classifier(tmp_path / "new", replace(classifier, network=bert))
    assert not (tmp_path / "new").exists()


def test_files_that_are_there_are_never_mixed_with_new_ones(ours: Path, classifier: ImageClassifier, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in ours.iterdir()}
    with pytest.raises(UsageError, match="is there already: name a folder that is not"):
        write_classifier(ours, classifier)
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == before
    (tmp_path / "empty").mkdir()
    write_classifier(tmp_path / "empty", classifier)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == set(before)


def test_the_configuration_is_written_last(classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, side: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("igpt.weights.classifier.write_processor", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_classifier(tmp_path / "cut", classifier)
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        read_classifier(tmp_path / "cut")
