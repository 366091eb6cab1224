"""Pairs of model and guide, and what is done with each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import autoguide

from guides import (
    MLP,
    Amortized,
    Bernoulli,
    Blocks,
    Delta,
    Flow,
    FullRank,
    Global,
    Linear,
    Local,
    LowRank,
    MeanField,
    PerStep,
    Posterior,
    Prior,
    SemiAmortized,
    Structured,
)
from models import (
    VAE,
    Banana,
    BetaBernoulli,
    BinaryVAE,
    DirichletCategorical,
    EightSchools,
    FactorAnalysis,
    GammaPoisson,
    GaussianMean,
    GaussianMixture,
    GaussianProcess,
    LinearRegression,
    LinearVAE,
    LocalGaussian,
    LogisticRegression,
    NormalGamma,
    Radon,
    StateSpace,
)

from .programs import bernoulli, gamma_beta, local_normal, net, normal_in_minibatches, schools

__all__ = ["PAIRS", "Pair"]


@dataclass(frozen=True)
class Pair:
    """A model, a guide, data, and what is done with them."""

    make: Callable[[], tuple[Any, Any, Any]]
    """Makes model, guide and data under a random state that has been seeded."""
    objectives: tuple[str, ...] = ("default",)
    """Every engine runs the first; Eager and Graph run the others too."""
    methods: tuple[str, ...] = ()
    """Other ways to fit, by Eager."""
    estimates: tuple[str, ...] = ()
    """Functions of a fit by Eager."""
    batch_size: int | None = None
    compiled: bool = False
    """Whether CompiledLoop runs it, which takes many seconds to compile; Auto then finds the compiled loop on disk."""
    together: bool = False
    """Whether `fit_many` runs it with several seeds."""
    dtype: torch.dtype = torch.float64


def suite(model_class: Any, factory: Callable[[Any], Any], **options: Any) -> Callable[[], tuple[Any, Any, Any]]:
    """A model of this suite with its demonstration data, and a guide for it."""

    def make() -> tuple[Any, Any, Any]:
        model, x = model_class.demo(**options)
        return model, factory(model), x

    return make


def guided(source: Any, *options: Any) -> Callable[[Any], Any]:
    """A factory of guides: a source with its family and, if it takes one, an encoder."""
    return lambda model: source(model, *options)


def mixture() -> tuple[Any, Any, Any]:
    """Posterior of a mixture that learns the means of its components."""
    known, x = GaussianMixture.demo()
    model = GaussianMixture(torch.nn.Parameter(known.loc + 0.5), known.scale, known.weights)
    return model, Posterior(model), x


DISCRETE = ("default", "ScoreFunction(3)", "VIMCO(3)", "ReweightedWakeSleep(3)")
WEIGHTED = ("IWAE(3)", "DReG(3)", "Renyi(0.5, 3)", "ReweightedWakeSleep(3)")

GLOBAL: dict[str, Pair] = {
    "GaussianMean, Global(MeanField)": Pair(
        suite(GaussianMean, guided(Global, MeanField())),
        objectives=("default", "AnalyticKL(2)", "StickingTheLanding(2)", "ScoreFunction(3)", "TraceMeanField_ELBO"),
        methods=("to convergence", "to a plateau", "SGD, constant rate", "DoWG"),
        estimates=("elbo", "iwae", "iwae, Defensive", "gaps", "ais", "trust", "gradient_variance"),
        compiled=True,
        together=True,
    ),
    "GaussianMean, Global(MeanField), batches": Pair(suite(GaussianMean, guided(Global, MeanField())), batch_size=7),
    "LinearRegression, Global(FullRank)": Pair(
        suite(LinearRegression, guided(Global, FullRank())),
        objectives=("default", "ClosedFormEntropy(2)", *WEIGHTED),
        methods=(
            "NaturalGradient",
            "BatchAndMatch",
            "FixedDraws",
            "start from Pathfinder",
            "start from the prior, 3 restarts",
        ),
        estimates=("elbo", "iwae", "compare", "trust"),
        together=True,
    ),
    "LogisticRegression, Global(LowRank(1)), batches": Pair(
        suite(LogisticRegression, guided(Global, LowRank(1))), objectives=("default", "TraceELBO(3)"), batch_size=10
    ),
    "GammaPoisson, Global(Blocks(2, 1))": Pair(suite(GammaPoisson, guided(Global, Blocks(2, 1))), estimates=("elbo", "iwae")),
    "DirichletCategorical, Global(FullRank)": Pair(suite(DirichletCategorical, guided(Global, FullRank()))),
    "BetaBernoulli, Global(Delta)": Pair(suite(BetaBernoulli, guided(Global, Delta()))),
    "NormalGamma, Global(MeanField)": Pair(
        suite(NormalGamma, guided(Global, MeanField())), estimates=("elbo", "iwae", "trust")
    ),
    "GaussianProcess, Global(FullRank)": Pair(
        suite(GaussianProcess, guided(Global, FullRank())), methods=("NaturalGradient",)
    ),
    "Banana, Global(Flow)": Pair(suite(Banana, guided(Global, Flow())), estimates=("elbo", "iwae")),
    "Radon, Global(MeanField)": Pair(suite(Radon, guided(Global, MeanField())), methods=("FixedDraws",), estimates=("elbo",)),
}
LOCAL: dict[str, Pair] = {
    "LocalGaussian, Local(MeanField)": Pair(
        suite(LocalGaussian, guided(Local, MeanField())),
        methods=("to convergence",),
        estimates=("elbo", "iwae", "gaps"),
        together=True,
    ),
    "LocalGaussian, Amortized(FullRank, Linear)": Pair(
        suite(LocalGaussian, guided(Amortized, FullRank(), Linear())),
        objectives=("default", *WEIGHTED),
        estimates=("elbo", "gaps", "fit_unseen"),
    ),
    "FactorAnalysis, Local(FullRank)": Pair(
        suite(FactorAnalysis, guided(Local, FullRank())), methods=("NaturalGradient",), estimates=("gaps",)
    ),
    "FactorAnalysis, Local(MeanField), batches": Pair(
        suite(FactorAnalysis, guided(Local, MeanField())), objectives=("default", "AnalyticELBO"), batch_size=7, compiled=True
    ),
    "FactorAnalysis, Local(MeanField), single precision": Pair(
        suite(FactorAnalysis, guided(Local, MeanField())), dtype=torch.float32
    ),
    "FactorAnalysis, Amortized(LowRank(1), MLP), batches": Pair(
        suite(FactorAnalysis, guided(Amortized, LowRank(1), MLP((8,)))), batch_size=16
    ),
    "FactorAnalysis, SemiAmortized(MeanField, Linear)": Pair(
        suite(FactorAnalysis, guided(SemiAmortized, MeanField(), Linear())), estimates=("elbo", "iwae")
    ),
    "StateSpace, Amortized(MeanField, PerStep)": Pair(suite(StateSpace, guided(Amortized, MeanField(), PerStep()))),
    "LinearVAE, Amortized(FullRank, Linear)": Pair(
        suite(LinearVAE, guided(Amortized, FullRank(), Linear())), objectives=("default", "AnalyticELBO"), estimates=("gaps",)
    ),
    "LinearVAE, Posterior": Pair(suite(LinearVAE, Posterior), objectives=("default", "AnalyticELBO")),
    "LinearVAE, Prior": Pair(suite(LinearVAE, Prior)),
    "VAE, Amortized(MeanField, MLP), batches": Pair(
        suite(VAE, guided(Amortized, MeanField(), MLP((8,)))),
        objectives=("default", "IWAE(3)"),
        estimates=("elbo", "iwae", "gaps", "gaps, AIS", "ais"),
        batch_size=16,
        compiled=True,
    ),
    "BinaryVAE, Amortized(Bernoulli, MLP)": Pair(
        suite(BinaryVAE, guided(Amortized, Bernoulli(), MLP((8,)))),
        objectives=(*DISCRETE, "AnalyticELBO"),
        estimates=("elbo", "iwae"),
    ),
    "GaussianMixture, Posterior": Pair(mixture, objectives=("default", "Enumerated")),
}
HIERARCHICAL: dict[str, Pair] = {
    "EightSchools, Global(MeanField)": Pair(
        suite(EightSchools, guided(Global, MeanField())),
        methods=("NaturalGradient", "FixedDraws", "start from the prior, 3 restarts"),
        estimates=("elbo", "iwae", "trust"),
        together=True,
    ),
    "EightSchools, Structured(MeanField)": Pair(
        suite(EightSchools, guided(Structured, MeanField()), centered=True), estimates=("elbo", "iwae")
    ),
    "EightSchools, Local(FullRank), batches": Pair(suite(EightSchools, guided(Local, FullRank())), batch_size=4),
    "EightSchools, Amortized(MeanField)": Pair(suite(EightSchools, guided(Amortized, MeanField())), estimates=("elbo",)),
}
AUTOGUIDES: dict[str, Pair] = {
    "LinearRegression, AutoNormal": Pair(suite(LinearRegression, autoguide.AutoNormal), estimates=("elbo", "iwae", "trust")),
    "LinearRegression, AutoMultivariateNormal, single precision": Pair(
        suite(LinearRegression, autoguide.AutoMultivariateNormal), dtype=torch.float32
    ),
    "FactorAnalysis, AutoLowRankMultivariateNormal": Pair(suite(FactorAnalysis, autoguide.AutoLowRankMultivariateNormal)),
    "FactorAnalysis, AutoIAFNormal": Pair(suite(FactorAnalysis, autoguide.AutoIAFNormal)),
    "EightSchools, AutoDelta": Pair(suite(EightSchools, autoguide.AutoDelta)),
    "EightSchools, AutoStructured": Pair(suite(EightSchools, autoguide.AutoStructured)),
}
PLAIN: dict[str, Pair] = {
    "plain functions, Normal with pyro.param": Pair(
        local_normal, objectives=("default", "StickingTheLanding(2)"), estimates=("elbo", "iwae"), compiled=True
    ),
    "plain functions, Normal with pyro.param, batches": Pair(normal_in_minibatches, batch_size=8),
    "plain functions, Gamma and Beta": Pair(gamma_beta, estimates=("elbo", "iwae")),
    "plain functions, pyro.module": Pair(net, estimates=("elbo", "iwae")),
    "plain functions, Bernoulli": Pair(bernoulli, objectives=(*DISCRETE, "Enumerated")),
    "plain eight schools, AutoNormal": Pair(
        partial(schools, autoguide.AutoNormal), estimates=("elbo", "iwae", "trust"), together=True
    ),
    "plain eight schools, AutoMultivariateNormal": Pair(partial(schools, autoguide.AutoMultivariateNormal)),
}
PAIRS: dict[str, Pair] = {**GLOBAL, **LOCAL, **HIERARCHICAL, **AUTOGUIDES, **PLAIN}
"""By the name that the table prints."""
