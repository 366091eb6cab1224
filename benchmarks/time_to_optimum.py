"""Time to within 0.01 nats of the best ELBO of a Gaussian family: our optimisers against NumPyro's Adam with an oracle.

    python benchmarks/time_to_optimum.py --problems diabetes_regression,digits_vae --seeds 3

The oracle knows the exact ELBO and stops Adam as soon as it is near the best. Finished problems are stored in a file and not
repeated.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import inf, isinf, isnan, nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpyro_adam as peer
import torch
from optimum_problems import PROBLEMS, Problem
from results import record
from torch import Tensor

from inference import fit
from inference.engine import Auto, Graph
from inference.engine.minibatches import Batch
from inference.fitting.default_objective import lowest_variance_objective
from inference.fitting.learning_rate import RATES, TRIAL_STEPS
from inference.objectives import StickingTheLanding
from inference.optimisers import BatchAndMatch, DoWG, FixedDraws, NaturalGradient, Solver
from inference.optimisers.fixed_draws import SampleAverage
from inference.optimisers.scores import Scores

MAX_GAP = 0.01
"""A run is near the best ELBO if its gap is below this, in nats."""
MAX_ITERATIONS = 100
"""Iterations of a solver."""
SOLVERS: dict[str, Solver] = {
    "NaturalGradient": NaturalGradient(),
    "NaturalGradient, 1e-3": NaturalGradient(tolerance=1e-3),
    "BatchAndMatch": BatchAndMatch(),
    "FixedDraws": FixedDraws(),
    "FixedDraws, L-BFGS": FixedDraws(newton=False),
}
MAX_REPEATED_SECONDS = 2.0
"""A run that takes longer is not repeated to find when it was near; its end is counted instead."""
MAX_SECONDS = 120
"""A solver's run is stopped after this time."""
ONE_SEED = ("FixedDraws", "FixedDraws, L-BFGS")
"""Solvers run with one seed: with many frozen draws they are slow, and seeds differ little."""
DESCENTS: dict[str, dict[str, Any]] = {
    "Adam 0.01, cosine": {},
    "DoWG, StickingTheLanding": {"optimiser": DoWG, "objective": StickingTheLanding()},
}


@dataclass(frozen=True)
class Time:
    """When a run was first near the best ELBO, and where it ended."""

    gradients: float
    """Gradients of log p(x, h) until then; inf if it was never near."""
    seconds: float
    ended: float
    """The gap at the end, in nats."""
    total: float
    """Gradients of the whole run."""


class Row(NamedTuple):
    """Our best method and the peer's best rate on a problem."""

    problem: str
    best: str
    our_time: Time
    rate: str
    peer_time: Time
    ratio: float
    compilation: float
    """Seconds that the peer took to compile."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60000, help="steps of the peer")
    parser.add_argument("--descent", type=int, default=2000, help="largest number of steps of our stochastic descents")
    parser.add_argument("--note", default="", help="sentence to add to the section of RESULTS.md")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="names separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("results/time_to_optimum.jsonl"), help="file of finished problems")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    lines = options.runs.read_text().splitlines() if options.runs.exists() else []
    done = {entry["problem"]: entry for entry in map(json.loads, lines) if _same(entry, options)}
    for name in options.problems.split(","):
        if name not in done:
            done[name] = raced(name, options)
            with options.runs.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        record(__file__, "\n".join(report(*tables([done[n] for n in PROBLEMS if n in done]), options)))


def raced(name: str, options: Any) -> dict[str, Any]:
    """Runs all our methods and all rates of the peer on one problem; returns what is stored."""
    problem, seeds = PROBLEMS[name](), range(options.seeds)
    times = {n: [solved(problem, s, seed) for seed in seeds[: 1 if n in ONE_SEED else None]] for n, s in SOLVERS.items()}
    times = {n: runs for n, runs in times.items() if not isnan(runs[0].ended)}
    times |= {n: [descended(problem, d, options.descent, 0)] for n, d in DESCENTS.items()}
    times |= {"fit's own default": [defaulted(problem, 0)]}
    other = peer.Peer(problem.peer, full_rank=problem.full_rank, steps=options.steps)
    paths = {n: [stopped(problem, other, rate, seed) for seed in seeds] for n, rate in peer.RATES.items()}
    kept = {
        side: {n: [astuple(run) for run in runs] for n, runs in all_.items()}
        for side, all_ in (("ours", times), ("theirs", paths))
    }
    return {"problem": name, "title": problem.name, "compilation": other.compilation, **kept, **_choices(options)}


def tables(entries: list[dict[str, Any]]) -> tuple[list[Row], list[Any], list[Any]]:
    """The summary, and the medians over seeds of each of our methods and of each rate of the peer."""
    summary, ours, theirs = [], [], []
    for entry in entries:
        times, paths = ({n: [Time(*run) for run in runs] for n, runs in entry[side].items()} for side in ("ours", "theirs"))
        best, best_peer = fastest(times), fastest(paths)
        our_time, peer_time = mid(times[best]), mid(paths[best_peer])
        ratio = 0.0 if isinf(our_time.gradients) else peer_time.gradients / our_time.gradients
        summary.append(Row(entry["title"], best, our_time, best_peer, peer_time, ratio, entry["compilation"]))
        ours += [(entry["title"], name, mid(runs)) for name, runs in times.items()]
        theirs += [(entry["title"], name, mid(runs)) for name, runs in paths.items()]
    return summary, ours, theirs


def _choices(options: Any) -> dict[str, int]:
    return {"steps": options.steps, "descent": options.descent, "seeds": options.seeds}


def _same(entry: dict[str, Any], options: Any) -> bool:
    """Whether a stored problem was run with these options."""
    return all(entry[name] == value for name, value in _choices(options).items())


def solved(problem: Problem, solver: Solver, seed: int) -> Time:
    """Runs a solver to its end, then finds the first step at which it is near, by bisection over runs with fewer steps."""

    def run(steps: int) -> tuple[Any, float, int]:
        guide = problem.factory(problem.model)
        with counted() as count:
            done = fit(problem.model, guide, problem.x, steps=steps, optimiser=solver, seed=seed)
        return done, problem.gap_of(guide), count[0]

    try:
        with limited(MAX_SECONDS):
            done, ended, total = run(MAX_ITERATIONS)
    except TimeoutError:
        return Time(inf, inf, inf, inf)
    except ValueError:
        return Time(inf, inf, nan, nan)
    if ended >= MAX_GAP:
        return Time(inf, inf, ended, total)
    if done.seconds > MAX_REPEATED_SECONDS:
        return Time(total, done.seconds, ended, total)
    far, near, first = 0, done.steps, Time(total, done.seconds, ended, total)
    while near - far > 1:
        middle = (far + near) // 2
        short, gap, count = run(middle)
        if gap < MAX_GAP:
            near, first = middle, Time(count, short.seconds, ended, total)
        else:
            far = middle
    return first


def descended(problem: Problem, options: dict[str, Any], max_steps: int, seed: int) -> Time:
    """Runs a descent with twice the steps until its end is near: the schedule depends on the number of steps."""
    steps = 500
    while True:
        guide = problem.factory(problem.model)
        done = fit(problem.model, guide, problem.x, steps=steps, seed=seed, engine=Graph, **options)
        gap = problem.gap_of(guide)
        if gap < MAX_GAP or 2 * steps > max_steps:
            near = gap < MAX_GAP
            return Time(steps if near else inf, done.seconds if near else inf, gap, steps)
        steps *= 2


def defaulted(problem: Problem, seed: int) -> Time:
    """Runs fit(model, guide, x) with all defaults to its end; also counts the gradients spent on trials of rates."""
    guide = problem.factory(problem.model)
    guide.setup(problem.x)
    draws = lowest_variance_objective(guide, Batch((problem.x,), {})).draws
    taken = 0

    class Counting(Auto):
        def advance(self, steps: int) -> Tensor:
            nonlocal taken
            taken += steps
            return super().advance(steps)

    done = fit(problem.model, guide, problem.x, seed=seed, engine=Counting)
    gap, gradients = problem.gap_of(guide), draws * (taken + len(RATES) * TRIAL_STEPS)
    return Time(gradients, done.seconds, gap, gradients) if gap < MAX_GAP else Time(inf, inf, gap, gradients)


def stopped(problem: Problem, other: peer.Peer, rate: tuple[float, float], seed: int) -> Time:
    """The peer's run up to the first look that finds it near. Looks are 20 steps apart, and later 5 % of the steps so far."""
    path = other.run(*rate, seed=seed)
    closest, next_look = inf, 0.0
    for step, loc, root in zip(path.steps, path.loc, path.root, strict=True):
        if not np.isfinite(root).all():
            break
        if step >= next_look:
            next_look = 1.05 * step
            tril = torch.from_numpy(root.copy())
            gap = problem.gap(torch.from_numpy(loc.copy()), tril if problem.full_rank else tril.diag())
            closest = min(closest, gap)
            if gap < MAX_GAP:
                return Time(float(step), float(step) * path.seconds, closest, float(step))
    return Time(inf, inf, closest, float(other.steps))


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block after `seconds`."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class counted:  # noqa: N801 - a context manager
    """Counts gradients of log p(x, h) in the block: one for each draw, two for a Hessian-vector product of a draw."""

    def __enter__(self) -> list[int]:
        count = [0]

        def counting(method: Callable[..., Any], cost: Callable[..., int]) -> Callable[..., Any]:
            def call(self: Any, *args: Any) -> Any:
                count[0] += cost(self, *args)
                return method(self, *args)

            return call

        self.patches = [
            patch.object(Scores, "__call__", counting(Scores.__call__, lambda _, z: len(z))),
            patch.object(
                SampleAverage, "value_and_gradient", counting(SampleAverage.value_and_gradient, lambda own, _: own.draws)
            ),
            patch.object(SampleAverage, "curvature", counting(SampleAverage.curvature, lambda own, *_: 2 * own.draws)),
        ]
        for each in self.patches:
            each.start()
        return count

    def __exit__(self, *_: object) -> None:
        for each in self.patches:
            each.stop()


def mid(runs: list[Time]) -> Time:
    """The median over seeds of each number."""
    return Time(*(median(getattr(run, field) for run in runs) for field in ("gradients", "seconds", "ended", "total")))


def fastest(times: dict[str, list[Time]]) -> str:
    """The method with the fewest gradients; of methods that were never near, the one that ended nearest."""
    return min(times, key=lambda name: (mid(times[name]).gradients, mid(times[name]).ended))


def report(summary: list[Row], ours: list[Any], theirs: list[Any], options: Any) -> list[str]:
    apart = sum(row.our_time.seconds < row.peer_time.seconds for row in summary)
    faster = sum(row.our_time.seconds < row.peer_time.seconds + row.compilation for row in summary)
    return [
        "## Time to the best ELBO of a Gaussian family",
        "",
        f"{len(summary)} of {len(PROBLEMS)} problems have been run.",
        "",
        f"To within {MAX_GAP} nats of the family's best ELBO, known in closed form or by quadrature; float64, 1 thread,",
        f"medians over {options.seeds} seeds (FixedDraws, descents and the default: one). A gradient is one of log p(x, h) at",
        "one draw; a Hessian-vector product is two. The gap of the VAE is a datum's: both sides know its decoder, and 512",
        "even points stand for the exact ELBO. fit's own default is `fit(model, guide, x)`, run to its own end. The peer is",
        "NumPyro's Adam with one draw a step, compiled, at the best of its rates for each problem, with an oracle that looks",
        "at the exact ELBO after every 20 steps, later after every twentieth",
        f"more, and stops it at the right one of {options.steps}. Ours have no rate to choose; *ends* is where they stop by",
        f"themselves, after {MAX_ITERATIONS} iterations or {MAX_SECONDS} s (inf) at most. Descents are run with 500, 1000, …",
        f"{options.descent} steps until the end is near, for their rates fall to 0 with the last.",
        *([options.note] if options.note else []),
        "",
        "| problem | our best | gradients | s | peer's best rate | gradients | s | compilation, s | ratio |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
        *(
            f"| {r.problem} | {r.best} | {_n(r.our_time.gradients)} | {_s(r.our_time.seconds)} | {r.rate} "
            f"| {_never(r.peer_time)} | {_s(r.peer_time.seconds)} | {r.compilation:.1f} | {_ratio(r, options)} |"
            for r in summary
        ),
        "",
        f"Median ratio of gradients {_median(summary)}. Ours take less wall time on {faster} of {len(summary)} problems,",
        f"and on {apart} if the peer's compilation is not counted. A problem that the peer never solves counts as a win for",
        "ours.",
        "",
        "| problem | ours | gradients | s | ends: gap, nats | ends: gradients |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {problem} | {name} | {_n(t.gradients)} | {_s(t.seconds)} | {t.ended:.2g} | {_n(t.total)} |"
            for problem, name, t in ours
        ),
        "",
        "| problem | the peer's rate | gradients | s | closest, nats |",
        "|---|---|---:|---:|---:|",
        *(f"| {problem} | {name} | {_n(t.gradients)} | {_s(t.seconds)} | {t.ended:.2g} |" for problem, name, t in theirs),
    ]


def _median(summary: list[Row]) -> str:
    ratio = median(row.ratio for row in summary)
    return "beyond what was run" if isinf(ratio) else f"{ratio:.1f}"


def _n(number: float) -> str:
    return "never" if isinf(number) else f"{number:.0f}"


def _s(seconds: float) -> str:
    return "–" if isinf(seconds) else f"{seconds:.2f}"


def _never(time: Time) -> str:
    return f"never (closest {time.ended:.2g} nats)" if isinf(time.gradients) else f"{time.gradients:.0f}"


def _ratio(row: Row, options: Any) -> str:
    if isinf(row.our_time.gradients):
        return "–"
    return f"> {options.steps / row.our_time.gradients:.0f}" if isinf(row.peer_time.gradients) else f"{row.ratio:.1f}"


if __name__ == "__main__":
    main()
