"""Time of a step of a local guide over 10^3 and over 10^6 data, with the same batch: it should depend on the batch alone.

python benchmarks/local_table.py
"""

from __future__ import annotations

import statistics
import time

import torch
from results import record

from guides import Local, MeanField
from inference import fit
from models import LocalGaussian

SIZES = (1_000, 1_000_000)
BATCH = 256
STEPS = 500
REPEATS = 7
MAX_RATIO = 1.5
"""Goal for the time of a step over the larger data, relative to the smaller."""


def seconds(size: int, steps: int) -> float:
    """Wall time of a fit of `steps` steps over `size` data."""
    model = LocalGaussian(1)
    x = torch.randn(size, 1, generator=torch.Generator().manual_seed(0))
    guide = Local(model, MeanField())
    guide.setup(x)
    begin = time.perf_counter()
    fit(model, guide, x, steps=steps, batch_size=BATCH)
    return time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    seconds(SIZES[0], STEPS)  # warms up: the first fit of a process also imports modules
    steps = {size: [] for size in SIZES}
    for _ in range(REPEATS):
        for size in SIZES:
            # The difference of two lengths cancels the time that a fit of any length takes once.
            once = seconds(size, 1)
            steps[size].append((seconds(size, STEPS + 1) - once) / STEPS * 1e6)
    ratios = [large / small for small, large in zip(*steps.values(), strict=True)]
    rows = [f"| {size:,} | {statistics.median(t):.0f} | {min(t):.0f} – {max(t):.0f} |" for size, t in steps.items()]
    record(
        __file__,
        "\n".join(
            [
                "## Local guides: cost of a step against the number of data",
                "",
                f"LocalGaussian, Local(MeanField), batch {BATCH}, eager, 1 thread, {REPEATS} interleaved repeats of "
                f"{STEPS} steps, seed 0.",
                "",
                "| N | µs per step, median | range |",
                "|---|---|---|",
                *rows,
                "",
                f"Ratio of the two, median {statistics.median(ratios):.2f}, range {min(ratios):.2f} – {max(ratios):.2f} "
                f"(goal: at most {MAX_RATIO}). `python benchmarks/local_table.py`.",
            ]
        ),
    )
    if statistics.median(ratios) > MAX_RATIO:
        raise SystemExit(f"a step over {SIZES[1]:,} data takes more than {MAX_RATIO} times as long as one over {SIZES[0]:,}")


if __name__ == "__main__":
    main()
