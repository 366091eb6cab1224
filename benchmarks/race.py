"""Microseconds per step of Pyro, NumPyro, hand-written PyTorch and the engines of this suite.

    python benchmarks/race.py [--cases a b1 …] [--repeats 5] [--start-cases a …] [--starts 3] [--threads 2]

All runners fit the same model and guide by Adam at a constant rate, with the same batch size, one draw per step and single
precision, and record every loss. The time of a step is the difference between a long and a short run, divided by their
difference in steps, which cancels the time of tracing and compiling. The runners take turns within each repeat. A cold start
(with empty caches) and a warm start (compiled code on disk) are runs of 100 steps in new processes, timed without imports.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch._dynamo  # else the first optimiser imports it, and a start would take a second longer
from race_runners.by_numpyro import by_numpyro
from race_runners.by_pyro import by_engine, by_engine_together, by_svi
from race_runners.by_torch import by_torch
from results import record

from inference.engine import Auto, CompiledLoop, Eager, Graph

CASES: dict[str, tuple[str, str]] = {
    "a": ("100 local Gaussians", "h_i ~ N(0, 1), x_i ~ N(h_i, 1), i = 1 … 100; q is a Normal for each h_i"),
    "b1": (
        "eight schools, factorised",
        "mu ~ N(0, 5), tau ~ HalfCauchy(5), e_j ~ N(0, 1), y_j ~ N(mu + tau e_j, sigma_j), j = 1 … 8; q is AutoNormal",
    ),
    "b2": ("eight schools, full rank", "the model of (b1); q is AutoMultivariateNormal"),
    "c": (
        "logistic regression 1000×50, full rank",
        "50 weights w ~ N(0, 1), y_i ~ Bernoulli(logits w · x_i), i = 1 … 1000; q is AutoMultivariateNormal",
    ),
    "d": (
        "VAE 64-200-8, batch 128",
        "the 1797 binarised digits of 64 pixels, 8 latents, one hidden layer of 200 tanh units in encoder and decoder; "
        "minibatches of 128",
    ),
    "e": ("VAE 64-200-8, all 1797", "the VAE and digits of (d); all digits in each step"),
    "f": (
        "VAE 784-200-200-50, batch 128",
        "12800 images of 784 random binary pixels, 50 latents, two hidden layers of 200 tanh units in encoder and decoder; "
        "minibatches of 128",
    ),
}
"""For each case its short name and its definition. N(m, s) has standard deviation s."""
RUNNERS: dict[str, Callable[[str, int], Any]] = {
    "Pyro SVI.step": by_svi,
    "Graph": partial(by_engine, Graph),
    "CompiledLoop": partial(by_engine, CompiledLoop),
    "PyTorch by hand": by_torch,
    "NumPyro svi.run": by_numpyro,
}
ENGINES = {engine.__name__: partial(by_engine, engine) for engine in (Eager, Graph, CompiledLoop, Auto)}
"""Engines compared by whole fits of `FIT_STEPS` steps."""
SEEDS = 8
"""Number of fits that take their steps together."""
TOGETHER = {f"{e.__name__}, {SEEDS} seeds": partial(by_engine_together, e, SEEDS) for e in (Graph, CompiledLoop)}
"""Runners of several fits at once."""
TOGETHER_CASES = ("a", "b1", "b2", "c")
"""The small cases, which `TOGETHER` runs."""
MIN_SECONDS = 0.6
"""Shortest time of a short run,"""
MIN_MULTIPLE = 2.0
"""which is also at least so many times that of ten steps, because the time of tracing and loading varies between runs."""
START_STEPS = 100
"""Steps of a cold or warm start."""
FIT_STEPS = 1000
"""Steps of a whole fit of the first case, by which the total times of the engines are compared."""


def seconds(name: str, case: str, steps: int) -> float:
    """Seconds of a fit by a runner. Collects garbage before it and not during it, where it may take longer than a capture."""
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    {**RUNNERS, **ENGINES, **TOGETHER}[name](case, steps)
    elapsed = time.perf_counter() - begin
    gc.enable()
    return elapsed


class Lane:
    """A runner in a process of its own, so that no runner changes the state in which another one runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def seconds(self, case: str, steps: int) -> float:
        """Seconds of a fit."""
        return self.process.submit(seconds, self.name, case, steps).result()

    def length(self, case: str) -> int:
        """Steps of a short run, doubled until it takes long enough; see `MIN_SECONDS` and `MIN_MULTIPLE`."""
        self.seconds(case, 10)
        min_seconds = max(MIN_SECONDS, MIN_MULTIPLE * min(self.seconds(case, 10) for _ in range(2)))
        steps = 50
        while self.seconds(case, steps) < min_seconds:
            steps *= 2
        return steps

    def microseconds(self, case: str, steps: int) -> float:
        """One measurement of the time of a step."""
        short = self.seconds(case, steps)
        return (self.seconds(case, 3 * steps) - short) / (2 * steps) * 1e6


def race(case: str, lanes: list[Lane], repeats: int) -> dict[str, list[float]]:
    """Microseconds per step of every runner, one for each repeat."""
    lengths = {lane: lane.length(case) for lane in lanes}
    found: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    for _ in range(repeats):
        for lane in lanes:
            found[lane.name].append(lane.microseconds(case, lengths[lane]))
        print(case, {name: round(times[-1], 1) for name, times in found.items()}, flush=True)
    return found


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median and range of the ratios within each repeat."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g} – {max(ratios):.3g})"


def start(name: str, case: str, steps: int = START_STEPS) -> float:
    """Seconds from the call to the result of a fit in a new process."""
    command = [sys.executable, __file__, "--start", name, "--cases", case, "--steps", str(steps)]
    command += ["--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.splitlines()[-1])


def whole_fits(case: str, repeats: int) -> list[str]:
    """Times whole fits by each engine, with and without compiled code on disk; returns lines of a table."""
    kinds = ["Eager", "Graph", "CompiledLoop, cold", "Auto, cold", "CompiledLoop, warm", "Auto, warm"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as other:
            for kind in kinds:
                name = kind.split(",")[0]
                # The cold fit by CompiledLoop has filled its folder: the one by Auto needs another empty one.
                os.environ["TAUT_CACHE"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = other if kind == "Auto, cold" else empty
                found[kind].append(start(name, case, FIT_STEPS))
    best = {"cold": ("Eager", "Graph", "CompiledLoop, cold"), "warm": ("Eager", "Graph", "CompiledLoop, warm")}
    lines = ["| engine | seconds |", "|---|---|", *(f"| {kind} | {spread(times)} |" for kind, times in found.items())]
    for state, others in best.items():
        ratios = [ours / min(found[kind][k] for kind in others) for k, ours in enumerate(found[f"Auto, {state}"])]
        lines.append(f"| Auto / best engine, {state} | {spread(ratios)} |")
    return lines


def spread(values: list[float]) -> str:
    """Median and range of times."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def starts(case: str, repeats: int) -> list[str]:
    """Cold and warm start of CompiledLoop, and the start of NumPyro."""
    cold, warm, other = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as empty:
            os.environ["TAUT_CACHE"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
            cold.append(start("CompiledLoop", case))
            warm.append(start("CompiledLoop", case))
        other.append(start("NumPyro svi.run", case))
    return [spread(times) for times in (cold, warm, other)]


def main(cases: list[str], repeats: int, start_cases: list[str], start_repeats: int) -> None:
    """Races the cases one after the other; rewrites the section of RESULTS.md after each."""
    table = ["| case | " + " | ".join(RUNNERS) + " | ours / Pyro | ours / NumPyro |", "|---" * (len(RUNNERS) + 3) + "|"]
    begin = ["| case | cold start, s | warm start, s | NumPyro, s |", "|---|---|---|---|"]
    joint = [
        f"| case | Graph, {SEEDS} seeds | seeds / 1 seed | CompiledLoop, {SEEDS} seeds | seeds / 1 seed |",
        "|---" * 5 + "|",
    ]
    medians: list[float] = []
    fits = whole_fits(cases[0], start_repeats) if start_repeats else []
    lanes, more = [[Lane(name) for name in names] for names in (RUNNERS, TOGETHER)]
    for case in cases:
        found = race(case, [*lanes, *(more if case in TOGETHER_CASES else [])], repeats)
        ours, theirs = found["CompiledLoop"], found["NumPyro svi.run"]
        medians.append(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))
        times = " | ".join(f"{statistics.median(found[name]):.3g}" for name in RUNNERS)
        table.append(
            f"| ({case}) {CASES[case][0]} | {times} | {ratio(ours, found['Pyro SVI.step'])} | {ratio(ours, theirs)} |"
        )
        if case in TOGETHER_CASES:
            cells = [(statistics.median(found[name]), ratio(found[name], found[name.split(",")[0]])) for name in TOGETHER]
            joint.append(f"| ({case}) | " + " | ".join(f"{time:.3g} | {of_one}" for time, of_one in cells) + " |")
        if start_repeats and case in start_cases:
            begin.append(f"| ({case}) | " + " | ".join(starts(case, start_repeats)) + " |")
        record(__file__, section(table, joint, begin, fits, medians, repeats, start_repeats))


def section(  # noqa: PLR0917
    table: list[str],
    joint: list[str],
    begin: list[str],
    fits: list[str],
    medians: list[float],
    repeats: int,
    start_repeats: int,
) -> str:
    """The text of RESULTS.md."""
    lines = [
        "## The race: microseconds a step",
        "",
        f"Medians of {repeats} interleaved repeats. Ratios are those of CompiledLoop within a repeat: median and range. "
        f"{torch.get_num_threads()} threads, one draw a step, Adam, float32, the loss of every step recorded.",
        "",
        *table,
        "",
        *legend(),
        "",
        f"Median over these cases of ours / NumPyro: {statistics.median(medians):.2f}, largest {max(medians):.2f} "
        "(goals 0.8 and 1.2).",
        "",
        f"Microseconds a step of {SEEDS} fits with different seeds together, and the ratio to one fit by the same engine "
        "(goal: at most 2):",
        "",
        *joint,
    ]
    if start_repeats:
        lines += [
            "",
            f"Seconds from the call to the result of a fit of {START_STEPS} steps in a new process, imports aside "
            f"(median and range of {start_repeats}); cold with empty caches of ours and Inductor's:",
            "",
            *begin,
            "",
            f"Seconds of a whole fit of {FIT_STEPS} steps of the first case in a new process, imports aside "
            f"(median and range of {start_repeats}; goal for Auto: 1.2 times the best single engine):",
            "",
            *fits,
        ]
    return "\n".join(lines)


def legend() -> list[str]:
    """The definitions of the cases."""
    return ["The cases:", "", *(f"- ({case}) {name}: {definition}." for case, (name, definition) in CASES.items())]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="all by default")
    options.add_argument("--repeats", type=int, default=5, help="measurements of each runner")
    options.add_argument(
        "--start-cases", nargs="+", default=list(CASES), choices=list(CASES), help="cases whose starts are timed"
    )
    options.add_argument("--starts", type=int, default=3, help="measurements of each start; 0 for none")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options.add_argument("--start", choices=[*RUNNERS, *ENGINES], help=argparse.SUPPRESS)
    options.add_argument("--steps", type=int, default=START_STEPS, help=argparse.SUPPRESS)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.start:
        print(seconds(settings.start, settings.cases[0], settings.steps))
    else:
        main(settings.cases, settings.repeats, settings.start_cases, settings.starts)
