from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from igpt import ImageGPT, Palette
from igpt.errors import UsageError
from igpt.model import ImageGPT as Model
from igpt.run.samples import find_weights
from igpt.weights import released
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import save_weights
from igpt.weights.read import read_weights
from igpt.weights.released import RELEASED, Released
from igpt.weights.tensorflow import read_tensorflow

STEP = f"model.ckpt-{released.LAST_STEP}"
FIXTURE = Path(__file__).parent / "released_format" / "autoregressive"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and counts them."""

    served: list[str]

    def do_GET(self) -> None:
        self.served.append(Path(self.path).name)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that stands in for OpenAI's; the folder it shows. Weights are looked for beside it."""
    (tmp_path / "site").mkdir()
    Quiet.served = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(released, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path / "weights"))
    yield tmp_path / "site"
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkpoint(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the released format on the site, under the name igpt-s; its folder there."""
    folder = site / "checkpoints" / "igpt-s" / str(released.LAST_STEP)
    shutil.copytree(FIXTURE, folder)
    shards = len(list(folder.glob("*.data-*")))
    monkeypatch.setitem(RELEASED, "igpt-s", Released("igpt-s", shards, read_tensorflow(folder / STEP).shape))
    return folder


def test_a_released_model_is_downloaded_once_and_read(checkpoint: Path) -> None:
    model = read_weights("igpt-s")
    original = read_tensorflow(checkpoint / f"model.ckpt-{released.LAST_STEP}")
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    files = len(Quiet.served)
    assert files == RELEASED["igpt-s"].shards + 1
    read_weights("igpt-s")
    assert len(Quiet.served) == files


def test_the_names_promise_the_published_numbers_of_parameters() -> None:
    counts = {name: model.shape.parameters for name, model in RELEASED.items()}
    assert counts == {
        "igpt-s": 76_571_648, "igpt-s-bert": 76_571_648 - 512,
        "igpt-m": 455_157_760, "igpt-m-bert": 455_157_760 - 1024,
        "igpt-l": 1_362_250_752, "igpt-l-bert": 1_362_250_752 - 1536,
    }  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_another_model_under_a_released_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    shutil.copytree(FIXTURE.with_name("bert" if name.endswith("bert") else "autoregressive"), tmp_path / name)
    for read in (read_weights, ImageGPT.from_pretrained, find_weights):
        with pytest.raises(UsageError, match=f"the weights found as {name} have another shape .* than they need .* 512 colours"):
            read(name)
    assert read_weights(tmp_path / name / STEP).shape.n_layer < 4  # a path promises nothing


def test_a_model_that_differs_in_heads_or_objective_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURE, tmp_path / "igpt-s")
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    shape = read_tensorflow(FIXTURE / STEP).shape
    for wanted in (replace(shape, n_head=2), replace(shape, objective="bert")):
        monkeypatch.setitem(RELEASED, "igpt-s", Released("igpt-s", 4, wanted))
        with pytest.raises(UsageError, match="the weights found as igpt-s have another shape"):
            read_weights("igpt-s")


@pytest.mark.parametrize("name", ["igpt-s", "igpt-m-bert", "igpt-l-48", "igpt-xl"])
@pytest.mark.parametrize("make", ["ours", "huggingface"])
def test_another_model_in_a_folder_of_a_models_name_is_refused(
    name: str, make: str, model: Model, greys: Palette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if make == "ours":
        save_weights(Path(name), model, greys)
    else:
        write_huggingface(Path(name), model)
        greys.save(Path(name) / "palette.npy")
    for read in (ImageGPT.from_pretrained, find_weights):
        with pytest.raises(UsageError, match=f"the weights found as {name} have another shape"):
            read(name)
    assert ImageGPT.from_pretrained(tmp_path / name).shape == model.shape


def test_a_download_that_stopped_between_files_continues_there(checkpoint: Path) -> None:
    last = sorted(checkpoint.glob("*.data-*"))[-1]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(UsageError, match="HTTP 404"):
        read_weights("igpt-s")
    before = len(Quiet.served)
    last.write_bytes(kept)
    read_weights("igpt-s")
    assert Quiet.served[before:] == [last.name, f"model.ckpt-{released.LAST_STEP}.index"]


def test_bytes_that_came_damaged_are_not_taken_for_weights(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.data-*"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        read_weights("igpt-s")


@pytest.mark.parametrize("name", RELEASED)
def test_without_a_network_it_is_said_which_files_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(file: object, folder: Path, **_: object) -> Path:
        raise UsageError("there is no network")

    monkeypatch.setattr(released, "fetch", no_network)
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        read_weights(name)
    message, last = str(caught.value), 63 if name.startswith("igpt-l") else 31
    assert message.startswith(f"the weights of {name} cannot be had: there is no network; or put model.ckpt-1000000.index and ")
    assert f"to model.ckpt-1000000.data-{last:05d}-of-{last + 1:05d} from" in message
    assert message.endswith(f"/checkpoints/{name}/1000000/ into {tmp_path / name}")
