"""The dry run's expectations: hours of wall time, jobs in a row, and the stages that decide the whole."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from igpt.companion.experiments.costs import stage_hours
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.signature import Signature
from igpt.companion.slurm.batches import make_batches
from igpt.companion.slurm.dry_run import describe, expect
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage

LARGE = Stage.of("pretrain", model="igpt-l", objective="autoregressive", seed=0)
PROBE = Stage.of(
    "linear_probe",
    model="igpt-l",
    objective="autoregressive",
    dataset="cifar10",
    weights="trained",
    layers="all",
    precision="float32",
    views=5,
)
PROBES = [Stage.of("linear_probe", **PROBE.parameters, seed=seed) for seed in range(3)]
PALETTE = Stage.of("palette", seed=0)
DAY = Resources(gpus=8, minutes=1440)


def planned(stage: Stage, *parents: Stage) -> PlannedStage:
    parts = {f"parameter {name}": json.dumps(value) for name, value in stage.parameters.items()}
    return PlannedStage(stage, Signature(parts), parents, None)


def test_a_training_takes_its_hours_by_its_cards_in_as_many_jobs_as_its_limit_makes_of_it() -> None:
    profile = Profile(signal_seconds=120)
    hours = stage_hours(LARGE)
    for nodes, gpus, minutes in ((1, 8, 1440), (2, 8, 1440), (1, 1, 600)):
        found = expect(LARGE, Resources(nodes=nodes, gpus=gpus, minutes=minutes), profile)
        assert (found.gpu_hours, found.cards) == (hours, nodes * gpus)
        assert found.hours == pytest.approx(hours / nodes / gpus)
        usable = minutes * 60 - 120  # seconds, as the last two minutes are for the checkpoint
        assert (found.jobs - 1) * usable < 3600 * hours / nodes / gpus <= found.jobs * usable
    assert expect(LARGE, DAY, profile).text == "834.8 H100-hours on 8 cards, 104.3 hours, 5 jobs in a row"


def test_only_training_spreads_over_cards_and_what_has_no_price_is_unknown() -> None:
    assert expect(PROBES[0], Resources(gpus=4), Profile()).cards == 1
    assert expect(LARGE, Resources(gpus=0), Profile()).hours is None
    assert expect(PALETTE, Resources(gpus=1), Profile()).text == "time unknown"


def test_a_notebook_without_the_parameters_that_a_price_needs_has_an_unknown_time() -> None:
    unpriced = Stage.of("linear_probe", **{name: value for name, value in PROBE.parameters.items() if name != "layers"})
    assert expect(unpriced, Resources(gpus=1), Profile()).text == "time unknown"


def test_what_a_stage_takes_is_known_without_torch() -> None:
    program = f"""
import sys
from igpt.companion.slurm.dry_run import expect
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage
assert expect(Stage.of("pretrain", **{LARGE.parameters!r}), Resources(gpus=8), Profile()).hours
assert "torch" not in sys.modules  # whose import would take seconds of every submission
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_whole_takes_as_long_as_its_longest_chain() -> None:
    profile = Profile(at_once=2, stages={"default": Resources(gpus=1), "pretrain": DAY})
    todo = [planned(PALETTE), planned(LARGE, PALETTE), *(planned(probe, LARGE) for probe in PROBES)]
    training, probe = expect(LARGE, DAY, profile).hours, expect(PROBES[0], Resources(gpus=1), profile).hours
    assert training is not None
    assert probe is not None
    text = describe(profile, make_batches(todo, profile), {}, 2)
    whole = training + 2 * probe  # three probes, two of them at once
    assert (
        f"\nexpected wall time: {whole:.1f} hours and what the queue takes, beside 1 stage whose time is unknown; 7 jobs" in text
    )
    assert f" jobs in a row decide it: palette,seed=0, then {LARGE.name}, then {PROBES[2].name} (" in text
    assert text.endswith("0 stages queued or running, 2 finished; nothing was submitted")
    unknown = describe(profile, make_batches([planned(PALETTE)], profile), {}, 0)
    assert "\nexpected wall time: unknown\n" in unknown


def test_a_probe_that_reaches_its_time_limit_continues_in_the_next_job() -> None:
    profile = Profile(signal_seconds=10, stages={"default": Resources(gpus=1, minutes=10), "pretrain": DAY})
    found = expect(PROBES[0], profile.resources(PROBES[0]), profile)
    assert found.text == "0.3 H100-hours on 1 card, 0.3 hours, 2 jobs in a row"


def test_the_disk_of_an_array_is_that_of_its_stages() -> None:
    profile = Profile(stages={"default": Resources(gpus=1), "pretrain": DAY})
    assert expect(PROBES[0], DAY, profile).disk_gib == pytest.approx(49 * 60_000 * 1536 * 4 / 2**30)
    text = describe(profile, make_batches([planned(PROBES[0])], profile), {}, 0)
    assert "0.3 GPU-hours of an H100, 16.82 GiB of disk" in text


def test_nothing_to_submit_has_no_time() -> None:
    assert describe(Profile(), [], {}, 3) == (
        "0 jobs in 0 arrays, 0.0 GPU-hours of an H100, 0.00 GiB of disk; 0 stages queued or running, 3 finished;"
        " nothing was submitted"
    )
