"""Machines that stages are priced on: what one does in a second, as its data sheet states or as measured here, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache

from igpt.companion.experiments.work import Rates
from igpt.machine import cores
from igpt.train.cost import CORES_FLOPS, UTILISATION

GIB = 2**30
BANDWIDTH = 0.50  # of a data sheet's, that solving a probe reaches: assumed
CORES_MEASURED = 2


@dataclass(frozen=True)
class Card:
    """One card, or the cores of a processor.

    title : as tables head its column; "here" for this machine
    gib : of a card's own memory; 0 for processors, which take the machine's
    source : where the rates are from
    """

    title: str
    rates: Rates
    gib: float
    source: str
    measured: bool = False

    @property
    def is_processor(self) -> bool:
        """Whether networks run in the machine's own memory."""
        return not self.gib


def _stated(title: str, gib: float, *, half: float, single: float, double: float, bandwidth: float, eigen: float) -> Card:
    """A card by its data sheet: TFLOP/s of dense products in bfloat16, float32 and float64, TB/s of its memory.

    eigen : operations of an eigenproblem in a second, 10 for the cube of its size: assumed
    """
    rates = Rates(
        half=UTILISATION * half * 1e12,
        single=UTILISATION * single * 1e12,
        double=UTILISATION * double * 1e12,
        bytes=BANDWIDTH * bandwidth * 1e12,
        eigen=eigen,
    )
    return Card(title, rates, gib, f"{UTILISATION:.0%} of the data sheet's {half:g} dense bfloat16 TFLOP/s")


# Data sheets: NVIDIA's of the H100 SXM and of the A100 SXM 80 GB, with float64 products on tensor cores; the white paper of the
# architecture of the RTX 4090, with products summed in float32. An eigenproblem of 1,536 features is assumed to take an
# H100 a fifth of a second, and the others longer as their memory is slower.
H100 = _stated("H100", 80, half=989, single=67, double=67, bandwidth=3.35, eigen=2e11)
A100 = _stated("A100", 80, half=312, single=19.5, double=19.5, bandwidth=2.04, eigen=1.2e11)
RTX_4090 = _stated("RTX 4090", 24, half=165, single=82.6, double=1.29, bandwidth=1.01, eigen=6e10)

# The best of nine looks at 4,000 x 512 features of 200 classes and at 20,000 x 128 of 100, and one eigenproblem of
# 1,536 features, beside other work (AMD EPYC). In float32 the passes of the record of `igpt bench features`.
TWO_CORES = Card(
    "2 cores",
    Rates(half=CORES_FLOPS, single=2.0e11, double=3.3e10, bytes=4e9, eigen=3.6e10),
    0,
    "measured on two cores of an AMD EPYC",
    measured=True,
)


def many_cores(count: int) -> Card:
    """As many processor cores: the two that were measured, times what they are more."""
    factor = count / CORES_MEASURED
    rates = Rates(**{name: factor * rate for name, rate in vars(TWO_CORES.rates).items()})
    return Card(f"{count} cores", rates, 0, f"{factor:g} times what was measured on two cores of an AMD EPYC")


CARDS = (H100, A100, RTX_4090, many_cores(8))  # that every plan's cost is told for, beside this machine


@cache
def this_machine() -> Card:
    """The GPU that is here, else the processor, measured for a few seconds in a process of its own (`experiments.rates`).

    Where a GPU cannot be measured, being full, say, it has its data sheet's rates if it is one of `CARDS`.
    """
    done = subprocess.run([sys.executable, "-m", "igpt.companion.experiments.rates"], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    name, gib, rates = found.get("name", ""), float(found.get("gib", 0)), found.get("rates")
    if rates:
        rate = f"{rates['half'] / 1e12:.2g} TFLOP/s in half precision"
        return Card("here", Rates(**rates), gib, f"measured now on {name}: {rate}", measured=True)
    known = next((card for card in CARDS if card.gib and card.title in name), None)
    if known:
        return replace(known, title="here", gib=gib, source=f"{known.source}: {name} could not be measured")
    return replace(many_cores(cores()), title="here")
