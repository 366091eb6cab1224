"""A case: a posterior, a q, and the truth about both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple
from zlib import crc32

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from guides import FullRank, Global, MeanField
from inference import Fit
from inference.diagnostics import importance, quantities, scalars
from inference.diagnostics.judgement import MAX_ELBO_GAP, MAX_MEAN_ERROR, MAX_QUANTILE_ERROR, MAX_SD_ERROR
from inference.programs.isolation import isolated
from inference.programs.log_joint import LogJoint
from inference.stopping import Stop
from models import Model

__all__ = ["TAIL", "Case", "Density", "Truth", "deserved", "finished", "gaussian_fit", "is_held_back", "line_truth", "plain"]

TAIL = 0.025
"""Probability of each tail whose quantile is compared."""
GREY = 0.15
"""An error within this share of its limit deserves neither decision, and is not scored."""
X = torch.zeros(1, dtype=torch.float64)
"""The data of densities, which have none."""


class Truth(NamedTuple):
    """Moments of the posterior's scalars, each of shape (D,), NaN where they do not exist, and log p(x)."""

    mean: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor
    log_evidence: float


@dataclass(frozen=True)
class Case:
    """A fitted q, made by `make`, with the truth about the posterior."""

    name: str
    make: Callable[[], tuple[Fit, Any]]
    """The fit and its data."""
    truth: Truth
    draws: int = 200_000
    """Draws of q from which its own moments are computed."""


def is_held_back(name: str) -> bool:
    """Whether a case was held back while thresholds were chosen: half of all, by name."""
    return crc32(name.encode()) % 2 == 1


def deserved(case: Case, done: Fit, x: Any) -> dict[str, bool | None]:
    """Whether each quantity of q deserves to be used; None too near to a limit to tell."""
    truth = case.truth
    mean, sd, low, high, elbo = _of_q(done, x, case.draws)
    errors = {
        "means": (((mean - truth.mean) / truth.sd).abs().max(), MAX_MEAN_ERROR),
        "sds": ((sd / truth.sd - 1).abs().max(), MAX_SD_ERROR),
        "tails": (torch.maximum(low - truth.low, high - truth.high).abs().max() / 1.0, MAX_QUANTILE_ERROR),
        "evidence": (truth.log_evidence - elbo, MAX_ELBO_GAP),
    }
    tails = torch.stack([(low - truth.low).abs(), (high - truth.high).abs()]).div(truth.sd).max()
    errors["tails"] = (tails, MAX_QUANTILE_ERROR)
    right = {name: _within(float(error), limit) for name, (error, limit) in errors.items()}
    if right["tails"] and not right["sds"]:  # tails whose sds are wrong are not to be used
        right["tails"] = right["sds"]
    return right


def _within(error: float, limit: float) -> bool | None:
    if abs(error - limit) < GREY * limit:
        return None
    return error < limit  # False for NaN


def _of_q(done: Fit, x: Any, draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Moments and quantiles of q's scalars, and its ELBO."""
    if isinstance(done.guide, Global):
        joint = LogJoint(done.model, x)
        with isolated(99), torch.no_grad():
            q = done.guide.q()
            u = q.sample((min(draws, 40_000_000 // (joint.dim * 8)),))
            elbo = float(torch.cat([joint(part).detach() - q.log_prob(part) for part in u.split(1000)]).mean())
            table = scalars(quantities(done.model, joint.constrain(u))).draws
    else:
        weighted = importance(done.model, done.guide, x, draws=min(draws, 20_000), seed=99)
        table, elbo = weighted.scalars.draws, float(weighted.log_weights.mean())
    low, high = (torch.stack([column.quantile(p) for column in table.T]) for p in (TAIL, 1 - TAIL))
    return table.mean(0), table.std(0), low, high, elbo


class Density(Model):
    """h ~ Normal(0, 20) in d dimensions, times a factor that makes exp(log_density) the joint density."""

    def __init__(self, log_density: Callable[[Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.log_density, self.dim = log_density, dim
        self.register_buffer("scale", torch.tensor(20.0, dtype=torch.float64))

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def prior(self) -> Tensor:
        return pyro.sample("h", self._prior())

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        del x
        pyro.factor("density", self.log_density(h) - self._prior().log_prob(h))
        return X

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        del x, index, size
        return self.likelihood(self.prior())

    @classmethod
    def demo(cls, *, seed: int = 0) -> Any:
        raise NotImplementedError

    @classmethod
    def from_dataset(cls, data: Any) -> Any:
        raise NotImplementedError

    def _prior(self) -> dist.Independent:
        return dist.Normal(torch.zeros(self.dim, dtype=torch.float64), self.scale).to_event(1)


def plain(log_density: Callable[[Tensor], Tensor], dim: int) -> Callable[[Tensor], None]:
    """The same as a plain Pyro function."""

    def program(x: Tensor) -> None:
        prior = dist.Normal(x.new_zeros(dim), 20.0).to_event(1)
        h = pyro.sample("h", prior)
        pyro.factor("density", log_density(h) - prior.log_prob(h))

    return program


def finished(model: Any, guide: Any) -> Fit:
    """A `Fit` of a guide whose parameters are set already."""
    stop = Stop(None, "", converged=True)
    params = {"params": {}, "constraints": {}}
    return Fit(model=model, guide=guide, nelbo=torch.zeros(1), steps=1, seconds=0.0, seed=0, stop=stop, params=params)


def gaussian_fit(model: Any, mean: Any, root: Any, x: Any = X) -> tuple[Fit, Any]:
    """The fit of a Gaussian over the packed latents: `root` holds sds, or a lower Cholesky factor."""
    mean, root = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(root, dtype=torch.float64)
    full = root.dim() == 2
    guide = Global(model, FullRank() if full else MeanField())
    guide.setup(*(x if isinstance(x, tuple) else (x,)))
    guide.double()
    with torch.no_grad():
        guide.lam.copy_(guide.family.inverse(mean, root if full else root.diag()))
    return finished(model, guide), x


def line_truth(log_density: Callable[[Tensor], Tensor], pieces: list[tuple[float, float]], log_scale: float = 0.0) -> Truth:
    """The truth about a density on the line by quadrature over adjacent `pieces`, each with as many points."""
    u = torch.cat([torch.linspace(a, b, 40_001, dtype=torch.float64) for a, b in pieces])
    density = log_density(u)
    top = density.max()
    p = (density - top).exp()
    area = 0.5 * (p[1:] + p[:-1]) * (u[1:] - u[:-1])
    total, middle = area.sum(), 0.5 * (u[1:] + u[:-1])
    mean = (area * middle).sum() / total
    sd = ((area * (middle - mean) ** 2).sum() / total).sqrt()
    cdf = area.cumsum(0) / total
    low, high = (middle[int((cdf >= p).nonzero()[0])] for p in (TAIL, 1 - TAIL))
    return Truth(*(v.reshape(1) for v in (mean, sd, low, high)), float(total.log() + top) + log_scale)


NOWHERE = nan
