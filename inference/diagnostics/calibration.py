"""Simulation-based calibration: over data simulated from the model, a posterior's ranks of the truth are uniform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Distribution

from models import LocalModel, Model

from ..checks import check_count
from ..isolation import isolated

__all__ = ["Calibration", "calibration"]

BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true h among draws from q(h | x), over simulated (h, x)."""

    ranks: Tensor
    """Shape (simulations, D), in 0 … draws."""
    draws: int

    def histogram(self) -> Tensor:
        """How many ranks fall in each of the bins, shape (D, bins). Flat for a calibrated q, ∪-shaped for one too narrow,
        ∩-shaped for one too wide, sloped for a biased one."""
        edges = self.ranks * BINS // (self.draws + 1)
        return torch.stack([torch.bincount(column, minlength=BINS) for column in edges.unbind(-1)])

    @property
    def p_values(self) -> Tensor:
        """Of the χ² test that each scalar's ranks are uniform, shape (D,)."""
        counts = self.histogram().double()
        sizes = torch.bincount(torch.arange(self.draws + 1) * BINS // (self.draws + 1), minlength=BINS).double()
        expected = len(self.ranks) * sizes / (self.draws + 1)
        statistic = ((counts - expected) ** 2 / expected).sum(-1)
        return torch.from_numpy(chi2.sf(statistic.numpy(), BINS - 1)).reshape(-1)

    @property
    def p_value(self) -> float:
        """Of the hypothesis that every scalar is calibrated: the smallest, times their number (Bonferroni)."""
        return min(1.0, float(self.p_values.min()) * len(self.p_values))

    def ecdf_band(self, *, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """ECDF of the ranks minus the uniform's, shape (D, draws + 1), and half the width of a band, shape (draws + 1,).

        The band holds the whole curve of a calibrated scalar with probability `level`; found by simulation.

        Reference: Säilynoja, Bürkner & Vehtari, "Graphical test for discrete uniformity" (2022).
        """
        simulations = len(self.ranks)
        grid = torch.arange(1, self.draws + 2) / (self.draws + 1)
        spread = (grid * (1 - grid) / simulations).sqrt()
        with isolated(seed):
            null = torch.randint(0, self.draws + 1, (simulations, 1000))
        deviation = ((_ecdf(null, self.draws) - grid).abs() / spread.clamp(min=1e-12))[:, :-1].max(-1).values
        return _ecdf(self.ranks, self.draws) - grid, deviation.quantile(level) * spread


def calibration(
    model: Model,
    q: Callable[[Tensor], Distribution],
    *,
    simulations: int = 1000,
    draws: int = 99,
    rows: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulates (h, x) from the model and ranks h among draws from q(h | x).

    For a local model every datum is a simulation of its own, so all are done at once, for an encoder that applies to unseen x
    (``guide.q``) as for the exact posterior (``model.posterior``). For a global model q is called for each simulated data
    set, and may fit a guide to it.

    Args:
        model: a model with the single latent ``"h"`` and a proper prior.
        q: from data x to a distribution over h: batch shape (N,) for a local model, () for a global one.
        simulations: how many truths.
        draws: how many draws each is ranked among.
        rows: data in each simulation of a global model.

    Raises:
        ValueError: if a global model is given without `rows`.
        TypeError: if the model has not the single latent "h".

    References: Talts, Betancourt, Simpson, Vehtari & Gelman, "Validating Bayesian inference algorithms with simulation-based
    calibration" (2018); Yao, Vehtari, Simpson & Gelman (2018), section 3.
    """
    check_count(simulations=simulations, draws=draws)
    if isinstance(model, LocalModel):
        h, x = model.simulate(simulations, seed=seed)
        with isolated(seed + 1), torch.no_grad():
            return Calibration(_ranks(h, q(x).sample(torch.Size([draws]))), draws)
    if rows is None:
        raise ValueError(f"{type(model).__name__} is global: say how many rows each simulated data set has, by rows=.")
    ranks = []
    for simulation in range(simulations):
        h, x = model.simulate(rows, seed=seed + simulation)
        if not isinstance(h, Tensor):
            raise TypeError(f'{type(model).__name__} has the latents {sorted(h)}, but calibration is for the single "h".')
        with isolated(seed + simulation):
            ranks.append(_ranks(h.unsqueeze(0), q(x).sample(torch.Size([draws])).unsqueeze(1)))
    return Calibration(torch.cat(ranks), draws)


def _ranks(truth: Tensor, sampled: Tensor) -> Tensor:
    """Truth (S, *shape) among draws (L, S, *shape): shape (S, D)."""
    return (sampled < truth).sum(0).reshape(len(truth), -1)


def _ecdf(ranks: Tensor, draws: int) -> Tensor:
    counts = torch.stack([torch.bincount(column, minlength=draws + 1) for column in ranks.unbind(-1)])
    return counts.cumsum(-1) / len(ranks)
