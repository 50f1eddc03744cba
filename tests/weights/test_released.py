from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Counting, counting
from safetensors.torch import load_file, save_file

from igpt import ImageGPT, Palette
from igpt.errors import UsageError
from igpt.fetch import RemoteFile, Unavailable, fetch
from igpt.model import ImageGPT as Model
from igpt.pretrained import open_weights
from igpt.weights import fetching, released
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import save_weights
from igpt.weights.read import read_weights
from igpt.weights.released import RELEASED, STEPS, Released, released_at
from igpt.weights.tensorflow import read_tensorflow

STEP = f"model.ckpt-{released.LAST_STEP}"
FIXTURE = Path(__file__).parent / "released_format" / "autoregressive"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that stands in for OpenAI's; the folder it shows. Weights are looked for beside it."""
    (tmp_path / "site").mkdir()
    with counting(tmp_path / "site") as address:
        monkeypatch.setattr(released, "OPENAI", address)
        monkeypatch.setattr(released, "MIRROR", f"{address}/openai")
        monkeypatch.setattr(fetching, "fetch", partial(fetch, wait=0))
        monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path / "weights"))
        yield tmp_path / "site"


def failure(name: str) -> str:
    """The one sentence that says why a model's weights are not read."""
    with pytest.raises(UsageError) as caught:
        read_weights(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damage(folder: Path) -> Path:
    """Change a bit of a checkpoint's largest shard, or back; the shard."""
    shard = max(folder.glob("*.data-*"), key=lambda path: (path.stat().st_size, path.name))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return shard


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
    files = len(Counting.served)
    assert files == RELEASED["igpt-s"].shards + 1
    read_weights("igpt-s")
    assert len(Counting.served) == files


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
    for read in (read_weights, ImageGPT.from_pretrained, open_weights):
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
    for read in (ImageGPT.from_pretrained, open_weights):
        with pytest.raises(UsageError, match=f"the weights found as {name} have another shape"):
            read(name)
    assert ImageGPT.from_pretrained(tmp_path / name).shape == model.shape


def test_a_download_that_stopped_between_files_continues_there(checkpoint: Path) -> None:
    last = sorted(checkpoint.glob("*.data-*"))[-1]
    kept = last.read_bytes()
    last.unlink()
    assert "HTTP 404" in failure("igpt-s")
    before = len(Counting.served)
    last.write_bytes(kept)
    read_weights("igpt-s")
    assert Counting.served[before:] == [last.name]


def test_a_shard_that_came_wrong_is_set_aside_and_the_same_command_goes_on(checkpoint: Path) -> None:
    shard = damage(checkpoint)
    message = failure("igpt-s")
    assert f"{shard.name} could not be fetched" in message and "does not have its checksum" in message
    home = RELEASED["igpt-s"].prefix.parent
    assert (home / f"{shard.name}.wrong").exists() and not (home / shard.name).exists()
    damage(checkpoint)  # and back
    before = len(Counting.served)
    read_weights("igpt-s")
    assert Counting.served[before] == shard.name  # what had come stayed


def test_a_shard_that_is_damaged_here_is_named_and_comes_again_once_it_is_deleted(checkpoint: Path) -> None:
    read_weights("igpt-s")
    shard = damage(RELEASED["igpt-s"].prefix.parent)
    for _ in range(2):  # nothing is removed that was not ours to judge
        message = failure("igpt-s")
        assert message.startswith(f"{shard} is damaged (model/")
        assert message.endswith("): copy it again; or delete the file, and the same command downloads it again")
    shard.unlink()
    before = len(Counting.served)
    read_weights("igpt-s")
    assert Counting.served[before:] == [shard.name]


@pytest.mark.parametrize(("content", "fault"), [(b"<html>no such file</html>", "is a text that begins with"), (b"", "is empty")])
def test_an_index_that_is_none_is_set_aside(checkpoint: Path, content: bytes, fault: str) -> None:
    index = checkpoint / f"{STEP}.index"
    kept = index.read_bytes()
    index.write_bytes(content)
    assert f"what came {fault}" in failure("igpt-s")
    assert Counting.served == [index.name, "config.json"]  # of Hugging Face, who does not have it here
    index.write_bytes(kept)
    read_weights("igpt-s")


def test_a_checkpoint_of_another_size_under_the_name_is_known_by_its_index(checkpoint: Path) -> None:
    right = RELEASED["igpt-s"]
    for wrong in (replace(right.shape, n_head=2), replace(right.shape, n_layer=9)):
        RELEASED["igpt-s"] = replace(right, shape=wrong)
        assert "what came is of another model (3 blocks" in failure("igpt-s")
    assert set(Counting.served) == {f"{STEP}.index", "config.json"}  # before its shards are
    RELEASED["igpt-s"] = right
    read_weights("igpt-s")


def test_a_disk_too_full_is_said_before_anything_is_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * RELEASED["igpt-s"].shape.parameters
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=size - 1))
    message = failure("igpt-s")
    assert f"need {size:,} more bytes" in message and "free 1 bytes" in message and not Counting.served
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=size))
    read_weights("igpt-s")


def test_a_disk_that_is_full_later_is_said_in_one_sentence_too(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: RemoteFile, folder: Path, **_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / file.name))

    monkeypatch.setattr(fetching, "fetch", full)
    assert "igpt-s could not be written (No space left on device): free some room" in failure("igpt-s")
    monkeypatch.setattr(fetching, "fetch", fetch)
    read_weights("igpt-s")


def test_each_released_step_has_a_name(checkpoint: Path) -> None:
    early = checkpoint.with_name("131000")
    early.mkdir()
    for path in FIXTURE.iterdir():
        shutil.copy(path, early / path.name.replace("1000000", "131000"))
    assert torch.equal(read_weights("igpt-s@131000").wte, read_weights("igpt-s").wte)
    assert {path.stem for path in RELEASED["igpt-s"].prefix.parent.glob("*.index")} == {STEP, "model.ckpt-131000"}
    for name in ("igpt-s@65000", "igpt-s@", "igpt-m-bert@1e6"):
        assert "write" in failure(name) and "131000, 262000, 524000 or 1000000" in failure(name)


@pytest.mark.parametrize(
    ("model", "objective", "step", "message"),
    [
        ("tiny-s", "autoregressive", 1_000_000, "no autoregressive weights of tiny-s: choose one of igpt-s, igpt-m, igpt-l"),
        ("igpt-l-48", "bert", 1_000_000, "no bert weights of igpt-l-48"),
        ("igpt-s-bert", "autoregressive", 1_000_000, "no autoregressive weights of igpt-s-bert"),
        ("igpt-s", "autoregressive", 65_000, "no weights of igpt-s after 65,000 steps: choose 131000"),
    ],
)
def test_weights_that_were_never_released_are_refused(model: str, objective: str, step: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        released_at(model, objective, step)


def test_a_recipe_its_objective_and_a_step_name_what_is_released() -> None:
    assert released_at("igpt-m", "bert", 262_000).label == "igpt-m-bert@262000"
    assert {released_at("igpt-l", "autoregressive", step).label for step in STEPS} >= {"igpt-l", "igpt-l@524000"}


@pytest.mark.parametrize("name", RELEASED)
def test_without_a_network_it_is_said_which_files_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(file: object, folder: Path, **_: object) -> Path:
        raise Unavailable("there is no network", is_missing=False)

    monkeypatch.setattr(fetching, "fetch", no_network)
    monkeypatch.setattr(fetching, "_check_space", lambda model: None)
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    message, last = failure(name), 63 if name.startswith("igpt-l") else 31
    tried = "there is no network" if name.endswith("bert") else "there is no network; there is no network"
    assert message.startswith(f"the weights of {name} cannot be had: {tried}; or put model.ckpt-1000000.index and ")
    assert f"to model.ckpt-1000000.data-{last:05d}-of-{last + 1:05d} from" in message
    assert message.endswith(f"/checkpoints/{name}/1000000/ into {tmp_path / name}")


@pytest.fixture
def mirror(checkpoint: Path) -> Path:
    """The same weights as Hugging Face has them; their folder on the site."""
    folder = checkpoint.parents[2] / "openai" / "imagegpt-small" / "resolve" / "main"
    folder.mkdir(parents=True)
    write_huggingface(folder, read_tensorflow(checkpoint / STEP))
    return folder


def pickled(folder: Path) -> None:
    """Put the weights of a folder into a pickle instead."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("make", ["safetensors", "bin"])
def test_hugging_face_is_asked_where_the_first_address_lacks_a_file(checkpoint: Path, mirror: Path, make: str) -> None:
    expected = read_tensorflow(checkpoint / STEP).state_dict()
    next(checkpoint.glob("*.data-00003-*")).unlink()
    if make == "bin":
        pickled(mirror)
    found = read_weights("igpt-s").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    before = len(Counting.served)
    assert Counting.served[-1] == ("model.safetensors" if make == "safetensors" else "pytorch_model.bin")
    read_weights("igpt-s")
    assert len(Counting.served) == before


def test_where_nobody_has_the_weights_both_are_named(checkpoint: Path, mirror: Path) -> None:
    shutil.rmtree(checkpoint)
    (mirror / "model.safetensors").unlink()
    message = failure("igpt-s")
    assert f"{STEP}.index could not be fetched" in message and "pytorch_model.bin could not be fetched" in message
    shutil.rmtree(mirror)
    assert "config.json" not in failure("igpt-s")  # which has come


def test_only_the_last_autoregressive_weights_have_a_second_address(checkpoint: Path, mirror: Path) -> None:
    assert [name for name, model in RELEASED.items() if model.mirror] == ["igpt-s", "igpt-m", "igpt-l"]
    assert "openai" not in failure("igpt-s@131000") and "config.json" not in Counting.served


def test_another_model_at_the_second_address_is_set_aside(checkpoint: Path, mirror: Path, model: Model) -> None:
    shutil.rmtree(checkpoint)
    right = RELEASED["igpt-s"]
    RELEASED["igpt-s"] = replace(right, shape=replace(right.shape, n_layer=9))
    assert "what came is of another model (3 blocks" in failure("igpt-s") and "model.safetensors" not in Counting.served
    RELEASED["igpt-s"] = right
    read_weights("igpt-s")


def test_a_page_instead_of_the_index_leads_to_the_second_address(checkpoint: Path, mirror: Path) -> None:
    (checkpoint / f"{STEP}.index").write_bytes(b"<html>you are not logged in</html>")
    assert torch.equal(read_weights("igpt-s").wte, read_tensorflow(FIXTURE / STEP).wte)
    assert (RELEASED["igpt-s"].mirrored / "model.safetensors").exists()


@pytest.mark.parametrize("make", ["safetensors", "bin"])
@pytest.mark.parametrize("fault", ["a page", "another model", "a classifier", "biases"])
def test_other_weights_at_the_second_address_never_get_the_name(checkpoint: Path, mirror: Path, fault: str, make: str) -> None:
    shutil.rmtree(checkpoint)
    tensors = load_file(mirror / "model.safetensors")
    if fault == "another model":
        tensors = {name: tensor[:-1] if name == "lm_head.weight" else tensor for name, tensor in tensors.items()}
    elif fault == "a classifier":
        tensors["score.weight"] = tensors.pop("lm_head.weight")
    elif fault == "biases":
        tensors["transformer.h.2.mlp.c_fc.bias"][5] = 0.1
    save_file(tensors, mirror / "model.safetensors")
    if make == "bin":
        pickled(mirror)
    [file] = mirror.glob("*model.*")
    if fault == "a page":
        file.write_bytes(b"<html>you are not logged in</html>")
    says = {"a page": "is a text that begins with", "another model": "shape", "a classifier": "has no output matrix"}
    says["biases"] = "is of another model (3 blocks"
    message = failure("igpt-s")
    assert f"{file.name} could not be fetched" in message and f"{says[fault]}" in message.partition("what came ")[2]
    folder = RELEASED["igpt-s"].mirrored
    assert not (folder / file.name).exists() and (folder / f"{file.name}.wrong").exists()


def test_what_lies_here_in_both_makes_must_be_the_same(checkpoint: Path, mirror: Path) -> None:
    read_weights("igpt-s")
    released_model = RELEASED["igpt-s"]
    for change, differs in ((1e-5, False), (1e-3, True)):
        other = read_tensorflow(checkpoint / STEP)
        with torch.no_grad():
            other.blocks[1].c_fc.weight[3, 2] += change
        shutil.rmtree(released_model.mirrored, ignore_errors=True)
        released_model.mirrored.mkdir()
        write_huggingface(released_model.mirrored, other)
        if differs:
            assert re.search(r"differ by up to 0\.001 in blocks\.1\.c_fc\.weight between .*: move away", failure("igpt-s"))
        else:
            read_weights("igpt-s")


def test_a_damaged_folder_of_hugging_faces_is_named(checkpoint: Path, mirror: Path) -> None:
    shutil.rmtree(checkpoint)
    read_weights("igpt-s")
    folder = RELEASED["igpt-s"].mirrored
    (folder / "model.safetensors").write_bytes(b"")
    assert failure("igpt-s").endswith(
        "model.safetensors is empty: copy it again; or delete the file, and the same command downloads it again"
    )
    shutil.rmtree(folder)
    read_weights("igpt-s")
