"""Hugging Face's folders (transformers' ``ImageGPTForCausalImageModeling``), read and written without transformers.

Theirs differ from ours in four ways: the start vector is row 512 of the token embedding; the matrices of
attention and MLP lie (in, out); there are biases, which are zero in every conversion of the released weights;
and nothing shifts the input, so a caller puts token 512 in front. They have no BERT objective.
Their image processor, which holds the colours, is in `igpt.weights.processor`.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Collection
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
from igpt.weights.check import check_fits, check_model, check_weights, read_fields, shapes_of
from igpt.weights.own import load_tensors, save_tensors
from igpt.weights.processor import write_processor

_WHOLE = {"wpe": "wpe.weight", "ln_f.g": "ln_f.weight", "wtet": "lm_head.weight"}  # ours to theirs
_BLOCK = {  # ours to theirs, and whether the matrix lies the other way round
    "ln_1.g": ("ln_1.weight", False),
    "attn.qkv.weight": ("attn.c_attn.weight", True),
    "attn.c_proj.weight": ("attn.c_proj.weight", True),
    "ln_2.g": ("ln_2.weight", False),
    "c_fc.weight": ("mlp.c_fc.weight", True),
    "c_proj.weight": ("mlp.c_proj.weight", True),
}

_OF_A_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # older versions keep the causal mask beside the weights
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # with which files begin that are no zip archives
TENSORS = ("model.safetensors", "pytorch_model.bin")  # the second is a pickle, and read only where the first is missing
_SHARD = re.compile(r"\w[\w.\-]*")  # a file's name, never a path

# What decides a model's shape: transformers' names, its second names for four of them, and what it takes where one is missing.
_SIZES = {"n_layer": 24, "n_embd": 512, "n_head": 8, "vocab_size": 513, "n_positions": 1024}
_SECOND_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}
# Every other field that changes logits, and the only value that `igpt.model` computes with.
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
    """Whether a folder's ``config.json`` is one of transformers' Image GPT."""
    try:
        return read_fields(folder / "config.json").get("model_type") == "imagegpt"
    except (FileNotFoundError, UsageError):
        return False


def read_huggingface(folder: Path) -> ImageGPT:
    """The model of a folder, in evaluation mode on the CPU.

    Of the configuration, every field that changes logits is read, and refused where it says another thing than this
    model computes. Ignored are those that change nothing here: dropout, the order and precision of attention's products
    (all is computed in float32, whatever ``dtype`` says), what is returned or sampled, and what transformers does not know.
    Reads ``model.safetensors``, or ``pytorch_model.bin`` by PyTorch's restricted unpickler, each whole or in shards.
    Weights of ImageGPTForImageClassification and of ImageGPTModel have no output matrix: such a model gives features, its
    ``wtet`` is None, and a classifier's own head is not read. Raises UsageError for a missing or damaged file, other tensors
    than the configuration says, tensors that are not of finite floats, or biases that are not zero.
    """
    shape = huggingface_shape(folder / "config.json")
    model, tensors = _checked(folder, shape, *_read_tensors(folder))
    state = {name: _ours(tensors, name) for name in model.state_dict()}
    # Copies, so that the model does not end with its file: a tensor lies in the file until then, which others may replace.
    copies = {n: t.to(torch.float32, memory_format=torch.contiguous_format, copy=True) for n, t in state.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def tensors_fault(name: str, shape: ModelShape, path: Path) -> str:
    """What is wrong with the file at ``path`` as that of `TENSORS` called ``name``, of a model of a shape, or nothing."""
    try:
        read = _READERS[name](path)
        if _is_bare(read):
            return "has no output matrix"
        _checked(path, shape, read, path.stat().st_size)
    except UsageError as error:
        return str(error).removeprefix(f"{path} ").rpartition(": ")[0]
    return ""


def _checked(where: Path, shape: ModelShape, read: dict[str, Tensor], size: int) -> tuple[ImageGPT, dict[str, Tensor]]:
    """A model on the meta device, and its tensors out of those that were read, which are ``size`` bytes, by their plain names.

    Raises UsageError for other tensors than such a model has.
    """
    tensors = {name.removeprefix("transformer."): t for name, t in read.items()}
    if len(tensors) < len(read):
        raise UsageError(f"{where} holds tensors both with and without the prefix transformer.: copy it again")
    bare = _is_bare(read)
    check_fits(where / "config.json" if where.is_dir() else where, shape, tensors=len(tensors), size=size, output=not bare)
    tensors = {name: t for name, t in tensors.items() if not _MASK.fullmatch(name) and not (bare and name == "score.weight")}
    with torch.device("meta"):
        model = ImageGPT(shape)
    if bare:
        model.register_parameter("wtet", None)
    check_weights(tensors, _their_shapes(shapes_of(model), tensors), where)
    if biased := sorted(name for name, t in tensors.items() if name.endswith("bias") and t.any()):
        raise UsageError(f"{where} has biases that are not zero ({biased[0]}): Image GPT as released has none")
    return model, tensors


def huggingface_shape(path: Path) -> ModelShape:
    """The shape that a ``config.json`` says. Raises UsageError when it is missing, damaged, or of another kind of model."""
    try:
        config = read_fields(path)
        shape = _shape(config)
    except FileNotFoundError:
        raise UsageError(f"{path.parent} holds no weights: config.json is missing") from None
    except ValueError as error:
        raise UsageError(f"{path} does not describe an Image GPT ({error}): copy it again") from None
    _check_arithmetic(config, path)
    return shape


def has_output(folder: Path) -> bool:
    """Whether a folder's weights predict colours; those of a classifier give features only.

    Raises UsageError for weights that are missing or damaged.
    """
    return not _is_bare(_read_tensors(folder)[0])


def huggingface_files(folder: Path) -> list[Path]:
    """The files that `read_huggingface` reads of a folder. Raises UsageError for weights that are missing."""
    for name in TENSORS:
        path, index = folder / name, folder / f"{name}.index.json"
        if path.exists():
            return [folder / "config.json", path]
        if index.exists():
            return [folder / "config.json", index, *_shards(index)[1]]
    raise _no_tensors(folder)


def write_huggingface(folder: Path, model: ImageGPT, palette: Palette | None = None) -> None:
    """Write a model, and its palette, as a folder that ``from_pretrained`` of transformers opens; ``config.json`` comes last.

    Raises UsageError for a BERT model, which transformers has no class for, and for weights that are not finite.
    """
    shape = model.shape
    if shape.objective != "autoregressive":
        raise UsageError("transformers has no Image GPT with BERT's objective: export autoregressive weights")
    ours = model.state_dict()
    check_model(model, folder)
    theirs = {
        "transformer.wte.weight": torch.cat([ours["wte"], ours["sos"][None]]),
        "transformer.wpe.weight": ours["wpe"],
        "transformer.ln_f.weight": ours["ln_f.g"],
        "lm_head.weight": ours["wtet"],
    }
    for layer in range(shape.n_layer):
        for name, (their_name, turned) in _BLOCK.items():
            tensor = ours[f"blocks.{layer}.{name}"]
            theirs[f"transformer.h.{layer}.{their_name}"] = tensor.T if turned else tensor
            if turned:
                bias = f"transformer.h.{layer}.{their_name.removesuffix('weight')}bias"
                theirs[bias] = tensor.new_zeros(len(tensor))
    save_tensors(folder / "model.safetensors", theirs, {"format": "pt"})
    if palette is not None:
        write_processor(folder, palette, side=math.isqrt(shape.n_ctx))
    config = {
        "architectures": ["ImageGPTForCausalImageModeling"],
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
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def _is_bare(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a classifier or a bare model: all but the output matrix."""
    inner = {name.removeprefix("transformer.") for name in names}
    return "lm_head.weight" not in inner and ("score.weight" in inner or "wte.weight" in names)


def _their_shapes(ours: dict[str, torch.Size], tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes that their tensors have, by their names; of biases, those that are there."""
    shapes = {their_name: ours[name] for name, their_name in _WHOLE.items() if name in ours}
    colours, width = ours["wte"]
    shapes["wte.weight"] = torch.Size([colours + 1, width])  # the start vector is the last
    for name, shape in ours.items():
        if match := _OF_A_BLOCK.fullmatch(name):
            their_name, turned = _BLOCK[match[2]]
            shapes[f"h.{match[1]}.{their_name}"] = shape[::-1] if turned else shape
            bias = f"h.{match[1]}.{their_name.removesuffix('weight')}bias"
            if turned and bias in tensors:
                shapes[bias] = shape[:1]
    return shapes


def _ours(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Our parameter out of their tensors."""
    if match := _OF_A_BLOCK.fullmatch(name):
        their_name, turned = _BLOCK[match[2]]
        tensor = tensors[f"h.{match[1]}.{their_name}"]
        return tensor.T if turned else tensor
    if name in ("wte", "sos"):
        embedding = tensors["wte.weight"]
        return embedding[:-1] if name == "wte" else embedding[-1]
    return tensors[_WHOLE[name]]


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors by their names, and the bytes of their files; where there are several, that which transformers takes."""
    for name, read in _READERS.items():
        path, index = folder / name, folder / f"{name}.index.json"
        if path.exists():
            return read(path), path.stat().st_size
        if index.exists():
            return _read_shards(index, read)
    raise _no_tensors(folder)


def _no_tensors(folder: Path) -> UsageError:
    return UsageError(f"{folder} holds no weights: {TENSORS[0]} is missing, copy it too")


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
    """The tensors of a folder of shards, each where the index says, and the bytes of the shards."""
    places, paths = _shards(index)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = read(path)
        if other := found.keys() ^ {name for name, shard in places.items() if shard == path.name}:
            raise UsageError(f"{path} holds other tensors than {index.name} says ({shortly(min(other))}): copy both again")
        tensors |= found
    return tensors, sum(path.stat().st_size for path in paths)


def _shards(index: Path) -> tuple[dict[str, str], list[Path]]:
    """The shard of each tensor, and the shards' paths. Raises UsageError for one that is missing, and a damaged index."""
    places = read_fields(index, "the shards of a model").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise UsageError(f"{index} does not describe the shards of a model (weight_map is no list of files): copy it again")
    shards = sorted(set(places.values()))
    if outside := [shard for shard in shards if not _SHARD.fullmatch(shard)]:
        raise UsageError(f"{index} names a shard that is no file beside it ({shortly(outside[0])}): copy it again")
    paths = [index.with_name(shard) for shard in shards]
    if missing := [path.name for path in paths if not path.exists()]:
        raise UsageError(f"{index.parent} lacks {len(missing)} of its {len(paths)} shards, {missing[0]} first: copy them too")
    return places, paths


def _safe(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return load_tensors(path)[0]


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that PyTorch pickled."""
    try:
        _check_pickle(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UsageError:
        raise
    except pickle.UnpicklingError:  # whose words are PyTorch's advice to read it without its restrictions
        raise cannot_read(path, ValueError("it holds more than tensors by name")) from None
    except Exception as error:  # PyTorch's reader raises whatever a pickle leads it to
        raise cannot_read(path, error) from None
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise UsageError(f"{path} does not hold tensors by name: copy it again")
    if odd := sorted(name for name, t in found.items() if t.layout != torch.strided or t.is_nested or t.is_meta):
        raise UsageError(f"{path} holds tensors that are not dense ({odd[0]}): save dense ones")
    return found


_READERS = dict(zip(TENSORS, (_safe, _unpickled), strict=True))


def _check_pickle(path: Path) -> None:
    """Raise ValueError for a pickle that would take more than its file: compressed, nested, or calling more than tensors need.

    PyTorch's restricted unpickler runs no foreign code, but it makes a bytearray of any size. Raises UsageError for a file
    of PyTorch's older format.
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
        with path.open("rb") as stream:
            if stream.read(len(_LEGACY)) == _LEGACY:
                raise UsageError(
                    f"{path} is in PyTorch's format before 1.6: save it again with a newer PyTorch, or as safetensors"
                ) from None
        raise ValueError("it is cut short, or no zip archive as PyTorch writes since 1.6") from None
    for name in check_cost(pickled):
        if not re.match(r"torch\b|collections OrderedDict$", str(name)):
            raise ValueError(f"it calls {name}, which makes no tensor")


def _shape(config: dict[str, Any]) -> ModelShape:
    """The shape that a configuration gives. Raises ValueError where it gives two, or an MLP of another width."""
    sizes = {name: config.get(name, default) for name, default in _SIZES.items()}
    for second, name in _SECOND_NAMES.items():
        if second in config and name not in config and second != "n_ctx":
            sizes[name] = config[second]
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} is a whole number from 1 on, not {shortly(size)}")
    for second, name in _SECOND_NAMES.items():
        if config.get(second, sizes[name]) != sizes[name]:
            raise ValueError(f"{name} is {shortly(sizes[name])}, but {second} {shortly(config[second])}")
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ValueError(f"n_inner is {shortly(config['n_inner'])}, not four times n_embd ({sizes['n_embd']})")
    return ModelShape(sizes["n_layer"], sizes["n_embd"], sizes["n_head"], sizes["vocab_size"] - 1, sizes["n_positions"])


def _check_arithmetic(config: dict[str, Any], path: Path) -> None:
    """Refuse a model of another kind than the released ones."""
    for field, ours in _ARITHMETIC.items():
        found = config.get(field, ours)
        equal = math.isclose(found, ours, rel_tol=1e-6) if type(found) is type(ours) is float else found == ours
        if not equal or type(found) is not type(ours):
            raise UsageError(f"{path} has {field} {shortly(found)}, and Image GPT as released {ours!r}: choose other weights")
    for field in _ABSENT:
        if config.get(field):
            raise UsageError(f"{path} has a {field}, which is not supported: choose weights without one")
