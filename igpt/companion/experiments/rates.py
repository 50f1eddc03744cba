"""What this machine does in a second, measured: run as a program, it prints that as one line of JSON.

Each kind of work is done as evaluations do it, at a small size, for about a third of a second. On a GPU its name and memory are
printed first, by themselves, so that they are known where it is too full to be measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import torch

from igpt.companion.experiments.work import Rates, eigen_flops
from igpt.fast import prepacked
from igpt.machine import cores
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.text import counted
from igpt.train.cost import forward_flops
from igpt.train.loop import Runtime

SECONDS = 0.3  # of each kind of work, once it has been done for the first time
CLASSES = 40  # outputs: ten classes at four strengths


def measure() -> Rates:
    """The rates of the GPU, else of the processor, with torch's threads as they are."""
    card = torch.cuda.is_available()
    device = "cuda" if card else "cpu"
    # A card is kept busy by larger ones only; on processors the smallest published width is what is worth running.
    width, images, rows, features = (1024, 64, 45_056, 1536) if card else (512, 2, 4_096, 512)
    shape = ModelShape(2, width, 8, 512, 1024)
    model = ImageGPT(shape).to(device).eval()
    tokens = torch.randint(shape.n_vocab, (images, shape.n_ctx), device=device)

    def passes(dtype: torch.dtype) -> float:
        with prepacked(model.to(dtype)):
            return images * forward_flops(shape) / _seconds(lambda: model.features(tokens), device)

    with torch.inference_mode():
        single = passes(torch.float32)
        # Where a processor has products in half precision and is faster without them, features are computed without.
        half = max(single, passes(torch.bfloat16)) if Runtime.here(shape).bfloat16 else single
        x = torch.randn(rows, features, device=device, dtype=torch.float64)
        w = torch.randn(CLASSES, features, device=device, dtype=torch.float64)
        double = _seconds(lambda: w @ x.T, device)
        logits = w @ x.T
        moved = _seconds(lambda: _softmax(logits), device)
        square = x[:features].T @ x[:features]
        eigen = _seconds(lambda: torch.linalg.eigh(square), device)
    return Rates(
        half=half,
        single=single,
        double=2 * x.numel() * CLASSES / double,
        bytes=8 * 8 * logits.numel() / moved,
        eigen=eigen_flops(features) / eigen,
    )


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """What a look at a probe's objective does to its logits: eight passes over them, as `experiments.work` counts them."""
    top = logits.amax(0, keepdim=True)
    likely = (logits - top).exp_()
    return likely.div_(likely.sum(0, keepdim=True))


def _seconds(run: Callable[[], object], device: str) -> float:
    """Mean seconds of one run, after a first that is not counted."""
    run()
    _finish(device)
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < SECONDS:
        run()
        _finish(device)
        count += 1
    return (time.perf_counter() - start) / count


def _finish(device: str) -> None:
    """Wait for what a GPU was told to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print a line with name and GiB, and one with the rates as well."""
    if "OMP_NUM_THREADS" not in os.environ:  # a user's own number counts for stages too
        torch.set_num_threads(cores())
    found: dict[str, object] = {"name": f"a processor with {counted(torch.get_num_threads(), 'thread')}", "gib": 0.0}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = {"name": properties.name, "gib": properties.total_memory / 2**30}
    print(json.dumps(found), flush=True)
    print(json.dumps({**found, "rates": vars(measure())}), flush=True)


if __name__ == "__main__":
    main()
