"""Bias, variance and cost of every gradient estimator, at the start, half way and at the optimum of three problems."""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from results import record

from guides import Amortized, FullRank, Global, Linear, Local, MeanField
from inference import analytic_elbo, best_elbo, fit, gradient_variance
from inference.objectives import (
    IWAE,
    VIMCO,
    AnalyticKL,
    ClosedFormEntropy,
    DReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    TraceELBO,
)
from inference.programs.isolation import isolated
from models import FactorAnalysis, LinearRegression, LocalGaussian

K = 5
SEED = 0
OBJECTIVES = {
    "TraceELBO": TraceELBO(K),
    "AnalyticKL": AnalyticKL(K),
    "StickingTheLanding": StickingTheLanding(K),
    "ClosedFormEntropy": ClosedFormEntropy(K),
    "ScoreFunction": ScoreFunction(K),
    "IWAE": IWAE(K),
    "DReG": DReG(K),
    "Renyi(0.5)": Renyi(0.5, K),
    "VIMCO": VIMCO(K),
    "ReweightedWakeSleep": ReweightedWakeSleep(K),
}
PROBLEMS = {
    "LocalGaussian, Amortized(MeanField, Linear): the posterior is in reach": (
        LocalGaussian,
        lambda model: Amortized(model, MeanField(), Linear()),
    ),
    "LinearRegression, Global(FullRank): the posterior is in reach": (
        LinearRegression,
        lambda model: Global(model, FullRank()),
    ),
    "FactorAnalysis, Local(MeanField): the posterior is not in reach": (
        FactorAnalysis,
        lambda model: Local(model, MeanField()),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    torch.set_num_threads(1)
    lines = [
        "## Gradient estimators",
        "",
        f"{K} draws in each estimate, {draws} estimates, float64, 1 thread, seed {SEED}. *Variance*: trace of the",
        "covariance of one estimate, in (nats per unit of λ)². *Bias²*: estimated squared distance to the closed-form",
        "gradient of −ELBO, ± its standard error; `–` if the estimator targets another function. The last column is",
        "variance × time. *Half way*: half of the initial gap to the best ELBO is left.",
    ]
    for title, (model_class, factory) in PROBLEMS.items():
        model, x = model_class.demo(seed=SEED)
        model, x = model.double(), x.double()
        with isolated(SEED):
            guide = factory(model)
            guide.setup(x)
        for place in points(model, guide, x):
            table = gradient_variance(model, guide, OBJECTIVES, x, draws=draws, seed=SEED)
            with torch.no_grad():
                gap = float((best_elbo(model, guide.family, x) - analytic_elbo(model, guide.q(x), x)).sum())
            lines += ["", f"### {title}; {place}, {gap:.2g} nats below the best", "", markdown(table.to_frame())]
    record(__file__, "\n".join(lines))


def points(model, guide, x):
    """Brings the guide to each place in turn: the start, where half of the gap is left, the optimum."""
    yield "start"
    best = float(best_elbo(model, guide.family, x).sum())

    def gap():
        with torch.no_grad():
            return best - float(analytic_elbo(model, guide.q(x), x).sum())

    start = gap()
    while gap() > start / 2:
        fit(model, guide, x, steps=5, lr=0.02, schedule=None, seed=SEED)
    yield "half way"
    fit(model, guide, x, steps=1500, lr=0.03, objective=StickingTheLanding(K), seed=SEED)
    yield "optimum"


def markdown(frame: pd.DataFrame) -> str:
    lines = ["| objective | variance | bias² | ms | variance × ms |", "|---|---:|---:|---:|---:|"]
    for row in frame.itertuples():
        bias = "–" if pd.isna(row.squared_bias) else f"{row.squared_bias:.2g} ± {row.squared_bias_se:.2g}"
        lines.append(
            f"| {row.objective} | {row.variance:.3g} | {bias} | {1e3 * row.seconds:.2f} | {1e3 * row.variance_seconds:.3g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
