"""Every door that weights come in by refuses the same nonsense, in one sentence."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import igpt_here as igpt
from safetensors.torch import save
from torch import Tensor

from igpt import ImageGPT
from igpt.errors import UsageError
from igpt.model import ImageGPT as Model
from igpt.palette import Palette
from igpt.project import Project
from igpt.weights import tensorflow_index
from igpt.weights.huggingface import write_huggingface
from igpt.weights.onnx import write_onnx
from igpt.weights.own import load_tensors, save_weights

RELEASED = Path(__file__).parent / "released_format"
Change = Callable[[dict[str, Tensor]], None]


def write_tensors(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """As the library itself does, in any kind of number; the tensors may lie in the file that is replaced."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)


def ours(folder: Path, change: Change, model: Model, greys: Palette) -> None:
    save_weights(folder, model, greys)
    tensors = load_tensors(folder / "model.safetensors")[0]
    change(tensors)
    write_tensors(folder, tensors)


def huggingface(folder: Path, change: Change, model: Model, greys: Palette) -> None:
    write_huggingface(folder, model)
    tensors = load_tensors(folder / "model.safetensors")[0]
    change(tensors)
    write_tensors(folder, tensors, {"format": "pt"})


def pickled(folder: Path, change: Change, model: Model, greys: Palette) -> None:
    write_huggingface(folder, model)
    tensors = load_tensors(folder / "model.safetensors")[0]
    change(tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def first(tensors: dict[str, Tensor], part: str) -> str:
    """The name of the first tensor with this in its name: ours and theirs differ."""
    return next(name for name in tensors if part in name)


def setting(part: str, number: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[first(tensors, part)].view(-1)[-1] = number

    return change


def casting(part: str, dtype: torch.dtype) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[first(tensors, part)] = tensors[first(tensors, part)].to(dtype)

    return change


def cutting(part: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[first(tensors, part)] = tensors[first(tensors, part)][..., :-1].clone()

    return change


def growing(tensors: dict[str, Tensor]) -> None:
    """A block that the configuration does not count."""
    for name in list(tensors):
        if ".1." in name:
            tensors[name.replace(".1.", ".2.")] = tensors[name].clone()


DOORS = pytest.mark.parametrize("door", [ours, huggingface, pickled], ids=lambda door: door.__name__)


@DOORS
@pytest.mark.parametrize("part", ["wte", "wpe", "ln_f", "1.ln_2", "0.c_fc", "attn.c_proj.weight"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_refused(
    door: Callable[..., None], part: str, number: float, model: Model, greys: Palette, tmp_path: Path
) -> None:
    part = part if door is ours else part.replace("0.c_fc", "0.mlp.c_fc.weight")
    door(tmp_path / "w", setting(part, number), model, greys)
    refused(tmp_path / "w", "holds numbers that are NaN or infinite (1 in ")


@DOORS
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.float64, torch.complex64], ids=str)
def test_another_dtype_is_refused(
    door: Callable[..., None], dtype: torch.dtype, model: Model, greys: Palette, tmp_path: Path
) -> None:
    door(tmp_path / "w", casting("wpe", dtype), model, greys)
    name = "wpe" if door is ours else "wpe.weight"
    refused(tmp_path / "w", f"holds tensors of a wrong kind ({name} is {dtype})")


@DOORS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_float32(
    door: Callable[..., None], dtype: torch.dtype, model: Model, greys: Palette, tmp_path: Path
) -> None:
    door(tmp_path / "w", casting("wpe", dtype), model, greys)
    loaded = ImageGPT.from_pretrained(tmp_path / "w")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.wpe, model.wpe.to(dtype).float())


@DOORS
@pytest.mark.parametrize("part", ["wte", "wpe", "ln_f", "attn.c_proj.weight"])
def test_another_shape_is_refused(door: Callable[..., None], part: str, model: Model, greys: Palette, tmp_path: Path) -> None:
    door(tmp_path / "w", cutting(part), model, greys)
    refused(tmp_path / "w", "holds other tensors than its model has (")


@DOORS
def test_a_block_more_than_the_configuration_says_is_refused(
    door: Callable[..., None], model: Model, greys: Palette, tmp_path: Path
) -> None:
    door(tmp_path / "w", growing, model, greys)
    refused(tmp_path / "w", "holds other tensors than its model has (")


@pytest.mark.parametrize("name", ["model/wte", "model/h2/attn/q_proj", "model/h0/mlp/c_proj/w", "model/sos"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_released_checkpoint_with_such_a_number_and_right_checksums_is_refused(
    name: str, number: float, tmp_path: Path
) -> None:
    shutil.copytree(RELEASED / "autoregressive", tmp_path / "c")
    prefix = tmp_path / "c" / "model.ckpt-1000000"
    put(prefix, name, number)
    refused(prefix, "holds numbers that are NaN or infinite (1 in ")


@pytest.mark.parametrize("words", [["sample", "--model"], ["complete", "photo.png", "--model"], ["export", "out", "--model"], ["evaluate-loss"]])  # fmt: skip
def test_a_command_refuses_them_and_writes_nothing(
    words: list[str], project: Project, model: Model, greys: Palette, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("L", (9, 9)).save(project.root / "photo.png")
    np.save(project.root / "tokens.npy", np.zeros((2, 9), np.int64))
    ours(tmp_path / "w", setting("wpe", math.nan), model, greys)
    before = sorted(project.root.iterdir())
    more = ["--tokens", "tokens.npy"] if words == ["evaluate-loss"] else [] if words[0] == "export" else ["--out", "out.png"]
    done = igpt(*words, str(tmp_path / "w"), *more, root=project.root)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "holds numbers that are NaN or infinite (1 in wpe)" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(project.root.iterdir()) == before


@pytest.mark.parametrize(("words", "message"), [(["sample", "--out", "out.png", "--model"], "logits are not finite"), (["evaluate-loss", "--tokens", "tokens.npy"], "is nan, not a finite number, over 2 images")])  # fmt: skip
def test_finite_weights_whose_numbers_overflow_are_refused_by_what_they_give(
    words: list[str], message: str, project: Project, model: Model, greys: Palette, tmp_path: Path
) -> None:
    np.save(project.root / "tokens.npy", np.zeros((2, 9), np.int64))
    with torch.no_grad():
        model.wtet.mul_(1e38)
    save_weights(tmp_path / "w", model, greys)
    done = igpt(*words, str(tmp_path / "w"), root=project.root)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (project.root / "out.png").exists()


@pytest.mark.parametrize("write", [save_weights, write_onnx, lambda folder, model, palette: write_huggingface(folder, model)])
def test_what_would_be_refused_is_not_written(write: Callable[..., None], model: Model, greys: Palette, tmp_path: Path) -> None:
    with torch.no_grad():
        model.wte[0, 0] = math.nan
    with pytest.raises(UsageError, match=r"the model for .* holds numbers that are NaN or infinite \(1 in wte\)"):
        write(tmp_path / "w", model, greys)
    assert not (tmp_path / "w").exists()


def refused(where: Path, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ImageGPT.from_pretrained(where)
    assert message in str(caught.value) and str(where) in str(caught.value)
    assert "\n" not in str(caught.value)


def put(prefix: Path, name: str, number: float) -> None:
    """Overwrite a variable's first number, and the checksums of the variable and of the index's blocks."""
    index = tensorflow_index.read_index(prefix)
    variable = index.variables[name]
    shard = bytearray(index.shard(variable.shard).read_bytes())
    shard[variable.offset : variable.offset + 4] = struct.pack("<f", number)
    index.shard(variable.shard).write_bytes(shard)
    path = prefix.with_name(prefix.name + ".index")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<I", variable.crc))
    content[at : at + 4] = struct.pack(
        "<I", tensorflow_index.masked_crc(shard[variable.offset : variable.offset + variable.size])
    )
    footer = bytes(content[-48:])
    outer, _ = tensorflow_index._handle(footer, tensorflow_index._handle(footer, 0)[1])
    for _, value in tensorflow_index._block(bytes(content), outer):
        (start, size), _ = tensorflow_index._handle(value, 0)
        end = start + size + 1  # with the byte that says whether it is compressed
        content[end : end + 4] = struct.pack("<I", tensorflow_index.masked_crc(content[start:end]))
    path.write_bytes(content)
