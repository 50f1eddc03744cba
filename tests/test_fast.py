from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import random_model
from torch.testing import assert_close

from igpt import fast
from igpt.fast import Linear, prepacked
from igpt.model import Cache, ImageGPT
from igpt.sample import complete
from igpt.shape import ModelShape

WIDE = ModelShape(2, 256, 4, 32, 16)  # wide enough to be packed


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biases"])
def wide(request: pytest.FixtureRequest) -> ImageGPT:
    return random_model(replace(WIDE, biases=request.param))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))


def is_packed(model: ImageGPT) -> set[bool]:
    return {layer.prepacked is not None for layer in model.modules() if isinstance(layer, Linear)}


def test_packed_products_give_the_same_logits_and_features(wide: ImageGPT, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        plain, features = wide(pixels), wide.features(pixels)
    with prepacked(wide):
        assert is_packed(wide) == {True}, "oneDNN's operators are missing from this torch: igpt.fast falls back"
        assert_close(wide(pixels), plain, atol=1e-4, rtol=1e-4)
        for layer, found in wide.features(pixels).items():
            assert_close(found, features[layer], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_the_gelu_and_the_sum_are_those_of_the_formula(bias: bool) -> None:
    x, add = torch.randn(5, 256), torch.randn(5, 300)
    for gelu in (False, True):
        layer = Linear(256, 300, bias=bias, gelu=gelu)
        product = x.double() @ layer.weight.double().T
        if bias:
            torch.nn.init.normal_(layer.bias)
            product += layer.bias.double()
        expected = product * torch.sigmoid(1.702 * product) if gelu else product
        for inside in (False, True):
            with prepacked(layer) if inside else torch.no_grad():
                assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
                if not gelu:
                    assert_close(layer(x, add=add).double(), expected + add, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_near_float32(wide: ImageGPT, pixels: torch.Tensor) -> None:
    half = copy.deepcopy(wide).bfloat16()
    with prepacked(wide):
        expected = wide.features(pixels)
    with prepacked(half):
        for layer, found in half.features(pixels).items():
            assert found.dtype == torch.float32
            assert (found - expected[layer]).abs().max() < 0.02 * expected[layer].abs().max() + 0.01
        assert half(pixels).dtype == torch.float32


def test_the_layout_is_dropped_with_the_block_even_when_it_raises(wide: ImageGPT) -> None:
    with pytest.raises(RuntimeError, match="inside"), prepacked(wide):
        raise RuntimeError("inside")
    assert is_packed(wide) == {False}
    assert torch.is_grad_enabled()


def test_a_block_within_a_block_drops_nothing(wide: ImageGPT) -> None:
    with prepacked(wide):
        with prepacked(wide):
            pass
        assert is_packed(wide) == {True}


def test_weights_changed_between_blocks_count(wide: ImageGPT, pixels: torch.Tensor) -> None:
    changed = copy.deepcopy(wide)
    with prepacked(changed):
        before = changed(pixels)
    with torch.no_grad():
        changed.blocks[0].c_fc.weight.data.mul_(2)  # type: ignore[union-attr, operator]
    with prepacked(changed):
        assert not torch.allclose(changed(pixels), before)


def test_no_gradient_is_taken_inside_and_every_one_outside(wide: ImageGPT, pixels: torch.Tensor) -> None:
    with prepacked(wide):
        assert not wide.loss(pixels).requires_grad
    wide.loss(pixels).backward()
    assert all(p.grad is not None for p in wide.parameters())
    wide.zero_grad()


def test_small_weights_and_missing_operators_stay_plain(
    model: ImageGPT, wide: ImageGPT, pixels: torch.Tensor, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepacked(model):
        assert is_packed(model) == {False}
        model(tokens)
    with torch.no_grad():
        plain = wide(pixels)
    monkeypatch.setattr(fast, "OPERATORS", ("no_such_operator",))
    with prepacked(wide):
        assert is_packed(wide) == {False}
        assert torch.equal(wide(pixels), plain)


@torch.no_grad()
def test_greedy_sampling_on_packed_weights_equals_plain_full_forwards(wide: ImageGPT, pixels: torch.Tensor) -> None:
    tokens = pixels.clone()
    for position in range(4, 16):
        tokens[:, position] = wide(tokens)[:, position].argmax(-1)
    assert torch.equal(complete(wide, pixels[:, :4], n=1, seed=0, temperature=0)[:, 0], tokens)


def test_cached_logits_on_packed_weights_are_the_uncached_ones(wide: ImageGPT, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        expected = wide(pixels)
    cache = Cache(WIDE, len(pixels), like=wide.wte)
    with prepacked(wide):
        for position in range(5, 16):
            found = wide.next_logits(pixels[:, :position], cache)
            assert_close(found, expected[:, position], atol=1e-4, rtol=0)
