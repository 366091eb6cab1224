"""How long a fit takes that names no option, and how near it comes: plain Pyro programs with known moments.

    TAUT_DATA=folder python benchmarks/default_route.py [PATTERN]

The folder holds posteriordb/ and arm/ (regressions of Gelman & Hill with Bambi's priors; needs the package formulae). Rows are
the problems whose names match PATTERN. Each is fitted with Pyro's AutoNormal and AutoMultivariateNormal and with this suite's
mean field and full rank. *left* is the ELBO of the best known q of the family less that of the fit, in nats: the best is the
fit itself or natural gradients from ten starts to a tolerance of 0.001 nats. Errors are in reference sds, the largest over all
scalars. Seconds are
wall time of the first fit of the pair in this process, and its processor time.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from formulae import design_matrices
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from guides import FullRank, Global, MeanField
from inference import elbo, fit
from inference.optimisers import NaturalGradient
from inference.programs.draws import draw_all
from inference.programs.isolation import isolated
from models.posteriordb import problem
from models.posteriordb.problem import ports

GUIDES: dict[str, Callable[[Any], Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "Global(MeanField)": lambda model: Global(model, MeanField()),
    "Global(FullRank)": lambda model: Global(model, FullRank()),
}
DRAWS = 4000
"""Draws that estimate ELBOs and moments."""


@dataclass(frozen=True)
class Problem:
    """A plain Pyro program with known moments.

    Attributes:
        quantities: maps draws of the latents to the quantities whose moments are known.
        moments: mean and sd of each, shape (*shape) each; empty if they are not known.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    quantities: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    moments: dict[str, tuple[Tensor, Tensor]]


def of_posteriordb(folder: Path) -> Iterator[Problem]:
    """The ports of posteriordb, each as a plain function."""
    for name in sorted(ports()):
        model, x, entry = problem(folder / "posteriordb", name)

        def program(x: Tensor, model: Any = model) -> Any:
            return model(x)

        reference = entry.reference.quantities() if entry.reference is not None else {}
        moments = {n: (v.double().mean(0), v.double().std(0)) for n, v in reference.items()}
        yield Problem(name, program, (x,), model.quantities, moments)


def of_arm(folder: Path) -> Iterator[Problem]:
    """The regressions of Gelman & Hill, with Bambi's default priors."""
    for file in sorted((folder / "arm").glob("*.json")):
        known = json.loads(file.read_text())
        moments = {
            name: (_tensor(found["mean"]), _tensor(found["sd"]))
            for name, found in known["scalars"].items()
            if name in known["priors"] and not np.isnan(np.asarray(found["mean"], dtype=float)).any()
        }
        model, y, quantities = regression(known, pd.read_csv(file.with_suffix(".csv")))
        yield Problem(known["name"], model, (y,), quantities, moments)


def regression(known: dict[str, Any], data: pd.DataFrame) -> tuple[Callable[..., Any], Tensor, Callable[..., Any]]:
    """A generalised linear model as a plain Pyro program, its data, and the map from its latents to Bambi's quantities."""
    design = design_matrices(known["bambi_formula"], data)
    priors, gaussian = known["priors"], known["family"] == "gaussian"
    y = torch.as_tensor(np.asarray(design.response), dtype=torch.float64).reshape(-1)
    common = torch.as_tensor(np.asarray(design.common), dtype=torch.float64)
    columns = {name: common[:, part] - common[:, part].mean(0) for name, part in design.common.slices.items()}
    columns.pop("Intercept", None)
    groups: dict[str, Tensor] = {}
    if design.group is not None:
        whole = torch.as_tensor(np.asarray(design.group.design_matrix), dtype=torch.float64)
        groups = {name: whole[:, part] for name, part in design.group.slices.items()}

    def model(y: Tensor) -> None:
        prior = priors["Intercept"]
        mean = pyro.sample("Intercept", dist.Normal(_tensor(prior["mu"]), _tensor(prior["sigma"])))
        for name, x in columns.items():
            scale = _tensor(priors[name]["sigma"]).expand(x.shape[1])
            mean = mean + x @ pyro.sample(name, dist.Normal(_tensor(priors[name]["mu"]), scale).to_event(1))
        for name, z in groups.items():
            sigma = pyro.sample(f"{name}_sigma", dist.HalfNormal(_tensor(priors[name]["sigma"]["sigma"])))
            offset = pyro.sample(f"{name}_offset", dist.Normal(torch.zeros(z.shape[1]).double(), 1.0).to_event(1))
            mean = mean + z @ (sigma * offset)
        if gaussian:
            prior = priors["sigma"]
            nu, scale = _tensor(prior["nu"]), _tensor(prior["sigma"])
            noise = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(nu, torch.zeros_like(scale), scale)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, noise) if gaussian else dist.Bernoulli(logits=mean), obs=y)

    def quantities(h: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {name: value[..., 0] if value.dim() > 1 and value.shape[-1] == 1 else value for name, value in h.items()}
        return found | {name: h[f"{name}_sigma"].unsqueeze(-1) * h[f"{name}_offset"] for name in groups}

    return model, y, quantities


def scaled_poisson() -> Problem:
    """A Poisson regression with 40 groups and covariates of standard deviations 1, 30 and 0.02."""
    generator = torch.Generator().manual_seed(0)
    rows, groups = 2000, 40
    group = torch.randint(groups, (rows,), generator=generator)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 30.0, 0.02], dtype=torch.float64)
    level = 0.5 * torch.randn(groups, generator=generator, dtype=torch.float64)
    y = torch.poisson((level[group] + x @ torch.tensor([0.3, 0.01, 10.0]).double()).exp(), generator=generator)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()).double(), 2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(()).double()))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3).double(), torch.tensor([2.0, 0.5, 50.0]).double()).to_event(1))
        with pyro.plate("groups", groups):
            alpha = pyro.sample("alpha", dist.Normal(mu, sigma))
        with pyro.plate("data", rows):
            pyro.sample("y", dist.Poisson((alpha[group] + x @ beta).exp()), obs=y)

    return Problem("poisson-scaled", model, (y,), dict, {})


def row(one: Problem, name: str) -> str:
    """Fits one guide by the default and judges it."""
    begin, own = time.perf_counter(), time.process_time()
    done = fit(one.model, GUIDES[name](one.model), one.args)
    seconds, own = time.perf_counter() - begin, time.process_time() - own
    reached = elbo(done.model, done.guide, one.args, draws=DRAWS)
    best = reached
    for starts in (1, 10):
        try:
            rival = fit(one.model, GUIDES[name](one.model), one.args, optimiser=NaturalGradient(tolerance=1e-3, starts=starts))
        except (ValueError, RuntimeError, FloatingPointError):
            continue
        found = elbo(rival.model, rival.guide, one.args, draws=DRAWS)
        best = max(best, found, key=lambda estimate: estimate.value)
    mean_error, sd_error = errors(one, done)
    left, se = best.value - reached.value, (best.se**2 + reached.se**2) ** 0.5 if best is not reached else 0.0
    ended = "converged" if done.stop.converged else "open"
    route = " → ".join(f"{a.name} {a.seconds:.1f} s" for a in done.route)
    return (
        f"{one.name:38s} {name:23s} {seconds:7.2f}{own:7.2f} {reached.value:12.3f} ± {reached.se:<6.3f} "
        f"{left:8.3f} ± {se:<6.3f}{mean_error:8.3f}{sd_error:8.3f}  {ended:10s} {route}"
    )


def errors(one: Problem, done: Any) -> tuple[float, float]:
    """The largest error of a mean and of an sd, in reference sds."""
    if not one.moments:
        return float("nan"), float("nan")
    with isolated(0):
        found = one.quantities(draw_all(done.model, done.guide, one.args, draws=DRAWS).h)
    means, sds = [], []
    for name, (mean, sd) in one.moments.items():
        keep = sd > 0
        value = found[name].double().reshape(DRAWS, *mean.shape)
        means.append(((value.mean(0) - mean).abs() / sd)[keep].max())
        sds.append(((value.std(0) - sd).abs() / sd)[keep].max())
    return float(torch.stack(means).max()), float(torch.stack(sds).max())


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def main() -> None:
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder = Path(os.environ["TAUT_DATA"])
    print(f"{'problem':38s} {'guide':23s} seconds    cpu         ELBO ± SE         left ± SE     mean      sd")
    for problems in (of_posteriordb(folder), of_arm(folder), iter([scaled_poisson()])):
        for one in problems:
            for name in GUIDES if pattern.search(one.name) else ():
                try:
                    print(row(one, name), flush=True)
                except Exception as error:  # a row that fails is a result
                    print(f"{one.name:38s} {name:23s} {type(error).__name__}: {str(error)[:120]}", flush=True)


if __name__ == "__main__":
    main()
