"""The released tier as jobs of a real SLURM: weights, a probe and a fine-tuning, each once the one before stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from released_mirror import serving
from released_toy import make_toy, release

if TYPE_CHECKING:
    from slurm_checkout import Cluster

pytest_plugins = ("slurm_checkout",)
pytestmark = [pytest.mark.slow, pytest.mark.slurm]

CELLS = ("headline-001", "headline-009")  # iGPT-L's probe and its fine-tuning, on CIFAR-10
STAGES = ["fine_tune", "linear_probe", "weights"]


def test_cells_of_the_released_tier_run_as_jobs(cluster: Cluster, tmp_path: Path) -> None:
    from slurm_checkout import Checkout

    (tmp_path / "served").mkdir()
    release(tmp_path / "served")
    with serving(tmp_path / "served") as mirror:
        toy = make_toy(tmp_path / "checkout", mirror)
        checkout = Checkout(toy.root)
        checkout.git("init", "-q")
        checkout.commit()
        submit = ("submit", *CELLS, "--tier", "released", "--profile", checkout.profile())
        assert toy.igpt("data", "fetch", "cifar10").returncode == 0
        done = toy.igpt(*submit)
        assert done.stdout.startswith("3 jobs submitted"), done.stdout + done.stderr
        jobs = [stage.name for array in checkout.ledger.arrays() for stage in array.stages]
        assert sorted(name.partition(",")[0] for name in jobs) == STAGES
        for job in jobs:
            assert checkout.wait_for(job, "done", "failed", "cancelled", "lost").state == "done", checkout.logs()
        assert toy.igpt("collect").stdout.startswith("3 records collected")
        assert toy.igpt(*submit).stdout.startswith("nothing to submit: 3 of 3 stages finished")
