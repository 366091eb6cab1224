"""Runs the cases in one checkout and writes their numbers as JSON, in which floats keep every bit.

`versions.py` starts it as ``python -m version_runs.worker`` with the checkout first on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import guides
import inference
import models
from inference import fit, fit_many
from inference.engine import Auto, CompiledLoop, Eager, Graph

from .methods import ESTIMATES, METHODS, OBJECTIVES, STEPS, tensors
from .pairs import PAIRS, Pair

__all__ = ["main"]

SEED = 1
ENGINES = {engine.__name__: engine for engine in (Eager, Graph, CompiledLoop, Auto)}
NO_ENGINE = "–"
"""In place of an engine where numbers are computed from a fit by Eager; these cases are always run."""


class Case(NamedTuple):
    """One fit or estimate."""

    pair: str
    method: str
    """The objective, other way to fit, or estimate."""
    engine: str
    run: Callable[[], dict[str, Any]]
    """Returns its numbers as lists."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="*", default=[])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    options = parser.parse_args()
    for package in (models, guides, inference):
        if options.checkout.resolve() not in Path(str(package.__file__)).resolve().parents:
            parser.error(f"{package.__name__} is imported from {package.__file__}, which is not in {options.checkout}.")
    torch.set_num_threads(1)
    found = []
    chosen = {name: pair for name, pair in PAIRS.items() if named(name, options.pairs)}
    if not chosen:
        parser.error(f"no pair's name contains any of {options.pairs}; the pairs are {'; '.join(PAIRS)}.")
    for number, (name, pair) in enumerate(chosen.items()):
        print(f"{number + 1}/{len(chosen)} {name}", file=sys.stderr, flush=True)
        torch.set_default_dtype(pair.dtype)
        found += [recorded(case, pair) for case in cases(name, pair) if case.engine in (*options.engines, NO_ENGINE)]
    options.out.write_text(json.dumps(found))


def named(name: str, words: list[str]) -> bool:
    """Whether the name contains one of the words; without words every name is chosen."""
    return not words or any(word.lower() in name.lower() for word in words)


def cases(name: str, pair: Pair) -> Iterator[Case]:
    """All that is run with a pair. CompiledLoop comes before Auto, which then finds the compiled loop on disk."""
    for first, objective in zip([True] + [False] * len(pair.objectives), pair.objectives, strict=False):
        for engine in ENGINES:
            if engine in ("Eager", "Graph") or (first and (engine == "Auto" or pair.compiled)):
                yield Case(name, objective, engine, partial(fitted, pair, objective, engine))
    for method in pair.methods:
        yield Case(name, method, "Eager", partial(fitted_otherwise, pair, method))
    if pair.together:
        yield Case(name, "fit_many, 3 seeds", "Graph", partial(fitted_together, pair))
    for estimate in pair.estimates:
        yield Case(name, estimate, NO_ENGINE, partial(estimated, pair, estimate))


def recorded(case: Case, pair: Pair) -> dict[str, Any]:
    """The numbers of a case, or its error, and the warnings it gave."""
    error, numbers = None, {}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            numbers = case.run()
        except Exception as raised:  # a case that fails is a finding, and the others still run
            error = f"{type(raised).__name__}: {raised}"
    return {
        "case": [case.pair, case.method, case.engine],
        "single": pair.dtype == torch.float32,
        "error": error,
        "warnings": sorted({warning.category.__name__ for warning in given}),
        "messages": sorted({str(warning.message) for warning in given}),
        "numbers": numbers,
    }


def made(pair: Pair, seed: int = SEED) -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    return pair.make()


def fitted(pair: Pair, objective: str, engine: str) -> dict[str, Any]:
    chosen = None if objective == "default" else OBJECTIVES[objective]()
    return as_lists(plain_fit(pair, objective=chosen, engine=ENGINES[engine])[0])


def fitted_otherwise(pair: Pair, method: str) -> dict[str, Any]:
    model, guide, x = made(pair)
    return as_lists(fit(model, guide, x, engine=Eager, seed=SEED, **METHODS[method]()))


def fitted_together(pair: Pair) -> dict[str, Any]:
    seeds = range(SEED, SEED + 3)
    pairs = [made(pair, seed)[:2] for seed in seeds]
    x = made(pair)[2]
    fits = fit_many(pairs, x, seeds=seeds, steps=STEPS, lr=0.02, engine=Graph, batch_size=pair.batch_size)
    return {f"{seed}/{name}": value for seed, done in zip(seeds, fits, strict=True) for name, value in as_lists(done).items()}


def estimated(pair: Pair, estimate: str) -> dict[str, Any]:
    done, x = plain_fit(pair, objective=None, engine=Eager)
    return {name: value.tolist() for name, value in tensors(ESTIMATES[estimate](done, x), estimate)}


def plain_fit(pair: Pair, **options: Any) -> tuple[Any, Any]:
    """A short fit by Adam, and its data."""
    model, guide, x = made(pair)
    return fit(model, guide, x, steps=STEPS, lr=0.02, batch_size=pair.batch_size, seed=SEED, **options), x


def as_lists(done: Any) -> dict[str, Any]:
    """Losses, final parameters, and the end of a fit."""
    found = {"losses": done.nelbo.tolist(), "steps": done.steps, "converged": done.stop.converged}
    if done.stop.distance is not None:
        found["distance"] = float(done.stop.distance)
    for role, program in (("model", done.model), ("guide", done.guide)):
        if isinstance(program, torch.nn.Module):
            found |= {f"{role}/{name}": p.detach().tolist() for name, p in program.named_parameters()}
    return found | {f"store/{name}": p.detach().tolist() for name, p in done.params["params"].items()}


if __name__ == "__main__":
    main()
