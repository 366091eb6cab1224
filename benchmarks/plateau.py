"""How often does Plateau end a fit whose loss still falls, and does it end one whose loss does not?

python benchmarks/plateau.py --runs 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from results import record
from scipy.signal import lfilter

from inference.stopping import Plateau

STEPS = 40_000
TOLERANCE = 0.3
FALLS = {"by the tolerance in each window": 0.3, "by twice that": 0.6, "not at all": 0.0}
"""Nats by which the loss falls whenever the number of steps doubles."""
NOISES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "independent": lambda random: random.standard_normal(STEPS),
    "autocorrelated, 0.9 a step": lambda random: lfilter([np.sqrt(0.19)], [1, -0.9], random.standard_normal(STEPS + 200))[
        200:
    ],
    "Student's t, 3 degrees of freedom": lambda random: random.standard_t(3, STEPS) / np.sqrt(3),
}
"""Noise of variance 1, shape (STEPS,)."""


def ended(losses: torch.Tensor) -> int | None:
    """The step at which the rule ends a run with these losses, or None."""
    watch = Plateau(tolerance=TOLERANCE).begin(SimpleNamespace(rows=1))
    while watch.due <= len(losses):
        looked = losses[: watch.due]
        if watch.look(SimpleNamespace(rows=1, losses=looked)) is not None:
            return len(looked)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs for each noise and fall")
    runs = parser.parse_args().runs
    rows = []
    for name, noise in NOISES.items():
        for fall, nats in FALLS.items():
            random = np.random.default_rng(0)
            trend = nats * np.log2(np.arange(1, STEPS + 1))
            ends = [ended(torch.from_numpy(noise(random) - trend)) for _ in range(runs)]
            found = [end for end in ends if end is not None]
            share = len(found) / runs
            error = (share * (1 - share) / runs) ** 0.5
            when = f"{np.median(found):.0f}" if found else "–"
            rows.append(f"| {name} | {fall} | {100 * share:.1f} ± {100 * error:.1f} % | {when} |")
    alarm = Plateau().alarm
    lines = [
        "## Plateau",
        "",
        f"`Plateau(tolerance={TOLERANCE})` on {runs} runs of {STEPS} losses, with noise of variance 1. As long as the loss",
        "falls by at least the tolerance in each window, stopping is a false alarm. The rule promises at most",
        f"{100 * alarm:.0f} %.",
        "",
        "| noise | the loss falls | ended | at step, median |",
        "|---|---|---:|---:|",
        *rows,
    ]
    record(__file__, "\n".join(lines))


if __name__ == "__main__":
    main()
