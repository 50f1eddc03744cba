"""Machines for cost estimates: their rates, from data sheets or measured, and their memory."""

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
CARD = "H100"  # the card for cost estimates of pending results
UTILISATION = 0.40  # fraction of a data sheet's dense TFLOP/s that training reaches (assumed)
BANDWIDTH = 0.50  # fraction of a data sheet's memory bandwidth that solving a probe reaches (assumed)
CORES_MEASURED = 2
SECONDS = 0.3  # shortest duration of each measurement, after one warm-up run
CLASSES = 40  # outputs of the measured probe: ten classes at four values of C


@dataclass(frozen=True)
class Rates:
    """Rates of a machine per second: FLOPs in half precision, float32, float64; bytes moved; FLOPs of an eigenproblem."""

    half: float
    single: float
    double: float
    bytes: float
    eigen: float


def eigen_flops(size: int) -> float:
    """Approximate FLOPs of a symmetric eigenproblem with eigenvectors."""
    return 10.0 * size**3


@dataclass(frozen=True)
class Card:
    """One GPU, or the cores of a processor.

    title : heading of its column in tables; "here" for this machine
    gib : GPU memory in GiB; 0 for processors, which use main memory
    source : the source of the rates
    """

    title: str
    rates: Rates
    gib: float
    source: str
    measured: bool = False

    @property
    def is_processor(self) -> bool:
        """Whether this is a processor, where networks are in main memory."""
        return not self.gib


def _stated(title: str, gib: float, *, half: float, single: float, double: float, bandwidth: float, eigen: float) -> Card:
    """A card from its data sheet: dense TFLOP/s in bfloat16, float32 and float64, and memory bandwidth in TB/s.

    eigen : FLOP/s of an eigenproblem (assumed)
    """
    rates = Rates(
        half=UTILISATION * half * 1e12,
        single=UTILISATION * single * 1e12,
        double=UTILISATION * double * 1e12,
        bytes=BANDWIDTH * bandwidth * 1e12,
        eigen=eigen,
    )
    return Card(title, rates, gib, f"{UTILISATION:.0%} of the data sheet's {half:g} dense bfloat16 TFLOP/s")


# Sources: NVIDIA's data sheets of the H100 SXM and the A100 SXM 80 GB, with float64 products on tensor cores; NVIDIA's white
# paper on the RTX 4090's architecture, with accumulation in float32. An eigenproblem of 1,536 features is assumed to take 0.2 s
# on an H100, and on the others longer, in inverse proportion to their memory bandwidth.
H100 = _stated(CARD, 80, half=989, single=67, double=67, bandwidth=3.35, eigen=2e11)
A100 = _stated("A100", 80, half=312, single=19.5, double=19.5, bandwidth=2.04, eigen=1.2e11)
RTX_4090 = _stated("RTX 4090", 24, half=165, single=82.6, double=1.29, bandwidth=1.01, eigen=6e10)

# The best of nine measurements with 4,000 x 512 features of 200 classes and 20,000 x 128 of 100, and one eigenproblem of 1,536
# features, under other load (AMD EPYC). The float32 rate is that of the passes in the record of `igpt bench features`.
TWO_CORES = Card(
    "2 cores",
    Rates(half=2.5e11, single=2.0e11, double=3.3e10, bytes=4e9, eigen=3.6e10),
    0,
    "measured on two cores of an AMD EPYC",
    measured=True,
)


def many_cores(count: int) -> Card:
    """A processor with ``count`` cores, at ``count / 2`` times the rates measured on two cores."""
    factor = count / CORES_MEASURED
    rates = Rates(**{name: factor * rate for name, rate in vars(TWO_CORES.rates).items()})
    return Card(f"{count} cores", rates, 0, f"{factor:g} times what was measured on two cores of an AMD EPYC")


CARDS = (H100, A100, RTX_4090, many_cores(8))  # listed in the costs of every plan, beside this machine


@cache
def this_machine() -> Card:
    """The GPU of this machine, or else its processor, measured for a few seconds in a separate process.

    A GPU that cannot be measured, for example because it is full, gets its data sheet's rates if it is one of `CARDS`.
    """
    program = f"from {__name__} import main; main()"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    printed = json.loads(process.stdout.splitlines()[-1]) if process.stdout.strip() else {}
    name, gib, rates = printed.get("name", ""), float(printed.get("gib", 0)), printed.get("rates")
    if rates:
        rate = f"{rates['half'] / 1e12:.2g} TFLOP/s in half precision"
        return Card("here", Rates(**rates), gib, f"measured now on {name}: {rate}", measured=True)
    known = next((card for card in CARDS if card.gib and card.title in name), None)
    if known:
        return replace(known, title="here", gib=gib, source=f"{known.source}: {name} could not be measured")
    return replace(many_cores(cores()), title="here")


def measure() -> Rates:
    """Measure the rates of the GPU, or else of the processor with torch's current threads, on small tasks as in stages."""
    import torch

    from igpt.fast import prepacked
    from igpt.model import ImageGPT
    from igpt.shape import ModelShape
    from igpt.train.runtime import Runtime

    card = torch.cuda.is_available()
    device = "cuda" if card else "cpu"
    # A GPU is saturated only by larger models; processors are measured with the smallest published width.
    width, images, rows, features = (1024, 64, 45_056, 1536) if card else (512, 2, 4_096, 512)
    shape = ModelShape(2, width, 8, 512, 1024)
    model = ImageGPT(shape).to(device).eval()
    tokens = torch.randint(shape.n_vocab, (images, shape.n_ctx), device=device)

    def seconds(run: Callable[[], object]) -> float:
        """Mean seconds of a run, after one warm-up run."""
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
        # If half precision is slower than float32 on a processor, features are computed in float32.
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
    """The operations of a probe's objective on its logits: eight passes over them, as in `demand.probe_work`."""
    maximum = logits.amax(0, keepdim=True)
    exponentials = (logits - maximum).exp_()
    return exponentials.div_(exponentials.sum(0, keepdim=True))


def main() -> None:
    """Print a line with name and GiB, which are known even if the GPU is too full to measure; then a line with rates."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:  # if set, stages use that number of threads too
        torch.set_num_threads(cores())
    machine: dict[str, object] = {"name": f"a processor with {counted(torch.get_num_threads(), 'thread')}", "gib": 0.0}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine = {"name": properties.name, "gib": properties.total_memory / GIB}
    print(json.dumps(machine), flush=True)
    print(json.dumps({**machine, "rates": vars(measure())}), flush=True)
