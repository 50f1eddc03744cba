"""Hugging Face's folders (transformers' ``ImageGPTForCausalImageModeling``), read and written without transformers.

Their model differs from ours in four ways: the start vector is row 512 of the token embedding; the matrices of attention
and MLP are stored (in, out); these always have biases, which are zero in every conversion of the released weights, and
fine-tuning changes them; and the input is not shifted, so that a caller prepends token 512. There is no BERT objective.
`igpt.weights.processor` reads the image processor's configuration, which contains the colours, and
`igpt.weights.classifier` reads and writes ``ImageGPTForImageClassification``.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shortly
from typing import Any

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size, write_text
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pickles import check_cost
from igpt.shape import ModelShape
from igpt.weights.check import FLOATS, NARROWEST, check_fits, check_model, check_weights, read_fields, shapes_of
from igpt.weights.own import load_tensors, save_tensors
from igpt.weights.processor import write_processor
from igpt.weights.released import TENSORS

_BLOCK = {  # our names to theirs, and whether the matrix is transposed
    "ln_1.g": ("ln_1.weight", False),
    "attn.qkv.weight": ("attn.c_attn.weight", True),
    "attn.c_proj.weight": ("attn.c_proj.weight", True),
    "ln_2.g": ("ln_2.weight", False),
    "c_fc.weight": ("mlp.c_fc.weight", True),
    "c_proj.weight": ("mlp.c_proj.weight", True),
}
HEAD = "score.weight"  # a classifier's
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # older versions store the causal mask beside the weights
_BIAS = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.bias")
_SHARD = re.compile(r"\w[\w.\-]*")  # a file's name, never a path

# The fields of a model's shape: transformers' names and defaults, and its second names for four of them.
_SIZES = {"n_layer": 24, "n_embd": 512, "n_head": 8, "vocab_size": 513, "n_positions": 1024}
_SECOND_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}
# Every other field that changes logits, and the only value that `igpt.model` supports.
_ARITHMETIC: dict[str, Any] = {
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}
_ABSENT = ("quantization_config", "per_layer_config", "pruned_heads")  # each would change weights or layers


def is_huggingface(folder: Path) -> bool:
    """Whether a folder's ``config.json`` describes transformers' Image GPT."""
    try:
        return read_fields(folder / "config.json").get("model_type") == "imagegpt"
    except UsageError:
        return False


def read_huggingface(folder: Path) -> ImageGPT:
    """The model of a folder, in evaluation mode on the CPU.

    Every field of the configuration that changes logits is checked, and values that `igpt.model` does not support are refused.
    Ignored are dropout, the order and precision of attention's products (all are computed in float32, whatever the
    ``dtype``), options of output and sampling, and fields unknown to transformers.
    Reads ``model.safetensors``, or ``pytorch_model.bin`` by PyTorch's restricted unpickler, each whole or in shards.
    The model has biases if any in the folder is not zero. Weights of ImageGPTForImageClassification and of ImageGPTModel have
    no output matrix: such a model has features, and its ``wtet`` is None. Raises UsageError for a missing or damaged file,
    other tensors than the configuration describes, and NaN or infinite numbers.
    """
    return read_with_head(folder)[0]


def read_with_head(folder: Path) -> tuple[ImageGPT, Tensor | None]:
    """The model, and a classifier's head, float32 (classes, C); None without one. Raises as `read_huggingface` does."""
    shape = huggingface_shape(folder / "config.json")
    model, tensors = _checked(folder, shape, *_read_tensors(folder))
    shape = model.shape
    embedding = tensors["wte.weight"]
    state = {"wte": embedding[:-1], "sos": embedding[-1]}
    for name, (their_name, transposed) in _names(shape).items():
        if their_name in tensors:  # the output matrix may be missing
            state[name] = tensors[their_name].T if transposed else tensors[their_name]
    model.load_state_dict({name: _copy(tensor) for name, tensor in state.items()}, assign=True)
    return model.eval(), _copy(tensors[HEAD]) if HEAD in tensors else None


def huggingface_shape(path: Path) -> ModelShape:
    """The shape in a ``config.json``, without biases, of which only the weights tell.

    Raises UsageError when it is missing, damaged, or of another kind of model.
    """
    config = read_fields(path)
    sizes = _SIZES | {name: config[second] for second, name in _SECOND_NAMES.items() if second in config}
    sizes |= {name: config[name] for name in _SIZES if name in config}
    try:
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} is a whole number from 1 on, not {shortly(size)}")
        for second, name in _SECOND_NAMES.items():
            if config.get(second, sizes[name]) != sizes[name]:
                raise ValueError(f"{name} is {shortly(sizes[name])}, but {second} {shortly(config[second])}")
        if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
            raise ValueError(f"n_inner is {shortly(config['n_inner'])}, not four times n_embd ({sizes['n_embd']})")
        colours = sizes["vocab_size"] - 1
        shape = ModelShape(sizes["n_layer"], sizes["n_embd"], sizes["n_head"], colours, sizes["n_positions"])
    except ValueError as error:
        raise UsageError(f"{path} does not describe an Image GPT ({error}): copy it again") from None
    for field, ours in _ARITHMETIC.items():
        theirs = config.get(field, ours)
        equal = math.isclose(theirs, ours, rel_tol=1e-6) if type(theirs) is type(ours) is float else theirs == ours
        if not equal or type(theirs) is not type(ours):
            raise UsageError(f"{path} has {field} {shortly(theirs)}, and Image GPT as released {ours!r}: choose other weights")
    for field in _ABSENT:
        if config.get(field):
            raise UsageError(f"{path} has a {field}, which is not supported: choose weights without one")
    return shape


def check_file(name: str, shape: ModelShape, path: Path) -> ModelShape:
    """The shape, with biases or without, of the file at ``path``, of the format ``name`` in `TENSORS`.

    shape : of its configuration
    Raises UsageError unless it is a generative model of this shape.
    """
    tensors = _read_file(name, path)
    if _is_bare(tensors):
        raise UsageError(f"{path} has no output matrix: choose the weights of a generative model")
    return _checked(path, shape, tensors, path.stat().st_size)[0].shape


def folder_shape(folder: Path) -> tuple[ModelShape, bool]:
    """The shape of a folder's model, its biases included, and whether it has the output matrix; a classifier's has none.

    Only the biases are read. Raises UsageError for a configuration or weights that are missing or damaged.
    """
    shape = huggingface_shape(folder / "config.json")
    tensors, size = _read_tensors(folder)
    bare = _is_bare(tensors)
    check_fits(folder / "config.json", shape, tensors=len(tensors), size=size, output=not bare)
    return replace(shape, biases=_has_biases(tensors, shape)), not bare


def huggingface_files(folder: Path) -> list[Path]:
    """The files that `read_huggingface` reads of a folder. Raises UsageError for weights that are missing."""
    name, paths, shard_of = _tensor_files(folder)
    return [folder / "config.json", *([folder / f"{name}.index.json"] if shard_of else []), *paths]


def write_huggingface(folder: Path, model: ImageGPT, palette: Palette | None = None) -> None:
    """Write a model, and its palette, as a folder that ``from_pretrained`` of transformers opens; ``config.json`` is last.

    Raises UsageError for a BERT model, for which transformers has no class, and for NaN or infinite weights.
    """
    theirs = their_tensors(model)
    check_model(model, folder)
    save_tensors(folder / "model.safetensors", theirs, {"format": "pt"})
    if palette is not None:
        write_processor(folder, palette, side=math.isqrt(model.shape.n_ctx))
    config = their_config(model.shape, "ImageGPTForCausalImageModeling")
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def their_tensors(model: ImageGPT) -> dict[str, Tensor]:
    """A model's tensors by transformers' names, with the prefix, and with biases of zero if it has none.

    Raises UsageError for a BERT model, for which transformers has no class.
    """
    if model.shape.objective != "autoregressive":
        raise UsageError("transformers has no Image GPT with BERT's objective: export autoregressive weights")
    ours = model.state_dict()
    theirs = {"transformer.wte.weight": torch.cat([ours["wte"], ours["sos"][None]])}
    for name, (their_name, transposed) in _names(model.shape).items():
        if name not in ours:  # the output matrix may be missing
            continue
        full_name = their_name if name == "wtet" else f"transformer.{their_name}"
        theirs[full_name] = ours[name].T if transposed else ours[name]
        if transposed and not model.shape.biases:
            theirs[_bias(full_name)] = ours[name].new_zeros(len(ours[name]))
    return theirs


def their_config(shape: ModelShape, architecture: str) -> dict[str, object]:
    """The fields of ``config.json`` for a class of transformers."""
    return {
        "architectures": [architecture],
        "model_type": "imagegpt",
        "vocab_size": shape.n_vocab + 1,
        "n_positions": shape.n_ctx,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "activation_function": "quick_gelu",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _names(shape: ModelShape) -> dict[str, tuple[str, bool]]:
    """Hugging Face's name of each of our parameters but ``wte`` and ``sos``, and whether it is a matrix stored (in, out)."""
    names = {"wpe": ("wpe.weight", False), "ln_f.g": ("ln_f.weight", False), "wtet": ("lm_head.weight", False)}
    for layer in range(shape.n_layer):
        for in_block, (theirs, transposed) in _BLOCK.items():
            ours = f"blocks.{layer}.{in_block}"
            names[ours] = f"h.{layer}.{theirs}", transposed
            if transposed and shape.biases:
                names[_bias(ours)] = _bias(f"h.{layer}.{theirs}"), False
    return names


def _bias(weight: str) -> str:
    """The name of the bias beside a matrix."""
    return f"{weight.removesuffix('weight')}bias"


def _is_bare(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors are those of a classifier or a bare model, without the output matrix."""
    names = {name.removeprefix("transformer.") for name in tensors}
    return "lm_head.weight" not in names and (HEAD in names or "wte.weight" in tensors)


def _has_biases(tensors: dict[str, Tensor], shape: ModelShape) -> bool:
    """Whether a bias is not zero; one that is no bias by its type or size, which `check_weights` refuses, is not looked at."""
    biases = (t for name, t in tensors.items() if _BIAS.fullmatch(name.removeprefix("transformer.")))
    return any(t.dtype in FLOATS and t.numel() <= 4 * shape.n_embd and bool(t.any()) for t in biases)


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy in float32, since tensors are memory-mapped from files that may be replaced."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _checked(where: Path, shape: ModelShape, read: dict[str, Tensor], size: int) -> tuple[ImageGPT, dict[str, Tensor]]:
    """A model on the meta device, and its tensors by name without prefix.

    read : the tensors by name, from files of ``size`` bytes
    The model has biases if one that was read is not zero, and a head is kept among the tensors.
    Raises UsageError for other tensors than a model of ``shape`` has.
    """
    tensors = {name.removeprefix("transformer."): t for name, t in read.items()}
    if len(tensors) < len(read):
        raise UsageError(f"{where} holds tensors both with and without the prefix transformer.: copy it again")
    bare = _is_bare(read)
    check_fits(where / "config.json" if where.is_dir() else where, shape, tensors=len(tensors), size=size, output=not bare)
    tensors = {name: t for name, t in tensors.items() if not _MASK.fullmatch(name)}
    shape = replace(shape, biases=_has_biases(tensors, shape))
    with torch.device("meta"):
        model = ImageGPT(shape)
    if bare:
        model.register_parameter("wtet", None)
    ours = shapes_of(model)
    theirs = {"wte.weight": torch.Size([shape.n_vocab + 1, shape.n_embd])}  # the last row is the start vector
    for name, (their_name, transposed) in _names(shape).items():
        if name in ours:
            theirs[their_name] = ours[name][::-1] if transposed else ours[name]
        if transposed and (bias := _bias(their_name)) in tensors:
            theirs[bias] = ours[name][:1]
    if HEAD in tensors:
        head = tensors[HEAD].shape
        if len(head) != 2 or not 1 <= head[0] <= size // (NARROWEST * shape.n_embd):
            raise UsageError(
                f"{where} has a head ({HEAD}) of the shape {tuple(head)}, not (classes, {shape.n_embd}): copy it again"
            )
        theirs[HEAD] = torch.Size([head[0], shape.n_embd])
    check_weights(tensors, theirs, where)
    return model, tensors


def _tensor_files(folder: Path) -> tuple[str, list[Path], dict[str, str]]:
    """The name in `TENSORS` that transformers prefers, its files, and the shard of each tensor if there are several.

    Raises UsageError for files that are missing, and for a damaged index.
    """
    for name in TENSORS:
        if (path := folder / name).exists():
            return name, [path], {}
        if not (index := folder / f"{name}.index.json").exists():
            continue
        shard_of = read_fields(index, "the shards of a model").get("weight_map")
        if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
            raise UsageError(f"{index} does not describe the shards of a model (weight_map is no list of files): copy it again")
        shards = sorted(set(shard_of.values()))
        if outside := [shard for shard in shards if not _SHARD.fullmatch(shard)]:
            raise UsageError(f"{index} names a shard that is no file beside it ({shortly(outside[0])}): copy it again")
        if missing := [shard for shard in shards if not (folder / shard).exists()]:
            raise UsageError(f"{folder} lacks {len(missing)} of its {len(shards)} shards, {missing[0]} first: copy them too")
        return name, [folder / shard for shard in shards], shard_of
    raise UsageError(f"{folder} holds no weights: {TENSORS[0]} is missing, copy it too")


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], int]:
    """A folder's tensors by name, and the total bytes of their files."""
    name, paths, shard_of = _tensor_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        loaded = _read_file(name, path)
        if shard_of and (other := loaded.keys() ^ {tensor for tensor, shard in shard_of.items() if shard == path.name}):
            raise UsageError(f"{path} holds other tensors than {name}.index.json says ({shortly(min(other))}): copy both again")
        tensors |= loaded
    return tensors, sum(path.stat().st_size for path in paths)


def _read_file(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of one file of the format of ``name``, one of `TENSORS`."""
    if name == TENSORS[0]:
        return load_tensors(path)[0]
    try:
        _check_pickle(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # PyTorch's message advises to read without restrictions
        raise cannot_read(path, ValueError("it holds more than tensors by name")) from None
    except Exception as error:  # damaged pickles make PyTorch raise errors of many types
        raise cannot_read(path, error) from None
    if not isinstance(tensors, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
        raise UsageError(f"{path} does not hold tensors by name: copy it again")
    if odd := sorted(name for name, t in tensors.items() if t.layout != torch.strided or t.is_nested or t.is_meta):
        raise UsageError(f"{path} holds tensors that are not dense ({odd[0]}): save dense ones")
    return tensors


def _check_pickle(path: Path) -> None:
    """Raise ValueError for a pickle that would take more memory than its file, or calls more than tensors need.

    PyTorch's restricted unpickler runs no foreign code, but allocates a bytearray of any size.
    """
    file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"{packed[0]} is compressed")
            pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError("it does not hold one pickle")
            pickled = archive.read(pickles[0])
    except zipfile.BadZipFile:
        raise ValueError("it is cut short, or no zip archive as PyTorch writes since 1.6") from None
    for name in check_cost(pickled):
        if not re.match(r"torch\b|collections OrderedDict$", str(name)):
            raise ValueError(f"it calls {name}, which makes no tensor")
