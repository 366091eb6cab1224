"""Does fit(model, guide, x) reach the family's best q without tuning, and does it say so? Eight problems, twenty seeds each.

    python benchmarks/stopping.py --problems gaussian_mean,eight_schools --seeds 20

Finished runs are stored in a file and not repeated, so that the benchmark can be interrupted and continued.
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
from models.gaussian import mean_and_covariance

MAX_KL = 0.05
"""In nats: a run has reached the family's best q if its KL to it is below this."""
BEST_SOLVER = FixedDraws(draws=256, tolerance=1e-3, max_draws=4096)
"""Finds the family's best q where there is no closed form."""


def double(model, x):
    """The pair in double precision."""
    return model.double(), x.double()


def diabetes():
    """The diabetes data in double precision."""
    data = datasets.diabetes()
    return data._replace(x=data.x.double(), y=data.y.double())


@cache
def decoder():
    """A VAE of the digits with a trained and then frozen decoder, so that the best encoder is the same for every run."""
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
    """The family's best q, in closed form or by a solver to 1e-3 nats; for the encoder the ELBO per datum of one long fit."""
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
        mean, covariance = mean_and_covariance(model.posterior(x))
        precision = torch.linalg.inv(covariance)
        within = torch.zeros_like(covariance)
        for block in guide.family.blocks():
            index = torch.tensor(block)
            within[..., index[:, None], index] = torch.linalg.inv(precision[..., index[:, None], index])
        return torch.distributions.MultivariateNormal(mean, within)
    fit(model, guide, x, optimiser=BEST_SOLVER, steps=2000)
    with torch.no_grad():
        mean, covariance = mean_and_covariance(guide.q(x))
    return torch.distributions.MultivariateNormal(mean.clone(), covariance.clone())


def run(problem, seed):
    """Fits a problem with a seed; returns how far q ends from the best, and what the fit says of itself."""
    make, factory = PROBLEMS[problem]
    model, x = make()
    with isolated(seed):
        guide = factory(model)
    done = fit(model, guide, x, seed=seed)
    with torch.no_grad():
        if problem == "digits_vae":
            distance = best(problem) - elbo(model, guide, x, draws=400, seed=1).value / len(x)
        else:
            mean, covariance = mean_and_covariance(guide.q(x))
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
    """KL of the runs of one problem, in nats. Encoders are compared with the best of these runs, the best encoder known."""
    kls = [r["kl"] for r in runs]
    return [kl - min(kls) for kl in kls] if runs[0]["problem"] == "digits_vae" else kls


def table(runs):
    """One row for each problem that has runs."""
    lines = [
        "| problem | runs | KL < 0.05 | KL median | KL largest | claimed, median | converged | steps, median | least | "
        "seconds, median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for problem in PROBLEMS:
        mine = [r for r in runs if r["problem"] == problem]
        if mine:
            kls, steps = np.array(distances(mine)), np.array([r["steps"] for r in mine])
            lines.append(
                f"| {problem} | {len(mine)} | {(kls < MAX_KL).sum()} | {np.median(kls):.2g} | {kls.max():.2g} | "
                f"{np.median([r['claimed'] for r in mine]):.2g} | {sum(r['converged'] for r in mine)} | "
                f"{np.median(steps):.0f} | {steps.min()} | {np.median([r['seconds'] for r in mine]):.1f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="names separated by commas")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("results/stopping.jsonl"), help="file of finished runs")
    parser.add_argument("--only-run", action="store_true", help="do not write RESULTS.md")
    parser.add_argument("--note", default="", help="sentence to add to the section of RESULTS.md")
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
    """The section of RESULTS.md."""
    reached = early = 0
    for problem in PROBLEMS:
        mine = [r for r in runs if r["problem"] == problem]
        steps = [r["steps"] for r in mine]
        reached += sum(kl < MAX_KL for kl in distances(mine)) if mine else 0
        early += sum(s < 0.1 * np.median(steps) for s in steps)
    return [
        "## Stopping",
        "",
        "`fit(model, guide, x)` with all defaults: it chooses the steps and the rate. KL(q ‖ q*) is in nats, in total over",
        "the data, to the family's best q*, which is known in closed form for the first three problems and the diabetes",
        "regression and is found by `FixedDraws` to 1e-3 nats for the others. digits_vae: the decoder is learned first and",
        "then frozen, and the ELBO per datum below the best of all runs stands for the KL. Every run ends after at most",
        f"{Converged().most} steps. The table has the finished runs, of eight problems with twenty seeds each. The machine",
        "did other work at the same time, so seconds are approximate. *claimed* is the KL that a fit itself reports, and",
        "*converged* counts the runs that reported convergence.",
        *([note] if note else []),
        "",
        *table(runs),
        "",
        f"{reached} of {len(runs)} runs reach KL < {MAX_KL}. {early} of {len(runs)} stop in the first tenth of the median",
        "number of steps of their problem.",
    ]


if __name__ == "__main__":
    main()
