"""Fits of this suite's models: whole ones, and one that its step limit cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoNormal

from guides import Bernoulli, FullRank, Global, Local, MeanField
from inference import fit
from inference.diagnostics import scalars
from inference.optimisers import NaturalGradient
from inference.programs.isolation import isolated
from models import (
    BinaryVAE,
    DirichletCategorical,
    FactorAnalysis,
    GaussianMean,
    GaussianProcess,
    LinearRegression,
    LocalGaussian,
    LocalModel,
)

from .base import TAIL, Case, Truth

__all__ = ["fit_cases"]


def _truth(model: Any, x: torch.Tensor) -> Truth:
    """From draws of the exact posterior, and the exact evidence."""
    with isolated(7), torch.no_grad():
        draws = model.posterior(x).sample((100_000,)).double().flatten(1)
        evidence = float(model.log_evidence(x).sum())
    shape = (len(x), -1) if isinstance(model, LocalModel) else (-1,)
    table = scalars({"h": draws.unflatten(1, shape)}).draws
    low, high = (torch.stack([c.quantile(p) for c in table.T]) for p in (TAIL, 1 - TAIL))
    return Truth(table.mean(0), table.std(0), low, high, evidence)


def _fitted(name: str, kind: Any, factory: Callable[[Any], Any], rows: int | None = None, **options: Any) -> Case:
    with isolated(0):
        model, x = kind.demo(seed=1)
    model, x = model.double(), x.double()[:rows]
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def make() -> tuple[Any, torch.Tensor]:
        with isolated(0):
            guide = factory(model)
        return fit(model, guide, x, **options), x

    return Case(name, make, _truth(model, x), 20_000)


def fit_cases() -> list[Case]:
    """Fits of this suite's models whose posteriors are known."""
    solver = {"optimiser": NaturalGradient()}
    return [
        _fitted("GaussianMean, full rank", GaussianMean, lambda m: Global(m, FullRank()), **solver),
        _fitted("GaussianMean, AutoNormal", GaussianMean, AutoNormal, steps=800, lr=0.05),
        _fitted("GaussianMean, cut off", GaussianMean, lambda m: Global(m, MeanField()), steps=10, lr=0.01),
        _fitted("LinearRegression, full rank", LinearRegression, lambda m: Global(m, FullRank()), **solver),
        _fitted("LinearRegression, mean field", LinearRegression, lambda m: Global(m, MeanField()), **solver),
        _fitted("GaussianProcess, full rank", GaussianProcess, lambda m: Global(m, FullRank()), **solver),
        _fitted("DirichletCategorical, full rank", DirichletCategorical, lambda m: Global(m, FullRank()), **solver),
        _fitted("LocalGaussian, local mean field", LocalGaussian, lambda m: Local(m, MeanField()), 20, steps=1000, lr=0.03),
        _fitted("FactorAnalysis, local full rank", FactorAnalysis, lambda m: Local(m, FullRank()), 10, steps=2000, lr=0.03),
        _fitted("BinaryVAE, local Bernoulli", BinaryVAE, lambda m: Local(m, Bernoulli()), 10, steps=1500, lr=0.05),
    ]
