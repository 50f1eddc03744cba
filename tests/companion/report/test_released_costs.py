"""The table of what the released tier takes, and what the readme says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from conftest import ROOT
from pytest import approx

from igpt.companion.experiments.cells import declared_stages, experiments
from igpt.companion.experiments.costs import Cost, run_hours, run_room, stage_cost, with_parents
from igpt.companion.experiments.machines import GIB, RTX_4090, Card, many_cores
from igpt.companion.report.costs import released_costs
from igpt.companion.report.numbers import number
from igpt.companion.results.signature import Signer
from igpt.companion.run.targets import find_stages
from igpt.companion.stage import Stage
from igpt.project import Project

PROJECT = Project(ROOT)
README = (ROOT / "README.md").read_text()


def hours(stages: Iterable[Stage]) -> float:
    """Hours of an H100 for stages and all that they depend on."""
    return sum(run_hours(with_parents(stages, Signer(PROJECT.notebooks).in_full)))


def about(said: str, stages: Iterable[Stage]) -> bool:
    """Whether hours are stages', within a tenth."""
    return abs(float(said) / hours(stages) - 1) < 0.1


def test_the_table_has_every_stage_once() -> None:
    *rows, whole = released_costs(PROJECT).rows
    stages = with_parents(declared_stages("released"), Signer(PROJECT.notebooks).in_full)
    assert sum(int(row[2].text) for row in rows) == int(whole[2].text) == len(stages)
    fetched, disk = run_room(stages)
    assert whole[4].text == f"{disk / 1e9:,.1f}"  # as a plan says it where nothing is at hand
    assert 1e9 * max(float(row[4].text.replace(",", "")) for row in rows) < disk < 1.5e11
    assert whole[3].text == f"{sum(each.bytes for each in fetched) / 1e9:,.1f}+"
    assert whole[5].text == f"{float(f'{hours(stages):.2g}'):,.10g}"


def test_the_readme_says_what_one_card_reproduces_as_it_is_declared_and_priced() -> None:
    runs = [run for experiment in experiments() if (run := experiment.measurement("released"))]
    untuned = [run for run in runs if all(stage.notebook != "fine_tune" for stage in run.stages())]
    sentence = r"(\d+) of the (\d+) published numbers .* the (\d+) outside the fine-tuning tables take about (\d+) hours, all about (\d+)"
    (found,) = re.findall(sentence, " ".join(README.split()))
    assert list(found[:3]) == [
        *(number(f"fact {name}.numbers", PROJECT).text for name in ("released", "published")),
        str(len(untuned)),
    ]
    assert about(found[3], [stage for run in untuned for stage in run.stages()])
    assert about(found[4], declared_stages("released"))


def cost(stages: Iterable[Stage], card: Card) -> Cost:
    """What stages and all that they depend on take of a card."""
    return sum((stage_cost(stage, card) for stage in with_parents(stages, Signer(PROJECT.notebooks).in_full)), Cost())


def test_the_readme_says_what_a_consumers_card_and_a_laptop_can_do() -> None:
    sentences = (
        r"`headline-001` downloads ([\d.]+) GB and takes about ([\d.]+) hours of an RTX 4090 \(([\d.]+) GiB of its memory,"
        r" ([\d.]+) GiB of the machine's\).*takes about ([\d.]+) hours of (\d+) cores, ([\d.]+) GiB of memory and a download"
        r" of ([\d.]+) GB"
    )
    (found,) = re.findall(sentences, " ".join(README.split()))
    download, hours, card, memory, slow, cores, small, little = map(float, found)
    one = cost(find_stages(["headline-001"], "released", PROJECT), RTX_4090)
    probe = Stage.of("linear_probe", model="igpt-s", weights="released", dataset="cifar10")
    laptop = cost([probe], many_cores(int(cores)))
    assert (download, hours, card, memory) == approx(
        (sum(each.bytes for each in one.downloads) / 1e9, one.hours, one.card / GIB, one.memory / GIB), rel=0.1
    )
    assert (slow, small, little) == approx(
        (laptop.hours, laptop.memory / GIB, sum(each.bytes for each in laptop.downloads) / 1e9), rel=0.1
    )
