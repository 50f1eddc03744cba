from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from igpt.model import Cache, ImageGPT, draw_mask, generative_loss
from igpt.shape import SIZES, ModelShape, Objective


def plain_forward(model: ImageGPT, tokens: np.ndarray, masked: np.ndarray | None = None) -> np.ndarray:
    """The released code's forward pass in numpy loops, float64: the reference."""
    shape = model.shape
    w = {name: t.detach().double().numpy() for name, t in model.state_dict().items()}

    def norm(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * g

    h = w["wte"][tokens]
    if shape.objective == "autoregressive":
        h = np.concatenate([np.broadcast_to(w["sos"], (len(tokens), 1, shape.n_embd)), h[:, :-1]], axis=1)
    elif masked is not None:
        h = h * (1 - masked[..., None])
    h = h + w["wpe"][: tokens.shape[1]]
    d = shape.n_embd // shape.n_head
    for layer in range(shape.n_layer):
        p = f"blocks.{layer}."
        n = norm(h, w[p + "ln_1.g"])
        q, k, v = np.split(n @ w[p + "attn.qkv.weight"].T, 3, axis=-1)
        out = np.zeros_like(h)
        for b in range(len(h)):
            for head in range(shape.n_head):
                cut = slice(head * d, (head + 1) * d)
                for i in range(h.shape[1]):
                    last = i + 1 if shape.objective == "autoregressive" else h.shape[1]
                    scores = k[b, :last, cut] @ q[b, i, cut] / math.sqrt(d)
                    weights = np.exp(scores - scores.max())
                    out[b, i, cut] = (weights / weights.sum()) @ v[b, :last, cut]
        h = h + out @ w[p + "attn.c_proj.weight"].T
        x = norm(h, w[p + "ln_2.g"]) @ w[p + "c_fc.weight"].T
        h = h + (x / (1 + np.exp(-1.702 * x))) @ w[p + "c_proj.weight"].T
    return norm(h, w["ln_f.g"]) @ w["wtet"].T


def test_logits_equal_the_plain_forward_pass(model: ImageGPT, tokens: torch.Tensor) -> None:
    expected = plain_forward(model, tokens.numpy())
    assert_close(model(tokens).double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-5)  # float32 against float64


def test_bert_logits_equal_the_plain_forward_pass(bert: ImageGPT, tokens: torch.Tensor) -> None:
    masked = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    expected = plain_forward(bert, tokens.numpy(), masked.numpy())
    assert_close(bert(tokens, masked=masked).double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(place=st.integers(0, 8), token=st.integers(0, 7), seed=st.integers(0, 1000))
def test_a_later_pixel_never_changes_an_earlier_logit(place: int, token: int, seed: int) -> None:
    model = random_model(ModelShape(2, 16, 2, 8, 9))
    tokens = torch.randint(8, (1, 9), generator=torch.Generator().manual_seed(seed))
    changed = tokens.clone()
    changed[0, place] = token
    assert torch.equal(model(tokens)[:, : place + 1], model(changed)[:, : place + 1])


def test_a_pixel_changes_the_logits_after_it(model: ImageGPT, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 8
    assert (model(tokens)[:, 4] != model(changed)[:, 4]).any()


def test_bert_sees_both_sides_and_nothing_of_a_masked_pixel(bert: ImageGPT, tokens: torch.Tensor) -> None:
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[:, 4] = True
    hidden, seen = tokens.clone(), tokens.clone()
    hidden[:, 4] = (hidden[:, 4] + 1) % 8
    seen[:, 8] = (seen[:, 8] + 1) % 8
    assert torch.equal(bert(tokens, masked=masked), bert(hidden, masked=masked))
    assert (bert(tokens, masked=masked)[:, 0] != bert(seen, masked=masked)[:, 0]).any()


def test_an_autoregressive_model_takes_no_mask(model: ImageGPT, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="takes no mask"):
        model(tokens, masked=tokens > 3)


def test_an_untrained_model_gives_every_colour_the_same_chance(tokens: torch.Tensor) -> None:
    assert ImageGPT(ModelShape(2, 16, 2, 8, 9)).loss(tokens).item() == pytest.approx(math.log(8), rel=1e-6)


def test_the_initial_weights_are_spread_as_released() -> None:
    model = ImageGPT(ModelShape(4, 64, 4, 512, 1024), seed=0)
    block = model.blocks[2]
    for weight, deviation in (
        (model.wte, 0.02),
        (model.wpe, 0.01),
        (block.attn.qkv.weight, 64**-0.5),
        (block.attn.c_proj.weight, (64 * 4) ** -0.5),
        (block.c_fc.weight, 0.02),
        (block.c_proj.weight, 0.02),
    ):
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)  # 4,096 numbers: 1.1 % a sigma
    assert not model.wtet.any()


def test_the_seed_decides_the_initial_weights() -> None:
    shape = ModelShape(1, 16, 2, 8, 9)
    first, same, other = (ImageGPT(shape, seed=seed).wte for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "published"),
    [("igpt-s", 76_571_648), ("igpt-m", 455_157_760), ("igpt-l", 1_362_250_752), ("igpt-xl", 6_801_438_720)],
)
def test_the_published_sizes_have_the_published_parameters(name: str, published: int) -> None:
    shape = ModelShape(*SIZES[name], n_vocab=512, n_ctx=1024)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in ImageGPT(shape).parameters())
    assert counted == shape.parameters == published


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_biases_are_counted_start_at_zero_and_change_no_other_weight(objective: Objective) -> None:
    shape = ModelShape(3, 16, 2, 8, 9, objective)
    plain, biased = ImageGPT(shape, seed=4), ImageGPT(replace(shape, biases=True), seed=4)
    assert biased.shape.parameters == sum(parameter.numel() for parameter in biased.parameters())
    assert biased.shape.parameters - shape.parameters == 3 * 9 * 16
    for name, tensor in biased.state_dict().items():
        assert not tensor.any() if name.endswith("bias") else torch.equal(tensor, plain.state_dict()[name])


def test_an_unshifted_position_reads_its_own_token(model: ImageGPT, tokens: torch.Tensor) -> None:
    assert torch.equal(model.embed(tokens, shifted=False), model.wte[tokens] + model.wpe)
    start = torch.cat([model.wte, model.sos[None]])[torch.cat([torch.full((5, 1), 8), tokens[:, :-1]], dim=1)]
    assert torch.equal(model.embed(tokens), start + model.wpe)
    assert not torch.allclose(model.hidden(tokens, shifted=False), model.hidden(tokens))


def test_bert_has_no_start_vector() -> None:
    with torch.device("meta"):
        counted = sum(p.numel() for p in ImageGPT(ModelShape(2, 16, 2, 8, 9, "bert")).parameters())
    assert counted == ModelShape(2, 16, 2, 8, 9, "bert").parameters == ModelShape(2, 16, 2, 8, 9).parameters - 16


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        ModelShape(2, 16, 3, 8, 9)


def test_features_are_the_normed_inputs_of_the_blocks_averaged(model: ImageGPT, tokens: torch.Tensor) -> None:
    seen: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.blocks):
        block.ln_1.register_forward_hook(lambda _, __, out, layer=layer: seen.update({layer: out}))
    model.ln_f.register_forward_hook(lambda _, __, out: seen.update({2: out}))
    model(tokens)
    expected = {layer: out.mean(1) for layer, out in seen.items()}
    found = model.features(tokens)
    assert sorted(found) == [0, 1, 2]
    for layer in found:
        assert_close(found[layer], expected[layer])


def test_features_of_some_layers_are_those_of_all(model: ImageGPT, tokens: torch.Tensor) -> None:
    everything = model.features(tokens)
    assert {layer: f.shape for layer, f in model.features(tokens, layers=[1]).items()} == {1: (5, 16)}
    assert_close(model.features(tokens, layers=[1])[1], everything[1])
    assert model.features(tokens, layers=[]) == {}


def test_features_refuse_a_layer_outside_the_model(model: ImageGPT, tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"layers \[3\] are outside 0 .. 2"):
        model.features(tokens, layers=[0, 3])


def test_cached_logits_equal_uncached_ones(model: ImageGPT, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        logits = model(tokens)
        for prefix in (0, 1, 4):
            cache = Cache(model.shape, len(tokens), like=model.wte)
            for length in range(prefix, 9):
                assert_close(model.next_logits(tokens[:, :length], cache), logits[:, length], atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    model = random_model(ModelShape(1, 4, 2, 3, 4)).double()
    tokens = torch.tensor([[0, 2, 1, 1]])
    model.loss(tokens).backward()
    for parameter in model.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for place in range(0, len(flat), max(1, len(flat) // 3)):
            kept = flat[place].item()
            losses = []
            for step in (1e-5, -1e-5):
                flat[place] = kept + step
                losses.append(model.loss(tokens).item())
            flat[place] = kept
            assert gradient[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_the_bert_loss_is_a_mean_over_each_images_masked_positions() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2], [3, 0, 1]])
    masked = torch.tensor([[True, False, False], [True, True, True]])
    nats = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    expected = (nats[0, 0] + nats[1].mean()) / 2
    assert_close(generative_loss(logits, tokens, masked), expected)
    assert_close(generative_loss(logits, tokens), nats.mean())


def test_masks_hide_about_their_rate_and_never_nothing() -> None:
    tokens = torch.zeros(4000, 64, dtype=torch.int64)
    masked = draw_mask(tokens, rate=0.15, generator=torch.Generator().manual_seed(0))
    assert masked.float().mean().item() == pytest.approx(0.15, abs=0.003)  # 256,000 draws: 0.0007 a sigma
    assert draw_mask(tokens, rate=0.0, generator=torch.Generator()).sum(1).eq(1).all()
