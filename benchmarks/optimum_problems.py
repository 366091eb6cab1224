"""The problems of time_to_optimum.py: a model, data, a Gaussian family, its best ELBO, and the same model in NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpyro_adam as peer
import torch
from exact_elbos import eight_schools_nelbo, logistic_nelbo, sobol, vae_nelbo
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from guides import MLP, Amortized, Family, FullRank, Global, Guide, Local, MeanField
from inference import analytic_elbo, best_elbo, fit
from inference.engine import Graph
from inference.programs.isolation import isolated
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

__all__ = ["PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A model, data, a Gaussian family, and its best ELBO."""

    name: str
    model: Any
    x: Tensor
    factory: Callable[[Any], Guide]
    nelbo: Callable[[Tensor, Tensor], Tensor]
    """Exact −ELBO from the mean and the Cholesky factor of q's covariance."""
    best: float
    """The lowest −ELBO of the family."""
    peer: Callable[[], None]
    """The model in NumPyro."""
    full_rank: bool

    def gap(self, loc: Tensor, root: Tensor) -> float:
        """ELBO of the best q less that of N(loc, root rootᵀ), in nats."""
        return float(self.nelbo(loc, root).detach()) - self.best

    def gap_of(self, guide: Guide) -> float:
        """The gap of a fitted guide, in nats."""
        with torch.no_grad():
            loc, covariance = mean_and_covariance(guide.q(self.x))
            return self.gap(loc, torch.linalg.cholesky(covariance))


def schools(*, centered: bool) -> Problem:
    model, x = EightSchools.demo(centered=centered)
    model, x = model.double(), x.double()
    other = peer.eight_schools(model.noise_scale.numpy(), x.numpy(), centered=centered)
    name = f"eight schools, {'centred' if centered else 'non-centred'}, mean field"
    return numerical(name, model, x, MeanField(), nelbo=eight_schools_nelbo, other=other)


def diabetes() -> Problem:
    data = datasets.diabetes()
    model, x = LinearRegression.from_dataset(data._replace(x=data.x.double()))
    return tractable("linear regression, diabetes, full rank", model.double(), x.double(), FullRank())


def cancer() -> Problem:
    data = load_breast_cancer()
    table = datasets.Dataset("breast cancer", torch.from_numpy(data.data), torch.from_numpy(data.target).double())
    model, x = LogisticRegression.from_dataset(table)
    covariates, scale = model.covariates.numpy(), model.prior_scale.numpy()
    other = peer.logistic(covariates, scale, x.numpy())
    return numerical("logistic regression, breast cancer, full rank", model, x, FullRank(), nelbo=logistic_nelbo, other=other)


def digits() -> Problem:
    """Mean fields of 100 digits in a VAE whose decoder was trained on all digits and then frozen.

    A quasi-Monte Carlo average stands for the exact ELBO; the gap is a mean per datum.
    """
    data = datasets.digits(binarised=True).x
    with isolated(0):
        model = VAE((64,), 4)
    fit(model, Amortized(model, MeanField(), MLP((64,))), data, steps=3000, lr=0.01, batch_size=256, engine=Graph)
    model, x = model.double().requires_grad_(False), data[:100].double()
    nelbo = partial(vae_nelbo, model, x, sobol(256, model.latents))
    other = peer.decoder(*(p.numpy() for p in (model.decoder[0].weight, model.decoder[0].bias, model.decoder[2].weight)))
    guide = Local(model, MeanField())
    guide.setup(x)
    return searched(
        "VAE, 100 digits, mean field", model, x, guide, nelbo=nelbo, other=other(model.offset.detach().numpy(), x.numpy())
    )


def conjugate(name: str, model_class: Any, family: Family) -> Problem:
    model, x = model_class.demo()
    return tractable(name, model.double(), x.double(), family)


def tractable(name: str, model: Any, x: Tensor, family: Family) -> Problem:
    local = isinstance(model, (LocalGaussian, FactorAnalysis))
    source = Local if local else Global
    guide = source(model, family)
    guide.setup(x)

    def nelbo(loc: Tensor, root: Tensor) -> Tensor:
        if local and root.dim() == 2:
            # NumPyro packs the mean fields of all data into one vector.
            loc, root = loc.reshape(len(x), -1), root.diagonal().reshape(len(x), -1).diag_embed()
        q = torch.distributions.MultivariateNormal(loc, scale_tril=root)
        return -analytic_elbo(model, q, x).sum()

    numbers = {n: b.numpy() for n, b in model.named_buffers()}
    if isinstance(model, LinearRegression):
        other = peer.linear(numbers["covariates"], numbers["prior_scale"], numbers["noise_scale"], x.numpy())
    elif isinstance(model, FactorAnalysis):
        other = peer.factors(numbers["loading"], numbers["mean"], numbers["noise_scale"], x.numpy())
    else:
        scales = numbers["prior_loc"], numbers["prior_scale"], numbers["noise_scale"]
        other = peer.gaussian_mean(*scales, x.numpy(), local=local)
    best = -float(best_elbo(model, guide.family, x).sum())
    return Problem(name, model, x, lambda m: source(m, family), nelbo, best, other, isinstance(family, FullRank))


def numerical(name: str, model: Any, x: Tensor, family: Family, *, nelbo: Any, other: Callable[[], None]) -> Problem:
    guide = Global(model, family)
    guide.setup(x)
    return searched(name, model, x, guide, nelbo=lambda loc, root: nelbo(model, x, loc, root), other=other)


def searched(name: str, model: Any, x: Tensor, guide: Any, *, nelbo: Any, other: Callable[[], None]) -> Problem:
    """A problem whose best ELBO is found by L-BFGS on the exact ELBO."""

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        lam = torch.tensor(flat, requires_grad=True)
        loc, covariance = mean_and_covariance(guide.family(lam.reshape(shape)))
        loss = nelbo(loc, torch.linalg.cholesky(covariance))
        return float(loss.detach()), torch.autograd.grad(loss, lam)[0].numpy()

    family, source, (own,) = guide.family, type(guide), guide.parameters()
    shape, start = own.shape, own.detach().double().numpy().ravel()
    settings = {"maxiter": 20000, "maxfun": 40000, "gtol": 1e-8, "ftol": 1e-15, "maxcor": 50}
    best = float(minimize(value, start, jac=True, method="L-BFGS-B", options=settings).fun)
    return Problem(name, model, x, lambda m: source(m, family), nelbo, best, other, type(family) is FullRank)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "eight_schools": lambda: schools(centered=False),
    "eight_schools_centred": lambda: schools(centered=True),
    "diabetes_regression": diabetes,
    "logistic_regression": cancer,
    "gaussian_mean": lambda: conjugate("GaussianMean, full rank", GaussianMean, FullRank()),
    "local_gaussian": lambda: conjugate("LocalGaussian, mean field", LocalGaussian, MeanField()),
    "factor_analysis": lambda: conjugate("FactorAnalysis, mean field", FactorAnalysis, MeanField()),
    "digits_vae": digits,
}
