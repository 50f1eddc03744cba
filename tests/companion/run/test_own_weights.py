"""A user's own weights: from a path to a name, and from a name to an evaluation."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, WriteNotebook, igpt, igpt_here, random_model
from safetensors.torch import load_file, save_file

from igpt.companion.results.signature import Signer
from igpt.companion.results.store import ReaderStore
from igpt.companion.run.own_weights import own_path, resolve_weights, share_names
from igpt.companion.run.verify import verify_record
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import file_sha256
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.recipes import recipe
from igpt.weights import existing
from igpt.weights.huggingface import read_huggingface, write_huggingface
from igpt.weights.own import load_weights, released_palette, save_tensors, save_weights
from igpt.weights.processor import NESTED, PROCESSOR

SHAPE = ModelShape(2, 16, 2, 16, 64)  # eight pixels a side, as the digits are
CUSTOM = "custom-2x16x2-16-64"
FIXTURES = ROOT / "tests" / "weights" / "released_format"
PARAMETERS = ('model = "tiny-s"  # a', 'objective = "autoregressive"  # b', 'dataset = "digits"  # c', "seed = 0  # d")
EVALUATE = "\n".join((*PARAMETERS, 'weights = "trained"  # e'))


@pytest.fixture
def shades() -> Palette:
    """Sixteen greys."""
    return Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])


@pytest.fixture
def folder(tmp_path: Path, shades: Palette) -> Path:
    """A user's folder of weights, with a name that could not be one of a stage."""
    save_weights(tmp_path / "my weights, v=2", random_model(SHAPE), shades)
    return tmp_path / "my weights, v=2"


@pytest.fixture
def evaluate(project: Project, write_notebook: WriteNotebook) -> None:
    """A notebook that evaluates weights, whichever they are."""
    write_notebook(
        "evaluate",
        EVALUATE,
        "from igpt.measure import number\n"
        "from igpt.companion.run import open_stage\n"
        "from igpt.train.recipes import recipe\n"
        "from igpt.weights.own import load_weights\n"
        'stage = open_stage("evaluate", model=model, objective=objective, dataset=dataset, seed=seed, weights=weights)\n'
        "network, palette = load_weights(stage.weights(), recipe(model, objective).shape)\n"
        'stage.write_record({"sum": number(float(network.wtet.sum()), "none")});',
    )


def settled(project: Project, weights: object, notebook: str = "evaluate", **given: object) -> dict[str, object]:
    """The parameters of a stage once its weights have their name."""
    return dict(resolve_weights(project, Stage.of(notebook, weights=str(weights), **given)).parameters)  # type: ignore[arg-type]


def refused(project: Project, weights: object, notebook: str = "evaluate", **given: object) -> str:
    """The one sentence that says why weights are not taken."""
    with pytest.raises(UsageError) as caught:
        settled(project, weights, notebook, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("evaluate")
def test_a_path_becomes_a_name_of_the_folder_and_its_content(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settled(project, folder)
    assert (found["model"], found["objective"]) == (CUSTOM, "autoregressive")
    name = str(found["weights"])
    assert re.fullmatch(r"my-weights-v-2-[0-9a-f]{12}", name)
    assert settled(project, name) == settled(project, name, model=CUSTOM) == found
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert settled(project, folder.name) == settled(project, f"~/{folder.name}") == found
    assert own_path(project, name) == folder
    Signer(project.notebooks).sign(Stage.of("evaluate", **found))  # type: ignore[arg-type]


@pytest.mark.usefixtures("evaluate")
def test_the_same_weights_elsewhere_are_the_same_and_others_are_not(project: Project, folder: Path, shades: Palette) -> None:
    name = settled(project, folder)["weights"]
    moved = folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UsageError, match=f"the weights called {name} are no longer at .*: give the place where they are"):
        own_path(project, str(name))
    shutil.copytree(moved, folder)
    other = Palette(shades.centres * np.float32(0.5))
    save_weights(folder, random_model(SHAPE), other)  # the colours decide too
    with pytest.raises(UsageError, match="have changed since they were called"):
        own_path(project, str(name))
    changed = settled(project, folder)["weights"]
    assert changed != name
    assert str(settled(project, moved)["weights"])[-12:] == str(name)[-12:]
    shutil.rmtree(folder)
    shutil.copytree(moved, folder)
    assert settled(project, folder)["weights"] == name and own_path(project, str(name)) == folder


@pytest.mark.usefixtures("evaluate")
@pytest.mark.parametrize("file", [PROCESSOR, NESTED])
def test_colours_are_part_of_what_weights_are_in_whichever_file_they_stand(project: Project, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "theirs"
    write_huggingface(folder, random_model(SHAPE))
    names = []
    for width in (1.0, 0.5):
        processor = {"clusters": np.linspace([-width] * 3, [width] * 3, 16).tolist()}
        (folder / file).write_text(json.dumps({"image_processor": processor} if file == NESTED else processor))
        names.append(settled(project, folder, dataset="cifar10")["weights"])
    assert names[0] != names[1]


@pytest.mark.usefixtures("evaluate")
def test_every_make_is_taken(project: Project, tmp_path: Path, shades: Palette) -> None:
    model = random_model(SHAPE)
    write_huggingface(tmp_path / "theirs", model)
    shades.save(tmp_path / "theirs" / "palette.npy")
    assert settled(project, tmp_path / "theirs")["model"] == CUSTOM
    for objective in ("autoregressive", "bert"):
        shutil.copytree(FIXTURES / objective, tmp_path / objective)
        found = settled(project, tmp_path / objective / "model.ckpt-1000000", dataset="cifar10")
        assert found["objective"] == objective and str(found["weights"]).startswith(f"{objective}-")
        assert re.fullmatch(r"custom-3x32x4-512-36", str(found["model"]))


@pytest.mark.usefixtures("evaluate")
@pytest.mark.parametrize("make", ["theirs", "ours"])
def test_weights_with_biases_have_a_model_of_their_own_name(project: Project, tmp_path: Path, shades: Palette, make: str) -> None:
    shape = replace(recipe("tiny-m").shape, biases=True)
    write = write_huggingface if make == "theirs" else save_weights
    write(tmp_path / "biased", random_model(shape), shades)
    found = settled(project, tmp_path / "biased")
    assert found["model"] == "custom-3x24x2-16-64-biases" and recipe(str(found["model"])).shape == shape
    assert settled(project, str(found["weights"])) == found
    assert "holds weights of custom-3x24x2-16-64-biases, autoregressive, and model is tiny-m: leave model out" in refused(
        project, tmp_path / "biased", model="tiny-m"
    )
    path = own_path(project, str(found["weights"]))
    assert existing.own_weights(path, shape, str(found["weights"])).network.shape == shape


@pytest.mark.usefixtures("evaluate")
def test_a_training_is_its_last_milestone_and_none_in_its_midst(project: Project, tmp_path: Path, shades: Palette) -> None:
    run = tmp_path / "run"
    for step in (4, 12):
        save_weights(run / f"weights-{step:07d}", random_model(SHAPE), shades)
    assert settled(project, run) == settled(project, run / "weights-0000012")
    state = {f"model.{name}": tensor for name, tensor in random_model(SHAPE).state_dict().items()}
    identity = f"{json.dumps({'shape': SHAPE.as_dict()})} {shades.digest} seed 0"
    save_tensors(run / "checkpoint-0000015.safetensors", state, {"run": identity})
    assert "holds a training that has not ended, and a record's weights must not change: give one" in refused(project, run)


@pytest.mark.usefixtures("evaluate")
def test_a_shape_that_a_recipe_has_is_called_by_it(project: Project, tmp_path: Path, shades: Palette) -> None:
    for objective in ("autoregressive", "bert"):
        shape = recipe("tiny-m", objective).shape  # type: ignore[arg-type]  # one of two
        save_weights(tmp_path / objective, random_model(shape), shades)
        assert settled(project, tmp_path / objective) | {"weights": ""} == {
            "model": "tiny-m", "objective": objective, "weights": ""
        }  # fmt: skip
    assert "holds weights of tiny-m, bert, and objective is autoregressive: leave objective out, or give bert" in refused(
        project, tmp_path / "bert", objective="autoregressive"
    )
    assert "and model is igpt-s: leave model out, or give tiny-m" in refused(project, tmp_path / "bert", model="igpt-s")


@pytest.mark.usefixtures("evaluate")
def test_weights_that_a_notebook_or_its_data_cannot_take_are_refused(
    project: Project, folder: Path, tmp_path: Path, shades: Palette
) -> None:
    both = "reads grey images of 8 x 8 pixels, and cifar10 has colour images of 32 x 32 pixels: choose another data set"
    assert both in refused(project, folder, dataset="cifar10")
    shutil.copytree(FIXTURES / "autoregressive", tmp_path / "theirs")
    assert "reads colour images of 6 x 6 pixels, and digits has grey images of 8 x 8" in refused(
        project, tmp_path / "theirs" / "model.ckpt-1000000"
    )
    save_weights(tmp_path / "small", random_model(replace(SHAPE, n_vocab=512)), released_palette())
    for notebook, given in (("evaluate", {"dataset": "imagenet-tokens"}), ("released_loss", {})):
        assert "imagenet-tokens are tokens of 32 x 32 pixels in the released ones: choose a data set of pictures" in refused(
            project, tmp_path / "small", notebook, **given
        )
    save_weights(tmp_path / "large", random_model(replace(SHAPE, n_ctx=100)), shades)
    assert "reads grey images of 10 x 10 pixels, and digits has grey images of 8 x 8" in refused(project, tmp_path / "large")
    save_weights(tmp_path / "long", random_model(replace(SHAPE, n_ctx=65)), shades)
    assert "has 65 positions" in refused(project, tmp_path / "long")


def test_some_notebooks_take_no_weights_of_one_step_or_of_bert(
    project: Project, folder: Path, tmp_path: Path, shades: Palette, write_notebook: WriteNotebook
) -> None:
    for name in ("loss_against_probe", "samples"):
        write_notebook(name, 'model = "tiny-s"\ndataset = ""\nweights = "trained"', "")
    assert "compares the weights after several steps, and" in refused(project, folder, "loss_against_probe")
    assert "not known on which images" in refused(project, folder, "samples")
    assert settled(project, folder, "samples", dataset="digits")["model"] == CUSTOM
    save_weights(tmp_path / "bert", random_model(replace(SHAPE, objective="bert")), shades)
    assert "notebook samples is for autoregressive weights" in refused(project, tmp_path / "bert", "samples", dataset="digits")


@pytest.mark.usefixtures("evaluate")
def test_a_word_that_names_no_weights_is_answered_by_what_was_meant(project: Project, folder: Path, tmp_path: Path) -> None:
    assert "there are no weights 'releases'; did you mean released, or give a folder, or a" in refused(project, "releases")
    name = str(settled(project, folder)["weights"])
    assert f"did you mean {name}" in refused(project, f"{name[:-1]}/")
    assert "was not released after 5 steps" in refused(project, "igpt-s@5")
    assert "tiny-l names a recipe: give model=tiny-l, and leave weights out" in refused(project, "tiny-l")
    assert "igpt-xl names a recipe" in refused(project, "igpt-xl")
    assert "there are no weights ''" in refused(project, "")
    shutil.copytree(FIXTURES / "bert", tmp_path / "checkpoints")
    one = tmp_path / "checkpoints" / "model.ckpt-1000000"
    assert f"holds TensorFlow checkpoints: give the path of one, such as {one}" in refused(project, one.parent)
    assert f"{one}.index is a file: give the folder" in refused(project, f"{one}.index")
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused(project, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    assert f"{folder} lacks 1 of the files of its weights, model.safetensors first: copy them too" in refused(project, folder)


@pytest.mark.usefixtures("evaluate")
def test_a_registration_that_is_damaged_or_elsewhere_says_so(project: Project, folder: Path) -> None:
    name = str(settled(project, folder)["weights"])
    [place] = (project.runs / "weights").glob("*.json")
    place.write_text(json.dumps({"path": 1}))
    assert "is damaged" in refused(project, name) and "delete it, and give the weights' folder again" in refused(project, name)
    place.unlink()
    whole = {"model": CUSTOM, "objective": "autoregressive", "weights": name}
    assert settled(project, name, model=CUSTOM, objective="autoregressive") == whole  # as the name of a stage elsewhere
    with pytest.raises(UsageError, match=f"no weights are registered here as {name}: give their folder again"):
        own_path(project, name)


@pytest.mark.usefixtures("evaluate")
def test_jobs_in_a_shared_folder_know_the_names_too(project: Project, folder: Path, tmp_path: Path) -> None:
    name = str(settled(project, folder)["weights"])
    for home in (project, Project(tmp_path / "shared")):
        share_names(project, home)
        assert own_path(home, name) == folder


def test_released_weights_are_of_the_models_that_were_released(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("evaluate", EVALUATE, "")
    assert settled(project, "released", model="igpt-l", objective="bert", dataset="cifar10") == {
        "model": "igpt-l", "objective": "bert", "weights": "released", "dataset": "cifar10"
    }  # fmt: skip
    assert "OpenAI released no autoregressive weights of tiny-s: choose one of igpt-s" in refused(project, "released")
    assert "no weights of igpt-s after 65,000 steps" in refused(project, "released", "weights", step=65_000)
    assert "takes weights that exist, not trained" in refused(project, "trained", "weights")


def test_released_weights_are_held_against_the_data_before_they_are_fetched(
    project: Project, write_notebook: WriteNotebook
) -> None:
    write_notebook("evaluate", EVALUATE, "")
    assert refused(project, "released", model="igpt-m", dataset="digits") == (
        "OpenAI's igpt-m reads colour images of 32 x 32 pixels, and digits has grey images of 8 x 8 pixels: choose another data"
        " set"
    )
    for dataset in ("cifar10", "stl10", "imagenet-tokens", "a typo, which the plan refuses"):
        assert settled(project, "released", model="igpt-m", dataset=dataset)["dataset"] == dataset


def test_a_released_models_name_means_its_parameters(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("evaluate", EVALUATE, "")
    signer, pictures = Signer(project.notebooks), {"dataset": "cifar10"}
    for word, objective in (("igpt-m", "autoregressive"), ("igpt-m@1000000", "autoregressive"), ("igpt-m-bert", "bert")):
        named = resolve_weights(project, Stage.of("evaluate", weights=word, **pictures))
        meant = Stage.of("evaluate", weights="released", model="igpt-m", objective=objective, **pictures)
        assert signer.canonical(named) == signer.canonical(meant)
        assert resolve_weights(project, named) == named
        assert settled(project, word, model="igpt-m", objective=objective, **pictures) == named.parameters
    assert not (project.runs / "weights").exists()


def test_a_released_models_step_is_one_of_the_notebooks(project: Project, write_notebook: WriteNotebook) -> None:
    steps = {"model": "igpt-s", "weights": "released"}
    both = {**steps, "objective": "bert"}
    assert settled(project, "igpt-s-bert@131000", "weights") == {**both, "step": 131_000}
    assert settled(project, "igpt-s@262000", "released_loss") == {**steps, "step": 262_000}
    assert settled(project, "igpt-s", "released_loss", step=524_000) == {**steps, "step": 524_000}
    assert refused(project, "igpt-s@131000", "weights", step=262_000).endswith("leave step out, or give 131000")
    write_notebook("samples", 'model = "tiny-s"\ndataset = ""\nweights = "trained"', "")
    assert settled(project, "igpt-s", "samples", dataset="cifar10") == {**steps, "dataset": "cifar10"}
    said = refused(project, "igpt-s@131000", "samples")
    assert said == "notebook samples takes weights after their last step, and igpt-s@131000 names others: give igpt-s"
    assert "samples is for autoregressive weights, and igpt-s-bert names BERT's" in refused(project, "igpt-s-bert", "samples")


def test_a_released_models_name_contradicts_other_parameters(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("evaluate", EVALUATE, "")
    said = "igpt-s holds weights of igpt-s, autoregressive, and {}: leave {} out, or give {}"
    assert refused(project, "igpt-s", model="igpt-m") == said.format("model is igpt-m", "model", "igpt-s")
    assert refused(project, "igpt-s", model=CUSTOM) == said.format(f"model is {CUSTOM}", "model", "igpt-s")
    assert refused(project, "igpt-s", objective="bert") == said.format("objective is bert", "objective", "autoregressive")
    assert "OpenAI's igpt-s reads colour images of 32 x 32 pixels, and digits has grey" in refused(project, "igpt-s")


def test_a_published_models_name_registers_its_folder(
    project: Project, tmp_path: Path, shades: Palette, write_notebook: WriteNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook("evaluate", EVALUATE, "")
    monkeypatch.setenv("IGPT_ROOT", str(project.root))  # whose published models come first
    save_weights(project.models / "tiny-m", random_model(recipe("tiny-m").shape), shades)
    found = settled(project, "tiny-m")
    name = str(found["weights"])
    assert re.fullmatch("tiny-m-[0-9a-f]{12}", name)
    assert found == {"model": "tiny-m", "objective": "autoregressive", "weights": name}
    assert settled(project, name) == settled(project, "tiny-m", model="tiny-m") == found
    assert own_path(project, name) == project.models / "tiny-m"
    assert "tiny-m holds weights of tiny-m, autoregressive, and model is tiny-s" in refused(project, "tiny-m", model="tiny-s")
    shutil.copytree(project.models / "tiny-m", tmp_path / "elsewhere" / "tiny-m")
    assert settled(project, tmp_path / "elsewhere" / "tiny-m") == found  # the same files, so the same weights


def test_the_packages_model_can_be_given_by_its_name(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("evaluate", EVALUATE, "")
    found = settled(project, "laptop-l", dataset="cifar10")
    assert found["model"] == "laptop-l" and re.fullmatch("laptop-l-[0-9a-f]{12}", str(found["weights"]))
    assert "laptop-l reads colour images of 16 x 16 pixels, and digits has grey" in refused(project, "laptop-l")


@pytest.mark.parametrize("word", ["igpt-s", "laptop-l"])
def test_a_folder_that_is_called_as_weights_are_is_meant_by_its_path(
    project: Project, folder: Path, write_notebook: WriteNotebook, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    write_notebook("evaluate", EVALUATE, "")
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.with_name(word))
    assert f"{word} names weights, and something in this folder is called so too: give weights=./{word}" in refused(project, word)
    assert settled(project, f"./{word}")["model"] == CUSTOM


def test_a_model_that_is_nobodys_recipe_wants_weights(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("evaluate", EVALUATE, "")
    assert refused(project, "trained", model=CUSTOM).endswith("no recipe trains: give weights=FOLDER too, or another model")
    write_notebook("train", 'model = "tiny-s"', "")
    with pytest.raises(UsageError, match=f"{CUSTOM} is the shape of somebody's own weights, .*: choose another model"):
        resolve_weights(project, Stage.of("train", model=CUSTOM))


@pytest.mark.usefixtures("evaluate")
@pytest.mark.parametrize("make", ["safetensors", "bin"])
def test_a_classifiers_weights_are_refused_at_once(project: Project, tmp_path: Path, shades: Palette, make: str) -> None:
    folder = tmp_path / "classifier"
    write_huggingface(folder, random_model(SHAPE), shades)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors.pop("lm_head.weight")[:10]
    (folder / "model.safetensors").unlink()
    if make == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    said = refused(project, folder)
    assert f"{folder} holds weights without an output matrix" in said and "give those of a generative model" in said
    assert not (project.runs / "weights").exists()
    assert read_huggingface(folder).wtet is None  # of which features can be read


@pytest.mark.usefixtures("evaluate")
def test_a_folder_is_read_once_as_long_as_it_is_the_same(project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(existing, "file_sha256", counted)
    name = str(settled(project, folder)["weights"])
    for _ in range(3):
        assert settled(project, folder)["weights"] == name and own_path(project, name) == folder
    assert len(read) == 3
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text(f"{content} ")
    assert settled(project, folder)["weights"] != name


def test_a_typo_ends_in_a_sentence_before_anything_starts(project: Project, folder: Path) -> None:
    for weights, said in (("releases", "did you mean released"), (str(folder.parent / "none"), "there are no weights")):
        done = igpt_here("run", "weights", "-p", f"weights={weights}", root=project.root)
        assert done.returncode == 2 and said in done.stderr and not list(project.runs.glob("*,*"))


@pytest.mark.slow
@pytest.mark.usefixtures("evaluate")
def test_own_weights_are_evaluated_by_their_name_and_stay_out_of_the_book(project: Project, folder: Path) -> None:
    done = igpt("run", "evaluate", "-p", f"weights={folder.name}", root=folder.parent, IGPT_ROOT=str(project.root))
    assert done.returncode == 0, done.stderr
    name = str(settled(project, folder)["weights"])
    store = ReaderStore(project, project.runs)
    found = store.read(Stage.of("evaluate", model=CUSTOM, weights=name))
    assert found is not None
    assert found.values["sum"].value == pytest.approx(float(random_model(SHAPE).wtet.detach().sum()))
    kept = store.read(Stage.of("weights", model=CUSTOM, weights=name))
    assert kept is not None and kept.values["parameters"].value == SHAPE.parameters
    assert {str(row["name"]) for row in kept.series["files"]} == {"config.json", "model.safetensors", "palette.npy"}
    assert kept.series["source"] == [{"address": name}]
    assert not list(project.records.rglob("*.json"))
    [path] = project.runs.glob("evaluate,*/record.json")
    assert "Repeated here, its 1 values came out: 1 the same." in verify_record(path, repeat=True)[0]
    [converted] = project.runs.glob("weights,*/weights-*")
    assert torch.equal(load_weights(converted, SHAPE)[0].wtet, random_model(SHAPE).wtet)
    shutil.rmtree(folder)
    done = igpt_here("run", f"evaluate,weights={name}", root=project.root)
    assert done.returncode == 0 and "nothing to run" in done.stdout  # the conversion stands by itself
