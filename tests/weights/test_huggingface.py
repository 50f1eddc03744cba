"""Hugging Face's folders, against the real library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.sample import complete
from igpt.weights.huggingface import is_huggingface, read_huggingface, write_huggingface
from igpt.weights.own import load_tensors, save_tensors
from igpt.weights.read import read_weights


@pytest.fixture
def folder(model: ImageGPT, tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "hf", model)
    return tmp_path / "hf"


def theirs(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    loaded, report = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder, output_loading_info=True)
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


def test_biases_that_are_not_zero_are_refused(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = 0.5
    save_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(UsageError, match=r"biases that are not zero \(layer 1\)"):
        read_huggingface(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")[0]
    del tensors["transformer.h.0.attn.c_attn.weight"]
    save_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(UsageError, match=r"lacks the tensor 'h\.0\.attn\.c_attn\.weight'"):
        read_huggingface(folder)


@pytest.mark.parametrize("change", [{"n_head": 3}, {"n_head": 0}, {"n_layer": "2"}, {"n_embd": None}, {"vocab_size": 4}])
def test_a_config_that_does_not_fit_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=r"does not describe an Image GPT|holds other tensors"):
        read_huggingface(folder)


@pytest.mark.parametrize("change", [{"activation_function": "gelu"}, {"tie_word_embeddings": True}])
def test_a_model_of_another_kind_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match="another model than the released one"):
        read_huggingface(folder)


def test_bert_weights_are_not_exported(bert: ImageGPT, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transformers has no Image GPT with BERT's objective"):
        write_huggingface(tmp_path / "hf", bert)
    assert not (tmp_path / "hf").exists()
