"""The exported graph against our own sampler and our own logits, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import random_model
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.sample import complete, sample
from igpt.shape import ModelShape
from igpt.weights.onnx import write_onnx
from igpt.weights.own import released_palette

SHAPE = ModelShape(2, 32, 2, 512, 1024)


class Session:
    """The exported graph with its cache, a call a step."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self.cache: dict[str, NDArray[np.float32]] = {}

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the position after ``tokens`` (B, S), which follow those of earlier calls."""
        if not self.cache:
            for given in self.session.get_inputs()[1:]:
                _, heads, _, depth = given.shape
                self.cache[given.name] = np.zeros((len(tokens), heads, 0, depth), np.float32)
        logits, *present = self.session.run(None, {"tokens": tokens, **self.cache})
        self.cache = dict(zip(self.cache, present, strict=True))
        return logits


def steps(folder: Path, tokens: NDArray[np.int64], start: int, given: int = 0) -> Iterator[NDArray[np.float32]]:
    """Logits along ``tokens`` (B, T): one prefill of the start token and ``given``, then a step each."""
    session = Session(folder)
    begin = np.full((len(tokens), 1), start)
    yield session.logits(np.concatenate([begin, tokens[:, :given]], axis=1))
    for position in range(given, tokens.shape[1] - 1):
        yield session.logits(tokens[:, position : position + 1])


@pytest.fixture(scope="module")
def long() -> ImageGPT:
    return random_model(SHAPE)


@pytest.fixture(scope="module")
def folder(long: ImageGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "exported"
    write_onnx(path, long, released_palette())
    return path


def test_greedy_continuations_are_equal_token_for_token_over_1024_tokens(long: ImageGPT, folder: Path) -> None:
    ours = sample(long, n=1, seed=0, temperature=0).numpy()
    session, chosen = Session(folder), [np.array([[SHAPE.n_vocab]])]
    for _ in range(SHAPE.n_ctx):
        chosen.append(session.logits(chosen[-1]).argmax(-1)[:, None])
    assert (np.concatenate(chosen[1:], axis=1) == ours).all()


def test_a_prefill_and_steps_have_the_models_logits(long: ImageGPT, folder: Path) -> None:
    tokens = torch.randint(512, (2, 200), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ours = long(tokens).numpy()
    found = list(steps(folder, tokens.numpy(), SHAPE.n_vocab, given=150))
    assert len(found) == 50
    for position, logits in enumerate(found, start=150):
        assert np.abs(logits - ours[:, position]).max() < 1e-3


def test_weights_in_half_precision_cost_half_and_keep_to_their_bound(long: ImageGPT, folder: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "half", long, released_palette(), half=True)
    sizes = [(path / "weights.bin").stat().st_size for path in (folder, tmp_path / "half")]
    assert sizes[1] < 0.51 * sizes[0]
    tokens = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ours = long(tokens).numpy()
        rounded = random_model(SHAPE).half().float()(tokens).numpy()
    for position, logits in enumerate(steps(tmp_path / "half", tokens.numpy(), SHAPE.n_vocab)):
        assert np.abs(logits - rounded[:, position]).max() < 1e-3  # nothing but the weights is rounded
        assert np.abs(logits - ours[:, position]).max() < 0.05


@pytest.mark.parametrize("weights", ["model", "biased"])
def test_a_tiny_shape_and_a_completion_by_greedy(
    weights: str, greys: Palette, tmp_path: Path, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    model: ImageGPT = request.getfixturevalue(weights)
    write_onnx(tmp_path / "small", model, greys)
    onnx.checker.check_model(tmp_path / "small" / "model.onnx")
    ours = complete(model, tokens[:, :4], n=1, seed=0, temperature=0)[:, 0].numpy()
    with torch.no_grad():
        expected = model(torch.from_numpy(ours)).numpy()
    for position, logits in enumerate(steps(tmp_path / "small", ours, 8, given=4), start=4):
        assert (logits.argmax(-1) == ours[:, position]).all()
        assert np.abs(logits - expected[:, position]).max() < 1e-4


def test_weights_beyond_half_precision_are_refused(model: ImageGPT, greys: Palette, tmp_path: Path) -> None:
    with torch.no_grad():
        model.wtet[0, 0] = 1e6
    with pytest.raises(UsageError, match=r"wtet is beyond float16's range: export without --half"):
        write_onnx(tmp_path / "large", model, greys, half=True)
    assert not list((tmp_path / "large").iterdir())
