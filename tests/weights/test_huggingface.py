"""Hugging Face's folders, against the real library."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_model
from torch.testing import assert_close

from igpt import ImageGPT as Pretrained
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.sample import complete
from igpt.shape import ModelShape
from igpt.weights.huggingface import is_huggingface, read_huggingface, write_huggingface
from igpt.weights.onnx import write_onnx
from igpt.weights.own import load_tensors, save_tensors, save_weights
from igpt.weights.read import read_weights, weights_shape


@pytest.fixture
def folder(model: ImageGPT, tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "hf", model)
    return tmp_path / "hf"


def theirs(folder: Path, **words: object) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    loaded, report = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder, output_loading_info=True, **words)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return loaded.eval()


def shifted(tokens: torch.Tensor) -> torch.Tensor:
    """What their model wants to see: the start token in front, the last token never."""
    return torch.cat([torch.full((len(tokens), 1), 8), tokens[:, :-1]], dim=1)


def test_their_library_opens_our_export_and_gives_our_logits(folder: Path, model: ImageGPT, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        found = theirs(folder)(input_ids=shifted(tokens)).logits
        assert_close(found, model(tokens), atol=2e-5, rtol=1e-5)  # two implementations in float32


def test_their_hidden_states_normed_are_our_features(folder: Path, model: ImageGPT, tokens: torch.Tensor) -> None:
    library = theirs(folder)
    with torch.no_grad():
        hidden = library(input_ids=shifted(tokens), output_hidden_states=True).hidden_states
        ours = model.features(tokens)
        for layer in range(2):
            assert_close(library.transformer.h[layer].ln_1(hidden[layer]).mean(1), ours[layer], atol=2e-5, rtol=1e-5)
        assert_close(hidden[2].mean(1), ours[2], atol=2e-5, rtol=1e-5)


def test_their_greedy_continuation_is_ours(folder: Path, model: ImageGPT) -> None:
    library = theirs(folder)
    ids = torch.full((1, 1), 8)
    with torch.no_grad():
        for _ in range(9):
            ids = torch.cat([ids, library(input_ids=ids).logits[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(ids[:, 1:], complete(model, torch.empty(1, 0, dtype=torch.int64), n=1, seed=0, temperature=0)[0])


def test_what_their_library_saves_opens_here(folder: Path, model: ImageGPT, tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs(folder).save_pretrained(tmp_path / "saved")
    assert is_huggingface(tmp_path / "saved")
    assert torch.equal(read_weights(tmp_path / "saved")(tokens), model(tokens))


def test_a_pickled_folder_opens_by_the_restricted_reader_alone(folder: Path, model: ImageGPT, tokens: torch.Tensor) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(read_huggingface(folder)(tokens), model(tokens))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch evil-was-run",)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is damaged"):
        read_huggingface(folder)
    assert not (tmp_path / "evil-was-run").exists()


BIASES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_bias_that_is_not_zero_is_read_and_gives_their_logits(
    folder: Path, tokens: torch.Tensor, name: str, pickled: bool
) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    tensors[f"transformer.h.1.{name}.bias"][3] = 2.0
    save_tensors(folder / "model.safetensors", tensors)
    if pickled:
        as_pickle(folder, lambda tensors: None)
    ours = read_huggingface(folder)
    assert ours.shape.biases and weights_shape(folder) == ours.shape
    with torch.no_grad():
        assert_close(ours(tokens), theirs(folder)(input_ids=shifted(tokens)).logits, atol=2e-5, rtol=1e-5)


def test_biases_make_the_round_trip_through_their_library_and_through_ours(
    biased: ImageGPT, greys: Palette, tokens: torch.Tensor, tmp_path: Path
) -> None:
    write_huggingface(tmp_path / "ours", biased, greys)
    library = theirs(tmp_path / "ours")
    with torch.no_grad():
        assert_close(library(input_ids=shifted(tokens)).logits, biased(tokens), atol=2e-5, rtol=1e-5)
    library.save_pretrained(tmp_path / "theirs")
    save_weights(tmp_path / "own", read_huggingface(tmp_path / "theirs"), greys)
    again = read_weights(tmp_path / "own")
    assert again.shape == biased.shape
    for name, tensor in biased.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_biases_of_zero_are_none(folder: Path, model: ImageGPT) -> None:
    assert read_huggingface(folder).shape == weights_shape(folder) == model.shape


def test_a_folder_with_some_of_its_biases_says_which_is_missing(biased: ImageGPT, tmp_path: Path) -> None:
    write_huggingface(tmp_path / "some", biased)
    tensors = load_tensors(tmp_path / "some" / "model.safetensors")[0]
    del tensors["transformer.h.0.mlp.c_fc.bias"]
    save_tensors(tmp_path / "some" / "model.safetensors", tensors)
    with pytest.raises(UsageError, match=r"\(h\.0\.mlp\.c_fc\.bias is missing\)"):
        read_huggingface(tmp_path / "some")


def test_a_name_that_requires_a_shape_takes_no_biases(biased: ImageGPT, tmp_path: Path) -> None:
    write_huggingface(tmp_path / "biased", biased)
    with pytest.raises(UsageError, match=r"have another shape \(.*, autoregressive, with biases\) than they need"):
        read_weights(tmp_path / "biased", replace(biased.shape, biases=False))


def test_a_bias_of_any_size_costs_no_time(folder: Path, tmp_path: Path) -> None:
    endless = torch.ones(1).expand(2**50)  # of one stored number
    as_pickle(folder, lambda tensors: tensors.update({"transformer.h.0.mlp.c_fc.bias": endless}))
    assert not weights_shape(folder).biases
    with pytest.raises(UsageError, match=r"c_fc\.bias has the shape"):
        read_huggingface(folder)


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    del tensors[name]
    save_tensors(folder / "model.safetensors", tensors)
    plain = re.escape(name.removeprefix("transformer."))
    with pytest.raises(UsageError, match=rf"holds other tensors than its model has \({plain} is missing\)"):
        read_huggingface(folder)


# Another value of every field that transformers' configuration knows, of its own and of all models.
OTHERWISE: dict[str, object] = {
    "vocab_size": 10,
    "n_positions": 8,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 32,
    "activation_function": "gelu",
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "layer_norm_epsilon": 0.01,
    "initializer_range": 1.0,
    "scale_attn_weights": False,
    "use_cache": False,
    "tie_word_embeddings": True,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "pad_token_id": 3,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "transformers_version": "4.13.0",
    "architectures": ["ImageGPTModel"],
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 1,
    "is_encoder_decoder": True,
    "id2label": {"0": "a", "1": "b"},
    "label2id": {"a": 0, "b": 1},
    "problem_type": "regression",
    # Second names, older ones, and some that no field of the class says.
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 8,
    "n_ctx": 8,
    "torch_dtype": "float16",
    "per_layer_config": {"0": {"layer_norm_epsilon": 0.01}},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "pruned_heads": {"0": [1]},
    "is_decoder": True,
    "gradient_checkpointing": True,
    "layer_norm_eps": 0.01,
    "a_note": "unknown to transformers, so without effect there and here",
}
# What changes nothing here: it is read, and the logits are those of transformers.
HARMLESS = {
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "use_cache", "reorder_and_upcast_attn"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "transformers_version", "architectures", "output_hidden_states"),
    *("return_dict", "dtype", "torch_dtype", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "is_decoder"),
    *("gradient_checkpointing", "layer_norm_eps", "a_note"),
    *("n_head", "num_attention_heads"),  # no tensor's shape tells them
}


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_the_list_of_fields_is_that_of_the_installed_library() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    known = {f.name for f in dataclasses.fields(transformers.ImageGPTConfig)} | set(transformers.ImageGPTConfig.attribute_map)
    assert known <= set(OTHERWISE)


@pytest.mark.parametrize("field", OTHERWISE)
def test_each_field_of_the_configuration_gives_their_logits_or_is_refused(
    folder: Path, model: ImageGPT, tokens: torch.Tensor, field: str
) -> None:
    if field == "num_attention_heads":
        config = json.loads((folder / "config.json").read_text())
        del config["n_head"]
        (folder / "config.json").write_text(json.dumps(config))
    configure(folder, **{field: OTHERWISE[field]})
    if field not in HARMLESS:
        with pytest.raises(UsageError, match=str(folder)) as caught:
            read_huggingface(folder)
        assert "\n" not in str(caught.value)
        return
    with torch.no_grad():
        theirs_ = theirs(folder, dtype=torch.float32)(input_ids=shifted(tokens), return_dict=True).logits
        ours = read_huggingface(folder)(tokens)
        assert_close(ours, theirs_, atol=2e-5, rtol=1e-5)
        heads = field in ("n_head", "num_attention_heads")
        assert torch.allclose(ours, model(tokens), atol=1e-4) != heads


@pytest.mark.parametrize("field", sorted(set(OTHERWISE) - HARMLESS))
def test_the_usual_value_of_each_field_is_read(folder: Path, model: ImageGPT, tokens: torch.Tensor, field: str) -> None:
    usual = {
        **{"n_inner": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 9, "n_ctx": 9},
        **{"per_layer_config": {}, "quantization_config": None, "pruned_heads": {}, "is_encoder_decoder": False},
        **{"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    }
    if field in usual:
        configure(folder, **{field: usual[field]})
    elif field == "layer_norm_epsilon":
        configure(folder, layer_norm_epsilon=9.999999747378752e-06)  # 1e-5 in float32
    assert torch.equal(read_huggingface(folder)(tokens), model(tokens))


def test_a_field_that_is_left_out_has_their_default(tmp_path: Path) -> None:
    small = random_model(ModelShape(1, 512, 8, 512, 9))
    write_huggingface(tmp_path / "hf", small)
    config = {"model_type": "imagegpt", "n_layer": 1, "n_positions": 9}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    ids = torch.zeros(1, 9, dtype=torch.int64)
    with torch.no_grad():
        found = theirs(tmp_path / "hf")(input_ids=torch.cat([torch.full((1, 1), 512), ids[:, :-1]], dim=1)).logits
        assert_close(read_huggingface(tmp_path / "hf")(ids), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_epsilon", "1e-5"),
        ("layer_norm_epsilon", float("nan")),
        ("layer_norm_epsilon", None),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", 1),
        ("scale_attn_weights", None),
        ("activation_function", None),
        ("activation_function", "gelu_new"),
        ("n_head", 2.0),
        ("n_head", True),
        ("vocab_size", -9),
        ("n_inner", 0),
    ],
)
def test_a_value_of_another_kind_is_refused(folder: Path, field: str, value: object) -> None:
    configure(folder, **{field: value})
    with pytest.raises(UsageError, match=field):
        read_huggingface(folder)


@pytest.mark.parametrize("kind", ["ImageGPTForImageClassification", "ImageGPTModel"])
def test_weights_without_an_output_matrix_give_features_and_say_why_they_give_no_more(
    folder: Path, model: ImageGPT, greys: Palette, tokens: torch.Tensor, tmp_path: Path, kind: str
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    getattr(transformers, kind).from_pretrained(folder).save_pretrained(tmp_path / "other")
    bare = Pretrained.from_pretrained(tmp_path / "other")
    for layer, features in bare.features(tokens).items():
        assert torch.equal(features, model.features(tokens)[layer])
    for use in (lambda: bare(tokens), lambda: bare.loss(tokens), lambda: bare.sample(1)):
        with pytest.raises(UsageError, match="give features, but neither loss nor samples, since they have no output matrix"):
            use()
    for write in (write_huggingface, save_weights, write_onnx):
        with pytest.raises(UsageError, match="like a classifier's, have no output matrix"):
            write(tmp_path / "new", bare, greys)
    assert not (tmp_path / "new").exists()


def as_pickle(folder: Path, change: Callable[[dict[object, object]], object]) -> None:
    """Put changed tensors in place of a folder's, in the older format."""
    tensors: dict[object, object] = dict(load_tensors(folder / "model.safetensors")[0])
    change(tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"wte.weight": 2 * t["transformer.wte.weight"]}), "both with and without the prefix"),
        (lambda t: t.update({"transformer.wte.weight": torch.tensor(1.0)}), r"wte.weight has the shape \(\)"),
        (lambda t: t.update({"transformer.wte.weight": torch.empty(0, 16)}), r"wte.weight has the shape \(0, 16\)"),
        (lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].to_sparse()}), "are not dense"),
        (lambda t: t.update({3: torch.ones(1)}), "does not hold tensors by name"),
        (lambda t: t.update({"a": torch.nn.Linear}), r"is damaged \(it holds more than tensors by name\): copy it again$"),
    ],
    ids=["twice", "scalar", "empty", "sparse", "number", "class"],
)
def test_pickled_tensors_of_other_kinds_are_one_sentence(
    folder: Path, change: Callable[[dict[object, object]], object], message: str
) -> None:
    as_pickle(folder, change)
    with pytest.raises(UsageError, match=message) as caught:
        read_weights(str(folder))
    assert "\n" not in str(caught.value)


def in_shards(folder: Path, kind: str) -> Path:
    """Split a folder's weights into two shards, as transformers does; its index."""
    name, ending = ("model.safetensors", "safetensors") if kind == "safetensors" else ("pytorch_model.bin", "bin")
    tensors = {name: t.clone() for name, t in load_tensors(folder / "model.safetensors")[0].items()}
    (folder / "model.safetensors").unlink()
    places = {}
    for number in (1, 2):
        shard = f"{name.partition('.')[0]}-{number:05d}-of-00002.{ending}"
        part = {tensor: tensors[tensor] for tensor in sorted(tensors)[number - 1 :: 2]}
        save_tensors(folder / shard, part) if ending == "safetensors" else torch.save(part, folder / shard)
        places |= dict.fromkeys(part, shard)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "pickled"])
def test_shards_are_read_as_one(folder: Path, model: ImageGPT, tokens: torch.Tensor, kind: str) -> None:
    in_shards(folder, kind)
    assert torch.equal(read_huggingface(folder)(tokens), model(tokens))


def test_shards_of_their_library_are_read(folder: Path, model: ImageGPT, tokens: torch.Tensor, tmp_path: Path) -> None:
    theirs(folder).save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    assert torch.equal(read_huggingface(tmp_path / "saved")(tokens), model(tokens))


@pytest.mark.parametrize(
    "shard", ["../model-00001-of-00002.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "\x00", "config.json\n", 3, None]
)
def test_a_shard_that_is_no_file_beside_the_index_is_refused(folder: Path, shard: object) -> None:
    index = in_shards(folder, "safetensors")
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "lm_head.weight": shard}}))
    with pytest.raises(UsageError, match=r"names a shard that is no file beside it|weight_map is no list of files") as caught:
        read_huggingface(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\xff"])
def test_an_index_of_something_else_is_refused(folder: Path, content: str) -> None:
    in_shards(folder, "safetensors").write_text(content)
    with pytest.raises(UsageError, match=str(folder)) as caught:
        read_huggingface(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "pickled"])
def test_a_shard_that_is_missing_damaged_or_anothers_is_named(folder: Path, kind: str) -> None:
    index = in_shards(folder, kind)
    first, second = sorted(folder.glob("*-of-00002.*"))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=f"{second} holds other tensors than {index.name} says"):
        read_huggingface(folder)
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UsageError, match=f"{second} is a pointer of git-lfs"):
        read_huggingface(folder)
    second.write_bytes(kept[:-100])
    with pytest.raises(UsageError, match=f"{second} is damaged"):
        read_huggingface(folder)
    second.unlink()
    with pytest.raises(UsageError, match=f"lacks 1 of its 2 shards, {second.name} first: copy them too"):
        read_huggingface(folder)


@pytest.mark.parametrize("make", ["safetensors", "pickled"])
def test_a_model_outlives_its_file(folder: Path, model: ImageGPT, tokens: torch.Tensor, make: str) -> None:
    if make == "pickled":
        as_pickle(folder, lambda tensors: tensors.update({name: t.clone() for name, t in tensors.items()}))
    loaded = read_huggingface(folder)
    for path in folder.glob("*model*"):
        os.truncate(path, 0)  # a tensor that still lay in the file would end the process
    assert torch.equal(loaded(tokens), model(tokens))
