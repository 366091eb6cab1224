"""Microseconds a step: Pyro, NumPyro, PyTorch written by hand and the engines of this suite, side by side.

    python benchmarks/race.py [--cases a b1 …] [--repeats 5] [--start-cases a …] [--starts 3] [--threads 2]

Every runner takes the same model, guide, optimiser (Adam at a constant rate), batch and number of draws (one), in single
precision, and records the loss of every step. A step's time is the difference between a long run and a short one, so that
what a run does once, such as tracing or compiling, is not in it. The runners take turns within each repeat. Cold and warm
start are whole runs of 100 steps in processes of their own, imports aside.
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
import torch._dynamo  # which torch imports with the first optimiser, in a second that is no part of a start
from race_runners.by_numpyro import by_numpyro
from race_runners.by_pyro import by_engine, by_engine_together, by_svi
from race_runners.by_torch import by_torch
from race_runners.data import CASES
from results import record

from inference.engine import Auto, CompiledLoop, Eager, Graph

RUNNERS: dict[str, Callable[[str, int], Any]] = {
    "Pyro SVI.step": by_svi,
    "Graph": partial(by_engine, Graph),
    "CompiledLoop": partial(by_engine, CompiledLoop),
    "PyTorch by hand": by_torch,
    "NumPyro svi.run": by_numpyro,
}
ENGINES = {engine.__name__: partial(by_engine, engine) for engine in (Eager, Graph, CompiledLoop, Auto)}
"""Who takes part in whole fits of `FIT` steps."""
SEEDS = 8
TOGETHER = {f"{e.__name__}, {SEEDS} seeds": partial(by_engine_together, e, SEEDS) for e in (Graph, CompiledLoop)}
"""Fits with several seeds, on the small cases."""
SMALL = ("a", "b1", "b2", "c")
SECONDS = 0.6
"""What a short run of each runner is to take at least,"""
DOMINANCE = 2.0
"""and how many times as long as one of ten steps: tracing, capturing and loading vary from run to run."""
STARTS = 100
"""Steps of a cold or warm start."""
FIT = 1000
"""Steps of a whole fit of the first case, where engines are chosen by what they cost in all."""


def seconds(name: str, case: str, steps: int) -> float:
    """Of a fit by that runner. Python's garbage is collected before, and not during it: that takes longer than a capture."""
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    {**RUNNERS, **ENGINES, **TOGETHER}[name](case, steps)
    elapsed = time.perf_counter() - begin
    gc.enable()
    return elapsed


class Lane:
    """A runner in a process of its own, so that none runs among what another has left behind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def seconds(self, case: str, steps: int) -> float:
        """Of a fit."""
        return self.process.submit(seconds, self.name, case, steps).result()

    def length(self, case: str) -> int:
        """Steps of a short run: twice as many until what is done once is a small part of it."""
        self.seconds(case, 10)
        enough = max(SECONDS, DOMINANCE * min(self.seconds(case, 10) for _ in range(2)))
        steps = 50
        while self.seconds(case, steps) < enough:
            steps *= 2
        return steps

    def microseconds(self, case: str, steps: int) -> float:
        """One measurement of a step."""
        short = self.seconds(case, steps)
        return (self.seconds(case, 3 * steps) - short) / (2 * steps) * 1e6


def race(case: str, lanes: list[Lane], repeats: int) -> dict[str, list[float]]:
    """Measurements of every runner, interleaved."""
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


def start(name: str, case: str, steps: int = STARTS) -> float:
    """Seconds from the call to the result, in a process of its own."""
    command = [sys.executable, __file__, "--start", name, "--cases", case, "--steps", str(steps)]
    command += ["--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.splitlines()[-1])


def whole_fits(case: str, repeats: int) -> list[str]:
    """Whole fits by each engine, with compiled code on disk and without, as lines of a table."""
    kinds = ["Eager", "Graph", "CompiledLoop, cold", "Auto, cold", "CompiledLoop, warm", "Auto, warm"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as other:
            for kind in kinds:
                name = kind.split(",")[0]
                # Auto may order a loop for the next fit: it has a folder of its own until there is one.
                os.environ["TAUT_CACHE"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = other if kind == "Auto, cold" else empty
                found[kind].append(start(name, case, FIT))
    best = {"cold": ("Eager", "Graph", "CompiledLoop, cold"), "warm": ("Eager", "Graph", "CompiledLoop, warm")}
    lines = ["| engine | seconds |", "|---|---|", *(f"| {kind} | {spread(times)} |" for kind, times in found.items())]
    for state, others in best.items():
        ratios = [ours / min(found[kind][k] for kind in others) for k, ours in enumerate(found[f"Auto, {state}"])]
        lines.append(f"| Auto / best engine, {state} | {spread(ratios)} |")
    return lines


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def starts(case: str, repeats: int) -> list[str]:
    """Cold and warm start of our loop, and NumPyro's start."""
    cold, warm, other = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as empty:
            os.environ["TAUT_CACHE"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
            cold.append(start("CompiledLoop", case))
            warm.append(start("CompiledLoop", case))
        other.append(start("NumPyro svi.run", case))
    return [spread(times) for times in (cold, warm, other)]


def main(cases: list[str], repeats: int, start_cases: list[str], start_repeats: int) -> None:
    """Races the cases one after the other, and writes the section anew after each."""
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
        found = race(case, [*lanes, *(more if case in SMALL else [])], repeats)
        ours, theirs = found["CompiledLoop"], found["NumPyro svi.run"]
        medians.append(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))
        times = " | ".join(f"{statistics.median(found[name]):.3g}" for name in RUNNERS)
        table.append(f"| ({case}) {CASES[case]} | {times} | {ratio(ours, found['Pyro SVI.step'])} | {ratio(ours, theirs)} |")
        if case in SMALL:
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
        f"Ours / NumPyro over these cases: median {statistics.median(medians):.2f} (goal: at most 0.8), largest "
        f"{max(medians):.2f} (goal: at most 1.2).",
        "",
        f"Microseconds a step of {SEEDS} fits with different seeds together, and the ratio to one fit by the same engine "
        "(goal: at most 2):",
        "",
        *joint,
    ]
    if start_repeats:
        lines += [
            "",
            f"Seconds of a fit of {STARTS} steps in a new process, from the call to the result, without imports (median and "
            f"range of {start_repeats}). A cold start has empty caches, of this suite and of Inductor:",
            "",
            *begin,
            "",
            f"Seconds of a whole fit of {FIT} steps of the first case in a new process, without imports (median and range "
            f"of {start_repeats}; goal for Auto: at most 1.2 times the best single engine):",
            "",
            *fits,
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--start-cases", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--starts", type=int, default=3)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--start", choices=[*RUNNERS, *ENGINES], help=argparse.SUPPRESS)
    options.add_argument("--steps", type=int, default=STARTS, help=argparse.SUPPRESS)
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.start:
        print(seconds(settings.start, settings.cases[0], settings.steps))
    else:
        main(settings.cases, settings.repeats, settings.start_cases, settings.starts)
