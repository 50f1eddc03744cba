"""What a run on weights that exist is given by this machine: what it holds, in which order, and what is left."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import WriteNotebook

from igpt.companion.experiments.costs import Disks, downloads, stage_hours
from igpt.companion.experiments.machines import GIB, H100, RTX_4090
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.run.budget import Budget, make_budget, on_existing_weights
from igpt.companion.run.command import _disk_of, run_targets
from igpt.companion.run.folder import finished_record
from igpt.companion.run.local import plan_stages
from igpt.companion.run.slots import Need, Slots, default_needs
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project
from igpt.train.recipes import recipe

SMALL, LARGE = (Stage.of("pretrain", model=f"igpt-{size}", objective="autoregressive", seed=0) for size in "sl")


def on(parent: Stage, notebook: str, dataset: str = "cifar10") -> Stage:
    """A stage on another's weights."""
    return Stage.of(notebook, dataset=dataset, **parent.parameters)


def planned(project: Project, *stages: Stage) -> list[PlannedStage]:
    """Stages to carry out; evaluations stand on the weights of their model."""
    signer, found = Signer(project.notebooks), []
    for stage in stages:
        full = signer.in_full(stage)
        parts = {f"parameter {name}": json.dumps(value) for name, value in full.parameters.items()}
        own = [other for other in (SMALL, LARGE) if other.parameters["model"] == stage.parameters["model"]]
        parents = tuple(other for other in own if other != stage)
        found.append(PlannedStage(stage, Signature(parts), parents, None))
    return found


PROBES = [on(SMALL, "linear_probe"), on(LARGE, "linear_probe")]
TUNES = [on(SMALL, "fine_tune"), on(LARGE, "fine_tune")]


def one_disk(free: float) -> Disks:
    """All folders on one disk."""
    return Disks(Path("runs"), lambda folder: (0, free))


MEMORY, ROOMY = 512 * GIB, one_disk(1e13)


def names(budget: Budget) -> list[str]:
    return [f"{p.stage.notebook} {p.stage.parameters['model']}" for p in budget.stages]


def test_the_cheapest_come_first_with_what_they_stand_on(project: Project) -> None:
    todo = planned(project, LARGE, SMALL, *PROBES, *TUNES)
    budget = make_budget(todo, [*PROBES, *TUNES], H100, memory=MEMORY, disks=ROOMY)
    assert not budget.skipped
    rank = budget.rank()
    order = sorted(rank, key=rank.__getitem__)
    assert order[:2] == [SMALL, PROBES[0]] or order[:2] == [PROBES[0], SMALL]
    assert order[2] == TUNES[0]
    assert set(order[3:5]) == {LARGE, PROBES[1]}
    assert order[5] == TUNES[1]
    assert rank[SMALL] == rank[PROBES[0]]  # the weights are fetched when the first that needs them has its turn
    whole = sum(stage_hours(p.in_full, H100) for p in todo)
    assert budget.total.hours == pytest.approx(whole)
    assert f"6 stages, about {whole:,.1f} hours one after the other (40% of the data sheet's" in budget.summary(
        8 * GIB, one_disk(5e9)
    )


def test_what_a_machine_cannot_hold_is_left_with_its_reason_and_so_is_what_stands_on_it(project: Project) -> None:
    todo = planned(project, LARGE, SMALL, *PROBES, *TUNES)
    budget = make_budget(todo, [*PROBES, *TUNES], RTX_4090, memory=MEMORY, disks=ROOMY)
    assert names(budget) == ["pretrain igpt-s", "linear_probe igpt-s", "fine_tune igpt-s"]
    assert budget.skipped[LARGE].startswith("it needs 23.2 GiB on the card")
    assert budget.skipped[PROBES[1]] == f"{LARGE.name} is skipped"


def test_weights_that_nothing_needs_any_more_are_not_fetched(project: Project) -> None:
    todo = planned(project, LARGE, SMALL, PROBES[0], TUNES[1])
    budget = make_budget(todo, [PROBES[0], TUNES[1]], H100, memory=MEMORY, disks=ROOMY).without(
        [TUNES[1]], "its data cannot be had"
    )
    assert names(budget) == ["pretrain igpt-s", "linear_probe igpt-s"]
    assert budget.skipped == {TUNES[1]: "its data cannot be had"}
    assert list(budget.datasets()) == ["imagenet", "cifar10"]  # of the training, and of the probe


def test_the_disk_has_to_hold_a_stage_and_what_it_stands_on(project: Project) -> None:
    todo = planned(project, SMALL, PROBES[0])
    together = make_budget(todo, [PROBES[0]], H100, memory=MEMORY, disks=ROOMY).total.room
    assert not make_budget(todo, [PROBES[0]], H100, memory=64 * GIB, disks=one_disk(together)).skipped
    short = make_budget(todo, [PROBES[0]], H100, memory=64 * GIB, disks=one_disk(together - 1))
    assert list(short.skipped) == PROBES[:1]
    assert not short.stages


def test_each_disk_has_to_hold_what_is_written_to_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_WEIGHTS", "/weights")
    monkeypatch.setenv("IGPT_DATA", "/data")
    weights = Stage.of("weights", model="igpt-s", weights="released")
    probe = Stage.of("linear_probe", model="igpt-s", dataset="cifar10", weights="released")
    todo = [replace(p, parents=(weights,) if p.stage == probe else ()) for p in planned(project, weights, probe)]
    size, [images] = 4 * recipe("igpt-s").shape.parameters, downloads(todo[1].in_full)
    features = 25 * 60_000 * 512 * 4

    def lent(**free: float) -> Disks:
        """A disk for each of the folders, with so many bytes free."""
        return Disks(Path("/runs"), lambda folder: (list(free).index(folder.parts[1]), free[folder.parts[1]]))

    enough = {"runs": size + features, "weights": size, "data": images.disk}
    budget = make_budget(todo, [probe], H100, memory=MEMORY, disks=lent(**enough))
    assert not budget.skipped
    said = budget.summary(MEMORY, lent(**enough))
    for name, free in enough.items():
        assert re.search(rf"{free / 1e9:.1f} GB of the disk of /{name}[\w/-]*, of which {free / 1e9:.1f} are free", said)
        left = make_budget(todo, [probe], H100, memory=MEMORY, disks=lent(**{**enough, name: free - 1})).skipped
        assert f"GB of the disk of /{name}" in left[probe if name != "weights" else weights]
        assert probe in left
    apart = make_budget(todo, [probe], H100, memory=MEMORY, disks=one_disk(sum(enough.values()) - 1)).skipped
    assert "GB of the disk of runs" in apart[probe]


def test_a_folder_that_is_to_be_lies_on_the_disk_of_the_one_that_is_there(tmp_path: Path) -> None:
    assert _disk_of(tmp_path / "runs" / "stage")[0] == tmp_path.stat().st_dev
    assert _disk_of(tmp_path)[1] > 0


def test_a_processor_gives_released_weights_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "IGPT_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    probe = Stage.of("linear_probe", model="igpt-s", dataset="cifar10", weights="released", seed=0)
    assert on_existing_weights([probe])
    assert not on_existing_weights([probe, PROBES[0]])
    assert default_needs(Slots(8))(probe) == Need(8)
    assert default_needs(Slots(8, ("0",)))(probe) == Need(8, 1)


WRITE = """
from igpt.companion.run import open_stage
stage = open_stage("{name}", dataset=dataset, weights=weights, seed=seed)
stage.write_record(values={{"answer": {{"value": 42.0, "unit": "none"}}}})
"""


def test_data_that_cannot_be_had_hold_up_their_own_stages_only(
    project: Project, write_notebook: WriteNotebook, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, dataset in (("here", "digits"), ("nowhere", "imagenet")):
        write_notebook(name, f'dataset = "{dataset}"\nweights = "released"\nseed = 0', WRITE.format(name=name))
    words = ["here,weights=released", "nowhere,weights=released"]
    with pytest.raises(UsageError, match=r"^ImageNet \(ILSVRC 2012\) may be had from its owner only"):
        run_targets(words, None, [])
    said = capsys.readouterr().err
    assert "igpt: 2 stages, about" in said
    assert (
        "igpt: skipped, since ImageNet (ILSVRC 2012) may be had from its owner only" in said
        and said.count(": nowhere,seed=0\n") == 1
    )
    [done] = plan_stages(project, [Stage.of("here")])
    assert finished_record(project, done.stage, done.signature) is not None
    assert run_targets(words[:1], None, []) == "nothing to run: 1 stage is fresh"


def test_what_cannot_be_held_is_refused_alone_and_left_beside_what_is_finished(
    project: Project, write_notebook: WriteNotebook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("here", 'dataset = "digits"\nweights = "released"\nseed = 0', WRITE.format(name="here"))
    large = "linear_probe,model=igpt-l,dataset=cifar10,weights=released"
    monkeypatch.setattr("igpt.companion.run.command.free_memory", lambda: 2.0 * GIB)
    with pytest.raises(
        UsageError, match=r"^this machine cannot hold weights,model=igpt-l.*: it needs [\d.]+ GiB of memory, and 2\.0"
    ):
        run_targets([large], None, [])
    assert not project.runs.exists()
    for ran in (1, 0):
        said = run_targets(["here,weights=released", large], None, [])
        assert said.startswith(f"{ran} stage{'s' * (not ran)} run, {1 - ran} fresh; 2 skipped: weights,model=igpt-l")
    assert ": linear_probe,dataset=cifar10,model=igpt-l,seed=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notebook", "parameter", "says"),
    [
        ("linear_probe", "precision=foo", r"^features are kept in float32 or float16, not 'foo': choose one of these$"),
        ("linear_probe", "precision=int8", r"^features are kept in float32 or float16, not 'int8': choose one of these$"),
        ("loss_against_probe", "precision=foo", r"^features are kept in float32 or float16, not 'foo': choose one of these$"),
        ("linear_probe", "layers=nonsense", r"^layers are 'nonsense', the model has layers 0 to 24: say all, or"),
        ("linear_probe", "layers=", r"^layers are '', the model has layers 0 to 24: say all, or"),
    ],
)
def test_a_parameter_that_cannot_be_priced_is_refused_in_a_sentence(
    notebook: str, parameter: str, says: str, project: Project
) -> None:
    with pytest.raises(UsageError, match=says):
        run_targets([notebook], None, ["weights=released", "model=igpt-s", "dataset=cifar10", parameter])
    assert not project.runs.exists()
