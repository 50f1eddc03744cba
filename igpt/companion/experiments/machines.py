"""Machines that stages are priced on: what one does per second, stated or measured, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from igpt.machine import cores
from igpt.text import counted
from igpt.train.recipe import forward_flops

if TYPE_CHECKING:
    import torch

GIB = 2**30
CARD = "H100"  # that pending results are priced on
UTILISATION = 0.40  # of a data sheet's dense TFLOP/s, that training reaches: assumed
BANDWIDTH = 0.50  # of a data sheet's, that solving a probe reaches: assumed
CORES_MEASURED = 2
SECONDS = 0.3  # for which each kind of work is measured, after a first run that is not counted
CLASSES = 40  # outputs: ten classes at four values of C


@dataclass(frozen=True)
class Rates:
    """A machine in a second: operations in half precision, float32 and float64, bytes moved, operations of an eigenproblem."""

    half: float
    single: float
    double: float
    bytes: float
    eigen: float


def eigen_flops(size: int) -> float:
    """Operations of a symmetric eigenproblem with its vectors, about."""
    return 10.0 * size**3


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

    eigen : operations of an eigenproblem per second: assumed
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
H100 = _stated(CARD, 80, half=989, single=67, double=67, bandwidth=3.35, eigen=2e11)
A100 = _stated("A100", 80, half=312, single=19.5, double=19.5, bandwidth=2.04, eigen=1.2e11)
RTX_4090 = _stated("RTX 4090", 24, half=165, single=82.6, double=1.29, bandwidth=1.01, eigen=6e10)

# The best of nine measurements at 4,000 x 512 features of 200 classes and at 20,000 x 128 of 100, and one eigenproblem of
# 1,536 features, beside other work (AMD EPYC). In float32 the passes of the record of `igpt bench features`.
TWO_CORES = Card(
    "2 cores",
    Rates(half=2.5e11, single=2.0e11, double=3.3e10, bytes=4e9, eigen=3.6e10),
    0,
    "measured on two cores of an AMD EPYC",
    measured=True,
)


def many_cores(count: int) -> Card:
    """So many processor cores, at the rates of the two that were measured times ``count / 2``."""
    factor = count / CORES_MEASURED
    rates = Rates(**{name: factor * rate for name, rate in vars(TWO_CORES.rates).items()})
    return Card(f"{count} cores", rates, 0, f"{factor:g} times what was measured on two cores of an AMD EPYC")


CARDS = (H100, A100, RTX_4090, many_cores(8))  # which every plan's costs list, beside this machine


@cache
def this_machine() -> Card:
    """The GPU that is here, else the processor, measured for a few seconds in a process of its own.

    Where a GPU cannot be measured, being full, say, it has its data sheet's rates if it is one of `CARDS`.
    """
    program = f"from {__name__} import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    printed = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    name, gib, rates = printed.get("name", ""), float(printed.get("gib", 0)), printed.get("rates")
    if rates:
        rate = f"{rates['half'] / 1e12:.2g} TFLOP/s in half precision"
        return Card("here", Rates(**rates), gib, f"measured now on {name}: {rate}", measured=True)
    known = next((card for card in CARDS if card.gib and card.title in name), None)
    if known:
        return replace(known, title="here", gib=gib, source=f"{known.source}: {name} could not be measured")
    return replace(many_cores(cores()), title="here")


def measure() -> Rates:
    """The rates of the GPU, else of the processor, with torch's threads as they are: small work of the kinds that stages do."""
    import torch

    from igpt.fast import prepacked
    from igpt.model import ImageGPT
    from igpt.shape import ModelShape
    from igpt.train.runtime import Runtime

    card = torch.cuda.is_available()
    device = "cuda" if card else "cpu"
    # A card is kept busy by larger models only; on processors the smallest published width is what is worth running.
    width, images, rows, features = (1024, 64, 45_056, 1536) if card else (512, 2, 4_096, 512)
    shape = ModelShape(2, width, 8, 512, 1024)
    model = ImageGPT(shape).to(device).eval()
    tokens = torch.randint(shape.n_vocab, (images, shape.n_ctx), device=device)

    def seconds(run: Callable[[], object]) -> float:
        """Mean seconds of a run, after a first that is not counted."""
        count, start = 0, time.perf_counter()
        while count < 3 or time.perf_counter() - start < SECONDS:
            run()
            if card:
                torch.cuda.synchronize()
            count += 1
            if count == 1:
                start = time.perf_counter()
        return (time.perf_counter() - start) / (count - 1)

    def passes(dtype: torch.dtype) -> float:
        with prepacked(model.to(dtype)):
            return images * forward_flops(shape) / seconds(lambda: model.features(tokens))

    with torch.inference_mode():
        single = passes(torch.float32)
        # Where a processor has products in half precision and is faster without them, features are computed without.
        half = max(single, passes(torch.bfloat16)) if Runtime.here(shape).bfloat16 else single
        x = torch.randn(rows, features, device=device, dtype=torch.float64)
        w = torch.randn(CLASSES, features, device=device, dtype=torch.float64)
        double = seconds(lambda: w @ x.T)
        logits = w @ x.T
        moved = seconds(lambda: _softmax(logits))
        square = x[:features].T @ x[:features]
        eigen = seconds(lambda: torch.linalg.eigh(square))
    return Rates(
        half=half,
        single=single,
        double=2 * x.numel() * CLASSES / double,
        bytes=8 * 8 * logits.numel() / moved,
        eigen=eigen_flops(features) / eigen,
    )


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """What one evaluation of a probe's objective does to its logits: eight passes over them, as `demand.probe_work` counts."""
    top = logits.amax(0, keepdim=True)
    likely = (logits - top).exp_()
    return likely.div_(likely.sum(0, keepdim=True))


def main() -> None:
    """Print a line with name and GiB, so that these are known if the GPU is too full to be measured; then one with rates."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:  # a user's own number counts for stages too
        torch.set_num_threads(cores())
    machine: dict[str, object] = {"name": f"a processor with {counted(torch.get_num_threads(), 'thread')}", "gib": 0.0}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine = {"name": properties.name, "gib": properties.total_memory / GIB}
    print(json.dumps(machine), flush=True)
    print(json.dumps({**machine, "rates": vars(measure())}), flush=True)
