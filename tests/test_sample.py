from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import random_model
from scipy.stats import chisquare

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.sample import complete, sample
from igpt.shape import ModelShape


@torch.no_grad()
def greedy(model: ImageGPT, prefix: torch.Tensor) -> torch.Tensor:
    """The likeliest continuation by one full forward pass a token, as the released code samples."""
    tokens = torch.cat([prefix, torch.zeros(len(prefix), model.shape.n_ctx - prefix.shape[1], dtype=torch.int64)], 1)
    for position in range(prefix.shape[1], model.shape.n_ctx):
        tokens[:, position] = model(tokens)[:, position].argmax(-1)
    return tokens


@pytest.mark.parametrize("length", [0, 1, 5, 9])
def test_greedy_continuations_equal_repeated_full_forwards(model: ImageGPT, tokens: torch.Tensor, length: int) -> None:
    prefix = tokens[:, :length]
    assert torch.equal(complete(model, prefix, n=1, seed=0, temperature=0)[:, 0], greedy(model, prefix))


def test_the_prefix_is_kept_and_completions_differ(model: ImageGPT, tokens: torch.Tensor) -> None:
    found = complete(model, tokens[:, :4], n=6, seed=0)
    assert found.shape == (5, 6, 9)
    assert (found[:, :, :4] == tokens[:, None, :4]).all()
    assert len(found[0].unique(dim=0)) > 1


def test_an_image_does_not_depend_on_how_many_are_drawn(model: ImageGPT) -> None:
    assert torch.equal(sample(model, n=8, seed=5)[:3], sample(model, n=3, seed=5))
    assert not torch.equal(sample(model, n=3, seed=5), sample(model, n=3, seed=6))


def test_more_images_than_go_at_once_are_the_same_images(model: ImageGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    whole = sample(model, n=10, seed=5)
    monkeypatch.setattr("igpt.sample.AT_ONCE", 4)
    assert torch.equal(sample(model, n=10, seed=5, report=lambda done, total: said.append((done, total))), whole)
    assert said[-1] == (90, 90)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


def test_a_generator_gives_the_next_images_of_its_seed(model: ImageGPT, tokens: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    parts = [sample(model, n=n, seed=generator) for n in (16, 3, 1)]
    assert torch.equal(torch.cat(parts), sample(model, n=20, seed=5))
    generator.manual_seed(5)
    torch.rand(16, 9, generator=generator, dtype=torch.float64)  # what a part takes that is not drawn
    assert torch.equal(sample(model, n=4, seed=generator), sample(model, n=20, seed=5)[16:])
    assert torch.equal(complete(model, tokens, n=2, seed=generator.manual_seed(5)), complete(model, tokens, n=2, seed=5))


def test_samples_have_the_models_frequencies() -> None:
    model = random_model(ModelShape(1, 8, 2, 5, 1))
    n = 20_000
    drawn = torch.bincount(sample(model, n=n, seed=0)[:, 0], minlength=5)
    with torch.no_grad():
        expected = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].double().softmax(-1) * n
    assert chisquare(drawn.numpy(), expected.numpy()).pvalue > 1e-4


def test_a_low_temperature_approaches_the_likeliest_token(model: ImageGPT) -> None:
    cold = sample(model, n=4, seed=0, temperature=1e-4)
    assert torch.equal(cold, sample(model, n=4, seed=9, temperature=0))


def test_bert_weights_are_refused(bert: ImageGPT) -> None:
    with pytest.raises(UsageError, match="BERT weights cannot be sampled from"):
        sample(bert, n=1, seed=0)


def test_a_prefix_longer_than_the_model_is_refused(model: ImageGPT) -> None:
    with pytest.raises(UsageError, match="the prefix has 10 tokens, the model only 9 positions"):
        complete(model, torch.zeros(1, 10, dtype=torch.int64), n=1, seed=0)


def test_top_k_leaves_the_k_likeliest_with_their_relative_frequencies() -> None:
    model = random_model(ModelShape(1, 8, 2, 5, 1))
    n = 20_000
    drawn = torch.bincount(sample(model, n=n, seed=0, top_k=3)[:, 0], minlength=5)
    with torch.no_grad():
        probabilities = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].double().softmax(-1)
    kept = probabilities.topk(3).indices
    assert drawn.sum() == drawn[kept].sum()
    expected = probabilities[kept] / probabilities[kept].sum() * n
    assert chisquare(drawn[kept].numpy(), expected.numpy()).pvalue > 1e-4


def test_top_p_leaves_the_fewest_tokens_that_reach_p() -> None:
    model = random_model(ModelShape(1, 8, 2, 5, 1))
    with torch.no_grad():
        probabilities = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].double().softmax(-1)
    ordered, place = probabilities.sort(descending=True)
    for count in range(1, 6):
        p = float(ordered[:count].sum()) - 1e-6
        drawn = sample(model, n=4000, seed=0, top_p=p)[:, 0].unique()
        assert set(drawn.tolist()) == set(place[:count].tolist())


def test_the_likeliest_token_alone_is_the_greedy_one(model: ImageGPT) -> None:
    greedy_ = sample(model, n=2, seed=0, temperature=0)
    assert torch.equal(sample(model, n=2, seed=3, top_k=1), greedy_)
    assert torch.equal(sample(model, n=2, seed=3, top_p=1e-9), greedy_)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.0, math.nan, "0", None, True])
def test_a_seed_outside_its_range_is_refused(model: ImageGPT, seed: int) -> None:
    with pytest.raises(UsageError, match=rf"a seed is a whole number from 0 to 4294967295, not {seed!r}: choose another"):
        sample(model, n=1, seed=seed)


def test_the_first_and_the_last_seed_draw(model: ImageGPT) -> None:
    assert not torch.equal(sample(model, n=4, seed=0), sample(model, n=4, seed=2**32 - 1))


def test_tokens_of_another_palette_are_refused(model: ImageGPT) -> None:
    with pytest.raises(UsageError, match=r"tokens outside 0 \.\. 7"):
        complete(model, torch.tensor([[8]]), n=1, seed=0)


@pytest.mark.parametrize(
    "prefix",
    [torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4), torch.full((1, 4), math.nan), torch.ones(1, 4).bool(), torch.ones(1, 4).byte(),
     torch.tensor(3), torch.zeros(0, 4, dtype=torch.int64), np.zeros((1, 4), np.int64), [[0, 0]], None],
    ids=["one row", "float32", "NaN", "bool", "uint8", "a number", "no image", "numpy", "list", "None"],
)  # fmt: skip
def test_a_prefix_of_another_shape_or_dtype_is_refused(model: ImageGPT, prefix: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"a prefix is a tensor of int64 \(images, tokens\), this one is (torch\.|a [a-zA-Z]+:)"):
        complete(model, prefix, n=1, seed=0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch allocates and does not set holds NaN, as it may anywhere."""
    torch.use_deterministic_algorithms(True)  # which fills it, in order that its use is noticed
    try:
        assert torch.empty(3).isnan().all() and torch.empty(3).new_empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("captured", [False, True], indirect=True)
@pytest.mark.parametrize("length", [0, 4])
def test_what_lies_in_memory_before_does_not_change_a_token(
    captured: None, length: int, model: ImageGPT, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    expected = complete(model, tokens[:, :length], n=2, seed=4)
    request.getfixturevalue("poisoned")
    assert torch.equal(complete(model, tokens[:, :length], n=2, seed=4), expected)


@pytest.mark.parametrize("captured", [False, True], indirect=True)
@pytest.mark.parametrize("draw", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8}])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_no_token(captured: None, draw: dict[str, float], number: float, model: ImageGPT) -> None:
    with torch.no_grad():
        model.wpe[5, 3] = number  # five positions are drawn before it
    with pytest.raises(UsageError, match="the model's logits are not finite at temperature [01]: check its weights"):
        sample(model, n=2, seed=0, **draw)  # type: ignore[arg-type]


def test_a_temperature_that_overflows_the_logits_is_refused(model: ImageGPT) -> None:
    with pytest.raises(UsageError, match="not finite at temperature 1e-39: .* take a temperature of 0"):
        sample(model, n=2, seed=0, temperature=1e-39)


@pytest.mark.parametrize("length", [0, 3, 8, 9])
@pytest.mark.parametrize("draw", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8, "temperature": 0.7}])
def test_the_steps_that_a_gpu_replays_draw_the_same_images(
    model: ImageGPT, tokens: torch.Tensor, length: int, draw: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tokens[:, :length].clone()
    if length > 5:
        given[:3, 5] = -1  # another shape than a prefix
    expected = complete(model, given, n=2, seed=4, **draw)  # type: ignore[arg-type]
    recorded: list[int] = []  # the positions at which a graph is recorded
    monkeypatch.setattr("igpt.sample.STRETCH", 4)
    monkeypatch.setattr("igpt.sample._has_graphs", lambda model: True)
    monkeypatch.setattr("igpt.sample._recorded", lambda step, length: recorded.append(int(length)) or step)
    said: list[int] = []
    again = complete(model, given, n=2, seed=4, report=lambda done, total: said.append(done), **draw)  # type: ignore[arg-type]
    assert torch.equal(again, expected)
    start = min(length, 5)
    assert recorded == sorted({start + 1, *(position for position in (4, 8) if position > start)})
    assert said == [10 * position for position in range(start + 1, 10)]


@pytest.fixture
def captured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue images as on a GPU, but launch the steps of the CUDA graphs one by one; for a parameter True."""
    if request.param:
        monkeypatch.setattr("igpt.sample._has_graphs", lambda model: True)
        monkeypatch.setattr("igpt.sample._recorded", lambda step, length: step)


@pytest.mark.gpu
def test_a_gpu_replays_what_a_cpu_draws(model: ImageGPT, tokens: torch.Tensor) -> None:
    expected = complete(model, tokens[:, :3], n=2, seed=4)
    assert torch.equal(complete(model.cuda(), tokens[:, :3].cuda(), n=2, seed=4).cpu(), expected)


def test_settings_of_other_kinds_and_outside_their_range_are_taken_or_refused(model: ImageGPT) -> None:
    plain = sample(model, n=2, seed=3, temperature=0.5, top_k=4, top_p=0.5)
    of_numpy = sample(model, n=np.int64(2), seed=np.uint32(3), temperature=Fraction(1, 2), top_k=np.int8(4), top_p=Fraction(1, 2))
    assert torch.equal(plain, of_numpy)
    wrong: list[tuple[str, object]] = [
        *(("n", n) for n in (True, 0, 10**5000, 2.0, 1.5, None)),
        *(("top_k", k) for k in (True, 0, 10**5000, 2.5)),
        *(("temperature", t) for t in (10**400, -1, math.nan, math.inf, "1")),
        *(("top_p", p) for p in (0, 1.5, math.nan, "1")),
        *(("seed", s) for s in (10**5000, "x" * 10**6)),
    ]
    for name, value in wrong:
        with pytest.raises(UsageError, match=name) as raised:
            sample(model, **{"n": 1, "seed": 0, name: value})  # type: ignore[arg-type]
        assert len(str(raised.value)) < 200
