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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.files import write_text
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.check import check_weights, shapes_of
from igpt.weights.own import load_tensors, save_tensors
from igpt.weights.processor import write_processor

_BLOCK = {  # ours to theirs, and whether the matrix lies the other way round
    "ln_1.g": ("ln_1.weight", False),
    "attn.qkv.weight": ("attn.c_attn.weight", True),
    "attn.c_proj.weight": ("attn.c_proj.weight", True),
    "ln_2.g": ("ln_2.weight", False),
    "c_fc.weight": ("mlp.c_fc.weight", True),
    "c_proj.weight": ("mlp.c_proj.weight", True),
}

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
        return bool(json.loads((folder / "config.json").read_bytes()).get("model_type") == "imagegpt")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_huggingface(folder: Path) -> ImageGPT:
    """The model of a folder, in evaluation mode on the CPU.

    Of the configuration, every field that changes logits is read, and refused where it says another thing than this
    model computes. Ignored are those that change nothing here: dropout, the order and precision of attention's products
    (all is computed in float32, whatever ``dtype`` says), what is returned or sampled, and what transformers does not know.
    Reads ``model.safetensors``, or ``pytorch_model.bin`` by PyTorch's restricted unpickler. Raises UsageError
    for a missing or damaged file, other tensors than the configuration says, tensors that are not of finite floats, or
    biases that are not zero.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        shape = _shape(config)
        with torch.device("meta"):
            model = ImageGPT(shape)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no weights: config.json is missing") from None
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{folder / 'config.json'} does not describe an Image GPT ({error}): copy it again") from None
    _check_arithmetic(config, folder / "config.json")
    read = _read_tensors(folder)
    tensors = {name.removeprefix("transformer."): t for name, t in read.items()}
    if len(tensors) < len(read):
        raise UsageError(f"{folder} holds tensors both with and without the prefix transformer.: copy it again")
    embedding = tensors.get("wte.weight")
    if embedding is not None and (embedding.ndim != 2 or not len(embedding)):
        raise UsageError(f"{folder} holds other tensors than its model has (wte.weight is no matrix): copy it again")
    found = {name: _theirs(tensors, name, folder) for name in model.state_dict()}
    if unknown := sorted(set(tensors) - _known(shape)):
        raise UsageError(f"{folder} holds other tensors than its model has ({unknown[0]} is unknown): copy it again")
    check_weights(found, shapes_of(model), folder)
    model.load_state_dict({name: t.to(torch.float32).contiguous() for name, t in found.items()}, assign=True)
    return model.eval()


def write_huggingface(folder: Path, model: ImageGPT, palette: Palette | None = None) -> None:
    """Write a model, and its palette, as a folder that ``from_pretrained`` of transformers opens; ``config.json`` comes last.

    Raises UsageError for a BERT model, which transformers has no class for, and for weights that are not finite.
    """
    shape = model.shape
    if shape.objective != "autoregressive":
        raise UsageError("transformers has no Image GPT with BERT's objective: export autoregressive weights")
    ours = model.state_dict()
    check_weights(ours, shapes_of(model), f"the model for {folder}")
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


def _known(shape: ModelShape) -> set[str]:
    """The names that tensors of such a model may have; older versions keep the causal mask beside the weights."""
    blocks = [their_name for their_name, _ in _BLOCK.values()]
    biases = [name.removesuffix("weight") + "bias" for name, turned in _BLOCK.values() if turned]
    inner = [*blocks, *biases, "attn.bias", "attn.masked_bias"]
    whole = {"wte.weight", "wpe.weight", "ln_f.weight", "lm_head.weight"}
    return whole | {f"h.{layer}.{name}" for layer in range(shape.n_layer) for name in inner}


def _theirs(tensors: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    """Our parameter out of their tensors."""
    try:
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if match is None:
            whole = {"wpe": "wpe.weight", "ln_f.g": "ln_f.weight", "wtet": "lm_head.weight"}
            if name in ("wte", "sos"):
                embedding = tensors["wte.weight"]
                return embedding[:-1] if name == "wte" else embedding[-1]
            return tensors[whole[name]]
        their_name, turned = _BLOCK[match[2]]
        tensor = tensors[f"h.{match[1]}.{their_name}"]
        bias = tensors.get(f"h.{match[1]}.{their_name.removesuffix('weight')}bias")
    except KeyError as error:
        other = "choose weights of ImageGPTForCausalImageModeling" if name == "wtet" else "copy it again"
        raise UsageError(f"{folder} lacks the tensor {error}: {other}") from None
    if turned and bias is not None and bias.any():
        raise UsageError(f"{folder} has biases that are not zero (layer {match[1]}): Image GPT as released has none")
    return tensor.T if turned else tensor


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors by their names."""
    pickled = folder / "pytorch_model.bin"
    if (folder / "model.safetensors").exists() or not pickled.exists():
        return load_tensors(folder / "model.safetensors")[0]
    try:
        found = torch.load(pickled, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{pickled} is damaged ({reason}): copy it again") from None
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise UsageError(f"{pickled} does not hold tensors by name: copy it again")
    if odd := sorted(name for name, t in found.items() if t.layout != torch.strided or t.is_nested or t.is_meta):
        raise UsageError(f"{pickled} holds tensors that are not dense ({odd[0]}): save dense ones")
    return found


def _shape(config: dict[str, Any]) -> ModelShape:
    """The shape that a configuration gives. Raises ValueError where it gives two, or an MLP of another width."""
    sizes = {name: config.get(name, default) for name, default in _SIZES.items()}
    for second, name in _SECOND_NAMES.items():
        if second in config and name not in config and second != "n_ctx":
            sizes[name] = config[second]
        elif config.get(second, sizes[name]) != sizes[name]:
            raise ValueError(f"{name} is {sizes[name]}, but {second} {config[second]}")
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} is a whole number from 1 on, not {size!r}")
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise ValueError(f"n_inner is {config['n_inner']!r}, not four times n_embd ({sizes['n_embd']})")
    return ModelShape(sizes["n_layer"], sizes["n_embd"], sizes["n_head"], sizes["vocab_size"] - 1, sizes["n_positions"])


def _check_arithmetic(config: dict[str, Any], path: Path) -> None:
    """Refuse a model of another kind than the released ones."""
    for field, ours in _ARITHMETIC.items():
        found = config.get(field, ours)
        equal = math.isclose(found, ours, rel_tol=1e-6) if type(found) is type(ours) is float else found == ours
        if not equal or type(found) is not type(ours):
            raise UsageError(f"{path} has {field} {found!r}, and Image GPT as released {ours!r}: choose other weights")
    for field in _ABSENT:
        if config.get(field):
            raise UsageError(f"{path} has a {field}, which is not supported: choose weights without one")
