from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igpt.evaluate.features import concatenated_layers, extract_features, features_dtype
from igpt.evaluate.kept import Kept
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.train.runtime import Runtime


def test_features_are_the_models_whatever_the_batch(model: ImageGPT, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        expected = np.stack([model.features(tokens)[layer].numpy() for layer in range(3)])
    for batch in (1, 2, 256):
        found = extract_features(model, tokens, batch=batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bert_features_depend_on_the_mask_seed_alone(bert: ImageGPT, tokens: torch.Tensor) -> None:
    first, same, other = (extract_features(bert, tokens, mask_seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@given(st.integers(0, 60).flatmap(lambda last: st.tuples(st.integers(0, last), st.just(last))), st.integers(1, 7))
def test_concatenated_layers_are_neighbours_inside_the_model_around_the_best(case: tuple[int, int], count: int) -> None:
    best, last = case
    layers = concatenated_layers(best, last=last, count=count)
    assert len(layers) == min(count, last + 1)
    assert best in layers
    assert layers == list(range(layers[0], layers[0] + len(layers)))
    assert 0 <= layers[0] <= layers[-1] <= last


@pytest.mark.parametrize(("best", "expected"), [(30, [28, 29, 30, 31, 32]), (0, [0, 1, 2, 3, 4]), (60, [56, 57, 58, 59, 60])])
def test_five_layers_are_centred_at_the_best(best: int, expected: list[int]) -> None:
    assert concatenated_layers(best, last=60) == expected


SHAPE = ModelShape(3, 16, 2, 8, 9)


def test_half_precision_is_not_tried_where_it_is_not_to_be_had_nor_on_a_card(tmp_path: Path) -> None:
    assert features_dtype(SHAPE, Runtime(), folder=tmp_path) == torch.float32
    assert features_dtype(SHAPE, Runtime(device="cuda", bfloat16=True), folder=tmp_path) == torch.bfloat16
    assert list(tmp_path.iterdir()) == []


def test_a_continued_run_takes_the_precision_that_it_began_with(tmp_path: Path) -> None:
    kept, found = Kept(tmp_path, {}), features_dtype(SHAPE, Runtime(bfloat16=True), folder=tmp_path)
    assert f"torch.{kept.get('precision')}" == str(found)
    for name in ("float32", "bfloat16"):
        kept.keep("precision", name)
        assert features_dtype(SHAPE, Runtime(bfloat16=True), folder=tmp_path) == getattr(torch, name)
