from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, random_model
from filelock import FileLock

from igpt.errors import StageError, UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train import engine, loop
from igpt.train.checkpoint import checkpoints, step_of
from igpt.train.engine import Stopped
from igpt.train.loop import draw_batch, evaluate_loss, pretrain, schedule, weights_name
from igpt.train.recipe import Recipe
from igpt.train.runtime import Runtime
from igpt.weights.own import load_tensors, load_weights, save_tensors, save_weights

RECIPE = Recipe(
    name="test",
    shape=ModelShape(1, 16, 2, 8, 9),
    dataset="digits",
    palette_colours=8,
    batch=8,
    steps=48,
    warmup=4,
    learning_rate=0.01,
)


def markov(images: int, positions: int = 9, *, seed: int = 0) -> torch.Tensor:
    """Images of a source with a known entropy: the next token is the last one plus 0 or 1, at 3 : 1, modulo 8."""
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.rand(images, positions, generator=generator) < 0.25).long()
    steps[:, 0] = torch.randint(8, (images,), generator=generator)
    return steps.cumsum(1) % 8


ENTROPY = (math.log(8) + 8 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))) / 9  # nats per token


def run(folder: Path, greys: Palette, recipe: Recipe = RECIPE, **kwargs: object) -> list[float]:
    losses = pretrain(
        recipe, markov(256), markov(64, seed=1), palette=greys, seed=3, folder=folder, **kwargs  # type: ignore[arg-type]
    )  # fmt: skip
    return [*losses.train, *losses.validation]


def test_the_schedule_warms_up_linearly_and_falls_as_a_cosine_to_zero() -> None:
    at = [schedule(step, steps=100, warmup=10) for step in range(100)]
    assert at[0] == pytest.approx(0.1)
    assert at[9] == at[10] == 1.0
    assert at[55] == pytest.approx(0.5)
    assert 0 < at[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(at[10:]))


def test_training_reaches_the_entropy_of_a_known_source(tmp_path: Path, greys: Palette) -> None:
    recipe = replace(RECIPE, shape=ModelShape(2, 32, 2, 8, 9), steps=600, batch=32)
    losses = pretrain(recipe, markov(20_000), markov(4000, seed=1), palette=greys, seed=0, folder=tmp_path)
    assert losses.validation[0] == pytest.approx(math.log(8), rel=1e-5)
    assert ENTROPY - 0.01 < losses.validation[-1] < ENTROPY + 0.03


def test_weights_are_kept_at_every_milestone(tmp_path: Path, greys: Palette) -> None:
    pretrain(RECIPE, markov(64), markov(16), palette=greys, seed=0, folder=tmp_path)
    steps = [3, 6, 12, 24, 48]
    assert steps == RECIPE.milestone_steps
    assert sorted(path.name for path in tmp_path.glob("weights-*")) == [weights_name(step) for step in steps]
    kept = [load_weights(tmp_path / weights_name(step))[0].wte for step in steps]
    assert not torch.equal(kept[-1], kept[-2])


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_training_goes_on_from_weights_with_a_fresh_optimiser_and_schedule(
    tmp_path: Path, greys: Palette, objective: str
) -> None:
    """Equal to the network trained by a loop of its own, from the loss before the first step on."""
    recipe = replace(RECIPE, shape=replace(RECIPE.shape, objective=objective), steps=6, milestones=(1,))
    start = random_model(recipe.shape)
    save_weights(tmp_path / "start", start, greys)
    tokens, held_out = markov(256), markov(64, seed=1)
    losses = pretrain(
        recipe, tokens, held_out, palette=greys, seed=3, folder=tmp_path / "run", begin_from=tmp_path / "start"
    )  # fmt: skip
    assert (losses.steps, losses.validation[0]) == ([0, 6], evaluate_loss(start, held_out))
    adam = torch.optim.Adam(start.parameters(), betas=recipe.betas, fused=True)
    for step in range(6):
        adam.param_groups[0]["lr"] = recipe.learning_rate * schedule(step, steps=6, warmup=4)
        adam.zero_grad()
        start.loss(*draw_batch(recipe, tokens, seed=3, step=step)).backward()
        adam.step()
    trained = load_weights(tmp_path / "run" / weights_name(6))[0].state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in start.state_dict().items())


class Stop(Exception):
    pass


@pytest.mark.parametrize("change", [{}, {"objective": "bert"}, {"biases": True}], ids=["autoregressive", "bert", "biases"])
@pytest.mark.parametrize("stop", [1, 3, 13, 47])
def test_an_interrupted_run_continues_to_the_same_losses_to_the_bit(
    tmp_path: Path, greys: Palette, change: dict[str, object], stop: int
) -> None:
    recipe = replace(RECIPE, shape=replace(RECIPE.shape, **change))  # type: ignore[arg-type]

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "interrupted", greys, recipe, report=interrupt)
    assert run(tmp_path / "interrupted", greys, recipe) == run(tmp_path / "whole", greys, recipe)
    ends = [load_weights(tmp_path / name / weights_name(48))[0].state_dict() for name in ("interrupted", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(tensor.any() for name, tensor in ends[0].items() if name.endswith("bias"))  # they were trained


KILLED = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
torch.set_num_threads(1)
import test_loop
from igpt.palette import Palette
import numpy as np
greys = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
def report(done, total): print(done, flush=True)
test_loop.run(Path({folder!r}), greys, report=report)
"""


@pytest.mark.slow
def test_a_run_killed_outright_continues_to_the_same_losses_to_the_bit(tmp_path: Path, greys: Palette) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(tmp_path / "whole", greys)
        for number, stop in enumerate((2, 7, 25)):
            folder = tmp_path / f"killed-{number}"
            code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= stop:
                    child.send_signal(signal.SIGKILL)
                    break
            child.stdout.close()
            assert child.wait(timeout=PATIENCE) in (-signal.SIGKILL, 0)
            assert run(folder, greys) == whole
    finally:
        torch.set_num_threads(threads)


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, greys: Palette) -> None:
    whole = run(tmp_path / "whole", greys)
    cut = tmp_path / "cut"
    run(cut, greys)
    newest, before = checkpoints(cut)[-1], checkpoints(cut)[-2]
    assert before.name < newest.name
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"checkpoint-0000048\.safetensors is damaged .* going on from the checkpoint before"):
        assert run(cut, greys) == whole
    assert newest.with_suffix(".damaged").exists()
    assert len(checkpoints(cut)) == 2  # the damaged one counts no more
    for path in checkpoints(cut):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UsageError, match="every checkpoint in .* is damaged, and was set aside"):
        run(cut, greys)
    assert run(cut, greys) == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["model.wte"].view(-1)[3:4].fill_(math.nan),
        lambda tensors: tensors["adam.wpe.exp_avg_sq"].view(-1)[0:1].fill_(math.inf),
        lambda tensors: tensors.update({"adam.wte.step": torch.tensor(48)}),
        lambda tensors: tensors.update({"model.wte": tensors["model.wte"].double()}),
        lambda tensors: tensors.update({"model.wte": tensors["model.wte"].half()}),
        lambda tensors: tensors.update({"model.wpe": tensors["model.wpe"][:-1].clone()}),
        lambda tensors: tensors.pop("model.sos"),
    ],
    ids=["NaN", "infinite moment", "int64 step", "float64", "float16", "shape", "missing"],
)
def test_a_checkpoint_of_nonsense_is_passed_over_for_the_one_before(
    tmp_path: Path, greys: Palette, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    whole = run(tmp_path, greys)
    newest = checkpoints(tmp_path)[-1]
    tensors, metadata = load_tensors(newest)
    change(tensors)
    save_tensors(newest, tensors, metadata)
    with pytest.warns(UserWarning, match=r"checkpoint-0000048\.safetensors is damaged .* going on from the checkpoint before"):
        assert run(tmp_path, greys) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"step": 47},
        {"step": "48"},
        {"good": 99},
        {"running": math.nan},
        {"window": ["1"]},
        {"losses": {"steps": [0], "train": [1.0], "validation": []}},
        {"losses": {"steps": [0], "train": [math.inf], "validation": [1.0]}},
        {"losses": []},
        {"metrics": "a"},
        {"metrics": ["a"]},
        {"metrics": [{"step": math.nan}]},
    ],
    ids=str,
)
def test_a_checkpoint_whose_progress_is_nonsense_is_passed_over(
    tmp_path: Path, greys: Palette, change: dict[str, object]
) -> None:
    whole = run(tmp_path, greys)
    newest = checkpoints(tmp_path)[-1]
    tensors, metadata = load_tensors(newest)
    metadata["progress"] = json.dumps({**json.loads(metadata["progress"]), **change})
    save_tensors(newest, tensors, metadata)
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        assert run(tmp_path, greys) == whole


def test_a_held_out_loss_that_is_no_number_is_never_kept(tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate_loss", lambda *args, **kwargs: math.nan)
    with pytest.raises(StageError, match="the held-out loss is NaN or infinite, at step 3"):
        run(tmp_path, greys)
    assert not list(tmp_path.glob("weights-*"))


@pytest.mark.parametrize("seed", range(20))
def test_a_checkpoint_with_a_byte_of_its_header_changed_never_crashes(tmp_path: Path, greys: Palette, seed: int) -> None:
    run(tmp_path, greys)
    path = checkpoints(tmp_path)[-1]
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(int.from_bytes(content[:8], "little") + 8)] ^= 255
    path.write_bytes(content)
    with warnings.catch_warnings(), contextlib.suppress(UsageError):
        warnings.simplefilter("ignore")
        run(tmp_path, greys)


def test_a_checkpoint_of_another_recipe_or_seed_is_refused(tmp_path: Path, greys: Palette) -> None:
    run(tmp_path, greys)
    with pytest.raises(UsageError, match="is of another recipe, seed or data: give another folder"):
        run(tmp_path, greys, replace(RECIPE, learning_rate=0.02))
    with pytest.raises(UsageError, match="is of another recipe, seed or data"):
        pretrain(RECIPE, markov(256), markov(64), palette=greys, seed=4, folder=tmp_path)
    with pytest.raises(UsageError, match="is of another recipe, seed or data"):
        pretrain(RECIPE, markov(256, seed=9), markov(64), palette=greys, seed=3, folder=tmp_path)


def test_two_runs_never_write_into_one_folder(tmp_path: Path, greys: Palette) -> None:
    with FileLock(tmp_path / ".training.lock"), pytest.raises(UsageError, match="another process trains in"):
        run(tmp_path, greys)


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_continues_to_the_same_losses(tmp_path: Path, greys: Palette) -> None:
    asked = iter([False] * 19 + [True])
    with pytest.raises(Stopped, match="stopped after 20 of 48 steps; the same command continues"):
        run(tmp_path / "stopped", greys, runtime=Runtime(stop=lambda: next(asked)))
    assert [path.name for path in checkpoints(tmp_path / "stopped")][-1] == "checkpoint-0000020.safetensors"
    assert run(tmp_path / "stopped", greys) == run(tmp_path / "whole", greys)


def test_checkpoints_are_written_by_the_clock_and_two_are_kept(tmp_path: Path, greys: Palette) -> None:
    run(tmp_path, greys, runtime=Runtime(minutes=0))
    assert [step_of(path) for path in checkpoints(tmp_path)] == [47, 48]


def test_a_run_that_diverges_goes_back_to_before_its_last_good_losses(
    tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=400, milestones=(0.4, 1))
    true_step = engine._Run._step

    def step(self: engine._Run, number: int) -> float:
        return true_step(self, number) + (9 if number >= 100 else 0)

    monkeypatch.setattr(engine._Run, "_step", step)
    with pytest.raises(
        StageError, match=r"the loss is .* nats, after .*, at step 150: the last good checkpoint is .*-0000100\.safe"
    ):
        run(tmp_path, greys, recipe, runtime=Runtime(minutes=0))
    assert [step_of(path) for path in checkpoints(tmp_path)] == [100]
    assert len(list(tmp_path.glob("*.diverged"))) == 2


def test_weights_that_are_no_numbers_are_never_kept(tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch) -> None:
    true_step = engine._Run._step

    def step(self: engine._Run, number: int) -> float:
        loss = true_step(self, number)
        if number == 11:  # the last one before a milestone
            with torch.no_grad():
                next(self.distributed.network.parameters())[0, 0] = math.nan
        return loss

    monkeypatch.setattr(engine._Run, "_step", step)
    with pytest.raises(StageError, match="the weights are NaN or infinite, at step 12: it came before the first good checkpoint"):
        run(tmp_path, greys)
    assert not (tmp_path / weights_name(12)).exists()
    assert checkpoints(tmp_path) == []


def test_a_stop_in_the_midst_of_a_milestone_loses_nothing(
    tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def stopped(*args: object, **kwargs: object) -> float:
            raise KeyboardInterrupt

        patch.setattr(loop, "evaluate_loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", greys)
    assert [step_of(path) for path in checkpoints(tmp_path / "cut")] == [3]
    assert run(tmp_path / "cut", greys) == run(tmp_path / "whole", greys)


def test_weights_under_a_milestones_name_are_whole(tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stopped(path: Path, text: str) -> None:
            raise KeyboardInterrupt

        patch.setattr("igpt.weights.own.write_text", stopped)  # after the tensors, before config.json
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", greys)
    assert [path.name for path in (tmp_path / "cut").iterdir() if "weights" in path.name] == []
    assert run(tmp_path / "cut", greys) == run(tmp_path / "whole", greys)
    kept = [sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).glob("weights-*/*")) for name in ("cut", "whole")]
    assert kept[0] == kept[1] and len(kept[0]) == 15


def test_a_loss_is_the_same_however_many_images_go_through_at_once(tmp_path: Path, greys: Palette) -> None:
    for objective in ("autoregressive", "bert"):
        model = ImageGPT(ModelShape(1, 16, 2, 8, 9, objective))  # type: ignore[arg-type]
        torch.nn.init.normal_(model.wtet)
        whole = evaluate_loss(model, markov(300))
        assert evaluate_loss(model, markov(300), at_once=7) == pytest.approx(whole, rel=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, greys: Palette) -> None:
    for objective in ("autoregressive", "bert"):
        recipe = replace(RECIPE, shape=replace(RECIPE.shape, objective=objective), steps=20)
        whole = run(tmp_path / f"{objective}-8", greys, recipe)
        for size in (1, 2, 4):
            found = run(tmp_path / f"{objective}-{size}", greys, recipe, runtime=Runtime(micro_batch=size))
            assert found == pytest.approx(whole, rel=1e-4)
    with pytest.raises(UsageError, match="a batch of 8 images cannot be cut into pieces of 3"):
        run(tmp_path / "3", greys, runtime=Runtime(micro_batch=3))


def test_half_precision_learns_the_same_source(tmp_path: Path, greys: Palette) -> None:
    recipe = replace(RECIPE, steps=200)
    full, half = (run(tmp_path / str(b), greys, recipe, runtime=Runtime(bfloat16=b)) for b in (False, True))
    assert half[-1] == pytest.approx(full[-1], abs=0.02)
    weights = load_weights(tmp_path / "True" / weights_name(200))[0]
    assert {p.dtype for p in weights.parameters()} == {torch.float32}


def test_the_metrics_are_one_line_a_window_and_survive_a_stop(tmp_path: Path, greys: Palette) -> None:
    recipe = replace(RECIPE, steps=160)
    asked = iter([False] * 119 + [True])
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", greys, recipe, runtime=Runtime(stop=lambda: next(asked)))
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 150, "loss": 9}\n{"step": 15')  # of steps that a kill took back
    run(tmp_path / "stopped", greys, recipe)
    run(tmp_path / "whole", greys, recipe)
    stopped, whole = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("stopped", "whole")
    )
    assert [line["step"] for line in stopped] == [50, 100, 150]
    assert [(line["loss"], line["rate"]) for line in stopped] == [(line["loss"], line["rate"]) for line in whole]


def lines(folder: Path) -> list[tuple[float, float, float]]:
    """What of a run's metrics is not the time that it took."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["rate"]) for line in found]


FULL = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from test_loop import *
torch.set_num_threads(1)
folder, greys = Path(sys.argv[1]), Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
recipe, fill = replace(RECIPE, steps=160), folder / "fill"

def stopped_after(steps):
    asked = iter([False] * (steps - 1) + [True])
    return Runtime(stop=lambda: next(asked))

def filling_at(step):
    def report(done, total):
        if done == step:
            with contextlib.suppress(OSError), fill.open("wb", buffering=0) as stream:
                while stream.write(b"x" * 512):
                    pass
    return report

with contextlib.suppress(Stopped):
    run(folder, greys, recipe, runtime=stopped_after(70))
for runtime, step in (Runtime(), 85), (Runtime(minutes=0), 103), (Runtime(), 155):
    try:
        run(folder, greys, recipe, runtime=runtime, report=filling_at(step))
    except StageError as error:
        print(error)
    print(*sorted(path.name for path in folder.glob("*.part")))
    fill.unlink()
found = run(folder, greys, recipe)
print(json.dumps([found, lines(folder)]))
"""


def test_a_full_disk_is_a_sentence_and_the_run_continues_to_the_bit(tmp_path: Path, greys: Palette) -> None:
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    unprivileged = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path / "small")]
    if shutil.which("unshare") is None or subprocess.run([*unprivileged, "true"], capture_output=True).returncode:
        pytest.skip("this system mounts no small disk without privileges (unshare -rm)")
    code = FULL.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [*unprivileged, sys.executable, "-c", code, str(tmp_path / "small")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    *said, found = done.stdout.splitlines()
    assert said[1::2] == ["", "", ""]
    for sentence, name in zip(said[::2], ("metrics.jsonl", "checkpoint-0000104.safetensors", "checkpoint-0000160"), strict=True):
        assert sentence.startswith(f"training stopped because {tmp_path / 'small' / name}"), sentence
        assert " could not be written (No space left on device): fix that " in sentence
        assert sentence.endswith("run the same command, which continues from the last checkpoint")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(tmp_path / "whole", greys, replace(RECIPE, steps=160))
    finally:
        torch.set_num_threads(threads)
    assert json.loads(found) == [whole, [list(line) for line in lines(tmp_path / "whole")]]


def test_a_loss_that_is_no_number_or_has_risen_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=400, milestones=(0.2, 1))
    true_step = engine._Run._step
    for name, fault, message in (("nan", math.nan, "the loss is NaN or infinite, at step 91"), ("rise", 90.0, "after")):

        def step(self: engine._Run, number: int, fault: float = fault) -> float:
            loss = true_step(self, number)
            return fault if number >= 90 else loss

        monkeypatch.setattr(engine._Run, "_step", step)
        with pytest.raises(StageError, match=message) as caught:
            run(tmp_path / name, greys, recipe)
        # The milestone at step 80 lies after the last good window, which ended at step 50.
        assert "it came before the first good checkpoint" in str(caught.value)
        assert (tmp_path / name / "checkpoint-0000080.diverged").exists()


def test_tokens_of_another_size_are_refused(tmp_path: Path, greys: Palette) -> None:
    with pytest.raises(UsageError, match="the tokens have 4 positions, test 9: tokenise at another resolution"):
        pretrain(RECIPE, markov(16, 4), markov(4, 4), palette=greys, seed=0, folder=tmp_path)


def test_arrays_and_tensors_train_alike(tmp_path: Path, greys: Palette) -> None:
    train, validation = markov(256).numpy().astype(np.uint16), markov(64, seed=1).numpy()
    arrays = pretrain(RECIPE, train, validation, palette=greys, seed=3, folder=tmp_path / "a")
    assert [*arrays.train, *arrays.validation] == run(tmp_path / "b", greys)


def test_the_seed_decides_the_batches(tmp_path: Path, greys: Palette) -> None:
    ends = []
    for seed in (3, 4):
        losses = pretrain(RECIPE, markov(256), markov(64), palette=greys, seed=seed, folder=tmp_path / str(seed))
        ends.append(losses.validation[-1])
    assert ends[0] != ends[1]


def test_the_validation_loss_counts_every_image_once() -> None:
    model = ImageGPT(ModelShape(1, 16, 2, 8, 9), seed=0)
    with torch.no_grad():
        model.wtet.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    tokens = markov(50)
    assert evaluate_loss(model, tokens, at_once=7) == pytest.approx(model.loss(tokens).item(), rel=1e-6)
