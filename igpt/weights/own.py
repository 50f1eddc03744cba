"""Our format of weights: a folder of ``model.safetensors``, ``config.json`` and ``palette.npy``, without pickles."""

from __future__ import annotations

import hashlib
import json
import struct
from importlib.resources import as_file, files
from pathlib import Path
from reprlib import repr as shortly

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size, write_atomically, write_text
from igpt.model import ImageGPT
from igpt.palette import RELEASED, Palette
from igpt.shape import ModelShape
from igpt.weights.check import check_fits, check_model, check_shape, check_weights, read_fields, shapes_of

# The dtypes' names in safetensors, in reverse of the order in which the library stores them.
_KINDS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def released_palette() -> Palette:
    """The 512 colours of the released weights, which are part of this package. Raises UsageError if they differ.

    >>> len(released_palette())
    512
    """
    with as_file(files("igpt.weights") / "released_palette.npy") as path:
        palette = Palette.load(path)
    if palette.digest != RELEASED:
        raise UsageError(f"the released palette in this package has the digest {palette.digest}: install the package again")
    return palette


def save_weights(folder: Path, model: ImageGPT, palette: Palette) -> None:
    """Write a model and the palette of its tokens into ``folder``; ``config.json`` is written last.

    Raises UsageError for weights that are not finite, which `load_weights` would refuse.
    """
    check_model(model, folder)
    palette.save(folder / "palette.npy")
    save_tensors(folder / "model.safetensors", model.state_dict())
    config = {**model.shape.as_dict(), "palette_sha256": palette.digest}
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def weights_digest(network: ImageGPT) -> str:
    """SHA-256 of a network's shape and of the names, types and numbers of its weights; the same for every format and folder."""
    digest = hashlib.sha256(json.dumps(network.shape.as_dict(), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_weights(folder: Path, shape: ModelShape | None = None) -> tuple[ImageGPT, Palette]:
    """The model, in evaluation mode on the CPU, and its palette.

    shape : the required shape, such as a recipe's; any if None
    Raises UsageError when the folder holds no weights, its three files do not belong together, a tensor is not of
    finite floats, or the model has a different shape.
    """
    described, digest = read_config(folder)
    if shape is not None:
        check_shape(folder, described, shape)
    palette = Palette.load(folder / "palette.npy")
    if palette.digest != digest or len(palette) != described.n_vocab:
        raise UsageError(f"{folder / 'palette.npy'} is not the palette of these weights: copy both from one place")
    path = folder / "model.safetensors"
    tensors, _ = load_tensors(path)
    check_fits(folder / "config.json", described, tensors=len(tensors), size=path.stat().st_size)
    with torch.device("meta"):
        model = ImageGPT(described)
    check_weights(tensors, shapes_of(model), path)
    model.to_empty(device="cpu").load_state_dict(tensors)
    return model.eval(), palette


def read_config(folder: Path) -> tuple[ModelShape, object]:
    """The model's shape and its palette's digest, from a folder's ``config.json``. Raises as `load_weights` does."""
    path = folder / "config.json"
    config = read_fields(path)
    if (folder / "model.onnx").exists():
        raise UsageError(f"{folder} holds ONNX, which is written but not read: give the weights that it was exported from")
    if "model_type" in config:
        raise UsageError(
            f"{path} describes a model of another kind ({shortly(config['model_type'])}): give an Image GPT's folder"
        )
    try:
        digest = config.pop("palette_sha256")
        return ModelShape(**config), digest
    except KeyError as error:
        raise UsageError(f"{path} does not describe an Image GPT ({error} is missing): copy it again") from None
    except (ValueError, TypeError) as error:
        raise cannot_read(path, error, "does not describe an Image GPT") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically, one at a time.

    The file is identical to the safetensors library's, which takes twice the tensors' memory and gives no errno on a full
    disk.
    """
    kinds = list(_KINDS)
    order = sorted(tensors, key=lambda name: (-kinds.index(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header_bytes = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    with write_atomically(path) as stream:
        stream.write(struct.pack("<Q", len(header_bytes)) + header_bytes)
        for name in order:
            stream.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and the file's metadata. Raises UsageError when the file is missing, damaged, or of another format.

    The tensors are memory-mapped.
    """
    try:
        file_size(path)
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise cannot_read(path, error) from None
