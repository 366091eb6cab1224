"""Does fit(model, guide, x) reach the family's best by itself, and say so? Eight problems, twenty seeds each, nothing tuned.

Runs are kept in a file, and those that are there are not run again: a long benchmark can be stopped and taken up.

    python benchmarks/stopping.py --problems gaussian_mean,eight_schools --seeds 20
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from results import record

from guides import MLP, Amortized, FullRank, Global, Linear, Local, MeanField
from inference import elbo, fit, kl
from inference.engine import CompiledLoop
from inference.optimisers import FixedDraws
from inference.programs.isolation import isolated
from inference.stopping import Converged
from models import (
    VAE,
    EightSchools,
    FactorAnalysis,
    GaussianMean,
    LinearRegression,
    LocalGaussian,
    LogisticRegression,
    datasets,
)
from models.gaussian import moments

WITHIN = 0.05
"""Nats: a run whose KL to the family's best is below this has reached it."""
LONG = FixedDraws(draws=256, tolerance=1e-3, max_draws=4096)
"""The long run where no algebra gives the best."""


def double(model, x):
    return model.double(), x.double()


def diabetes():
    data = datasets.diabetes()
    return data._replace(x=data.x.double(), y=data.y.double())


@cache
def decoder():
    """A digits VAE whose decoder a long fit has learned; it is frozen then, so that there is one best encoder to reach."""
    x = datasets.digits(binarised=True).x
    with isolated(0):
        model = VAE((64,), 4)
    fit(model, Amortized(model, MeanField(), MLP((64,))), x, steps=6000, lr=0.01, batch_size=256, engine=CompiledLoop)
    return model.requires_grad_(False), x


PROBLEMS = {
    "gaussian_mean": (lambda: double(*GaussianMean.demo()), lambda m: Global(m, MeanField())),
    "local_gaussian": (lambda: double(*LocalGaussian.demo()), lambda m: Amortized(m, FullRank(), Linear())),
    "factor_analysis": (lambda: double(*FactorAnalysis.demo()), lambda m: Local(m, MeanField())),
    "eight_schools": (lambda: double(*EightSchools.demo()), lambda m: Global(m, MeanField())),
    "eight_schools_centred": (lambda: double(*EightSchools.demo(centered=True)), lambda m: Global(m, MeanField())),
    "logistic_regression": (lambda: LogisticRegression.from_dataset(diabetes()), lambda m: Global(m, FullRank())),
    "diabetes_regression": (lambda: LinearRegression.from_dataset(diabetes()), lambda m: Global(m, FullRank())),
    "digits_vae": (decoder, lambda m: Amortized(m, MeanField(), MLP((64,)))),
}


@cache
def best(problem):
    """The family's best q: by algebra, or by a solver to 1e-3 nats; for the encoder the ELBO of one fit, per datum."""
    make, factory = PROBLEMS[problem]
    model, x = make()
    if problem == "digits_vae":
        with isolated(100):
            guide = factory(model)
        fit(model, guide, x, steps=15000, lr=0.003, seed=100, engine=CompiledLoop)
        return elbo(model, guide, x, draws=400, seed=1).value / len(x)
    guide = factory(model)
    if hasattr(model, "posterior"):
        guide.setup(x)
        mean, covariance = moments(model.posterior(x))
        precision = torch.linalg.inv(covariance)
        within = torch.zeros_like(covariance)
        for block in guide.family.blocks():
            index = torch.tensor(block)
            within[..., index[:, None], index] = torch.linalg.inv(precision[..., index[:, None], index])
        return torch.distributions.MultivariateNormal(mean, within)
    fit(model, guide, x, optimiser=LONG, steps=2000)
    with torch.no_grad():
        mean, covariance = moments(guide.q(x))
    return torch.distributions.MultivariateNormal(mean.clone(), covariance.clone())


def run(problem, seed):
    make, factory = PROBLEMS[problem]
    model, x = make()
    with isolated(seed):
        guide = factory(model)
    done = fit(model, guide, x, seed=seed)
    with torch.no_grad():
        if problem == "digits_vae":
            distance = best(problem) - elbo(model, guide, x, draws=400, seed=1).value / len(x)
        else:
            mean, covariance = moments(guide.q(x))
            distance = float(kl(torch.distributions.MultivariateNormal(mean, covariance), best(problem)).sum())
    return {
        "problem": problem,
        "seed": seed,
        "kl": distance,
        "claimed": done.stop.distance * (len(x) if problem in {"local_gaussian", "factor_analysis"} else 1),
        "converged": done.stop.converged,
        "averaged": done.stop.averaged,
        "steps": done.steps,
        "seconds": done.seconds,
    }


def distances(runs):
    """KL of the runs of one problem. Encoders are counted from the best of them all, for that is the best that is known."""
    kls = [r["kl"] for r in runs]
    return [kl - min(kls) for kl in kls] if runs[0]["problem"] == "digits_vae" else kls


def table(runs):
    lines = [
        "| problem | runs | KL < 0.05 | KL median | KL largest | claimed, median | said converged | steps, median | least | "
        "seconds, median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for problem in PROBLEMS:
        mine = [r for r in runs if r["problem"] == problem]
        if mine:
            kls, steps = np.array(distances(mine)), np.array([r["steps"] for r in mine])
            lines.append(
                f"| {problem} | {len(mine)} | {(kls < WITHIN).sum()} | {np.median(kls):.2g} | {kls.max():.2g} | "
                f"{np.median([r['claimed'] for r in mine]):.2g} | {sum(r['converged'] for r in mine)} | "
                f"{np.median(steps):.0f} | {steps.min()} | {np.median([r['seconds'] for r in mine]):.1f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("results/stopping.jsonl"))
    parser.add_argument("--only-run", action="store_true", help="do not write the section")
    parser.add_argument("--note", default="", help="put into the section")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    lines = options.runs.read_text().splitlines() if options.runs.exists() else []
    runs = [json.loads(line) for line in lines]
    known = {(r["problem"], r["seed"]) for r in runs}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for problem in options.problems.split(","):
            if (problem, seed) not in known:
                runs.append(run(problem, seed))
                with options.runs.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                print(runs[-1], flush=True)
    if not options.only_run:
        record(__file__, "\n".join(section(runs, options.note)))


def section(runs, note):
    reached = early = 0
    for problem in PROBLEMS:
        mine = [r for r in runs if r["problem"] == problem]
        steps = [r["steps"] for r in mine]
        reached += sum(kl < WITHIN for kl in distances(mine)) if mine else 0
        early += sum(s < 0.1 * np.median(steps) for s in steps)
    return [
        "## Stopping",
        "",
        "`fit(model, guide, x)`: no steps, no rate, nothing tuned. KL(q ‖ q*) in nats to the family's best q*,",
        "in total: by algebra for the first three and the diabetes regression, else by `FixedDraws` to 1e-3 nats. digits_vae:",
        "the decoder is learned and frozen first, and the ELBO per datum below the best that any of its runs has found stands",
        f"for the KL. Runs end at {Converged().most} steps in any case. Of eight problems and twenty seeds those in the table",
        "have been run. Seconds were taken on a machine that did other work.",
        *([note] if note else []),
        "",
        *table(runs),
        "",
        f"{reached} of {len(runs)} runs reach KL < {WITHIN}. {early} of {len(runs)} stop in the first tenth of the median",
        "number of steps of their problem.",
    ]


if __name__ == "__main__":
    main()
