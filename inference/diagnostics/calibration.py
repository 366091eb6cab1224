"""Simulation-based calibration: the ranks of true latents among posterior draws are uniform over simulated data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Distribution

from models import LocalModel, Model
from models.arguments import number

from ..plots.rank_histograms import rank_histograms
from ..programs.arguments import checked
from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.quantities import quantities, scalars
from ..programs.validation import check_count, naming

__all__ = ["Calibration", "calibration"]

BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true h among draws from q(h | x), over simulated (h, x)."""

    ranks: Tensor
    """Shape (simulations, D), in 0 … draws."""
    draws: int
    """Draws among which each true value is ranked."""
    names: tuple[str, ...]
    """Names of the D scalars."""

    def histogram(self) -> Tensor:
        """Number of ranks in each bin, shape (D, bins). Flat if q is calibrated, ∪-shaped if it is too narrow, ∩-shaped if it
        is too wide, sloped if it is biased."""
        edges = self.ranks * BINS // (self.draws + 1)
        return torch.stack([torch.bincount(column, minlength=BINS) for column in edges.unbind(-1)])

    @property
    def p_values(self) -> Tensor:
        """p-value of the χ² test of uniform ranks for each scalar, shape (D,)."""
        counts = self.histogram().double()
        sizes = torch.bincount(torch.arange(self.draws + 1) * BINS // (self.draws + 1), minlength=BINS).double()
        expected = len(self.ranks) * sizes / (self.draws + 1)
        statistic = ((counts - expected) ** 2 / expected).sum(-1)
        return torch.from_numpy(chi2.sf(statistic.numpy(), BINS - 1)).reshape(-1)

    @property
    def p_value(self) -> float:
        """p-value of the hypothesis that every scalar is calibrated: the smallest of `p_values` times D (Bonferroni)."""
        return min(1.0, float(self.p_values.min()) * len(self.p_values))

    @checked
    def ecdf_band(self, *, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """ECDF of the ranks minus the uniform ECDF, shape (D, draws + 1), and half the width of a band, shape (draws + 1,).

        The band contains the whole curve of a calibrated scalar with probability `level`. Its width is simulated.

        Reference: Säilynoja, Bürkner & Vehtari, "Graphical test for discrete uniformity" (2022).
        """
        number("ecdf_band: level", level, above=0, below=1)
        simulations = len(self.ranks)
        grid = torch.arange(1, self.draws + 2) / (self.draws + 1)
        spread = (grid * (1 - grid) / simulations).sqrt()
        with isolated(seed):
            null = torch.randint(0, self.draws + 1, (simulations, 1000))
        deviation = ((_ecdf(null, self.draws) - grid).abs() / spread.clamp(min=1e-12))[:, :-1].max(-1).values
        return _ecdf(self.ranks, self.draws) - grid, deviation.quantile(level) * spread

    def plot(self) -> Figure:
        """For each scalar the histogram of its ranks, and their ECDF minus the uniform ECDF with a 95 % band."""
        deviation, width = self.ecdf_band()
        return rank_histograms(
            self.histogram(),
            deviation,
            width,
            draws=self.draws,
            simulations=len(self.ranks),
            names=self.names,
            p_values=self.p_values.tolist(),
        )


@checked
def calibration(
    model: Model,
    q: Callable[[Tensor], Any],
    *,
    simulations: int = 1000,
    draws: int = 99,
    rows: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulates (h, x) from the model and ranks h among draws from q(h | x), separately for each of the model's quantities.

    `q` maps data to a posterior in one of three forms: a distribution over the single latent "h", such as ``model.posterior``
    or ``guide.q``; a guide for these data, either applicable to unseen data (``lambda x: encoder``) or fitted to them
    (``lambda x: fit(model, Global(model, FullRank()), x, steps=500).guide``); or draws, of shape (draws, *shape) per latent.

    For a local model every datum is a separate simulation, so one call of q serves all. For a global model q is called once
    for each simulated data set. ``DataSets(model, rows)``, a local model whose data are data sets, avoids this: use it with a
    guide fitted to all of them at once (`inference.fit_unseen`) or amortized over them.

    Args:
        model: a model with a proper prior.
        q: from data x to a posterior. A distribution has batch shape (N,) for a local model, () for a global one.
        simulations: number of simulated (h, x).
        draws: number of draws among which each h is ranked.
        rows: number of data in each simulation of a global model.
        seed: fixes the simulations and all draws.

    Raises:
        ValueError: if a global model is given without `rows`, or draws do not have the shape of the true h.
        TypeError: if q returns a distribution, but the model's latents are not the single "h".

    References: Talts, Betancourt, Simpson, Vehtari & Gelman, "Validating Bayesian inference algorithms with simulation-based
    calibration" (2018); Yao, Vehtari, Simpson & Gelman (2018), section 3.
    """
    check_count(simulations=simulations, draws=draws)

    def posterior(x: Tensor) -> Any:
        with naming("q", q, (x,)):
            return q(x)

    if isinstance(model, LocalModel):
        h, x = model.simulate(simulations, seed=seed)
        with isolated(seed + 1):
            truth = _named(h)
            sampled = _sampled(model, posterior(x), x, draws, truth)
        return _ranked(model, truth, sampled, draws)
    if rows is None:
        raise ValueError(
            f"{type(model).__name__} is a global model: say how many rows each simulated data set has, with rows=."
        )
    check_count(rows=rows)
    truths, each = [], []
    for simulation in range(simulations):
        h, x = model.simulate(rows, seed=seed + simulation)
        with isolated(seed + simulation):
            truths.append(_named(h))
            each.append(_sampled(model, posterior(x), x, draws, truths[-1]))
    truth = {name: torch.stack([one[name] for one in truths]) for name in truths[0]}
    sampled = {name: torch.stack([one[name] for one in each], 1) for name in truth}
    return _ranked(model, truth, sampled, draws)


def _named(h: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"h": h} if isinstance(h, Tensor) else h


def _sampled(model: Model, posterior: Any, x: Tensor, draws: int, truth: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Draws of each latent, shape (draws, *shape), from any of the forms that q may return."""
    if isinstance(posterior, Distribution):
        if list(truth) != ["h"]:
            raise TypeError(
                f'{type(model).__name__} has the latents {sorted(truth)}, but a distribution is over the single "h": let q '
                "return a guide, or draws of each latent."
            )
        with torch.no_grad():
            found: Mapping[str, Tensor] = {"h": posterior.sample(torch.Size([draws]))}
    elif isinstance(posterior, Mapping):
        found = posterior
    elif callable(posterior):
        with torch.no_grad():
            found = draw_all(model, posterior, (x,), draws=draws).h
    else:
        raise TypeError(
            f"q gave {type(posterior).__name__}, but it must return a distribution, a guide or a mapping of draws."
        )
    for name, value in truth.items():
        got = tuple(found[name].shape) if name in found else "nothing"
        if got != (draws, *value.shape):
            raise ValueError(f"draws of the latent {name!r} must have shape {(draws, *value.shape)}, but q gave {got}.")
    return found


def _ranked(model: Model, truth: Mapping[str, Tensor], sampled: Mapping[str, Tensor], draws: int) -> Calibration:
    """Ranks of true latents, shape (S, *shape), among draws, shape (L, S, *shape)."""
    if isinstance(model, LocalModel):
        # A local model's quantities take all data as the N rows of one draw.
        known = {name: value[0] for name, value in quantities(model, {k: v.unsqueeze(0) for k, v in truth.items()}).items()}
        drawn = {name: value.flatten(0, 1) for name, value in quantities(model, sampled).items()}
    else:
        known = quantities(model, truth)
        drawn = quantities(model, {name: value.flatten(0, 1) for name, value in sampled.items()})
    table = scalars(known)
    simulations = len(next(iter(truth.values())))
    ranks = (scalars(drawn).draws.reshape(draws, simulations, -1) < table.draws).sum(0)
    return Calibration(ranks, draws, table.names)


def _ecdf(ranks: Tensor, draws: int) -> Tensor:
    counts = torch.stack([torch.bincount(column, minlength=draws + 1) for column in ranks.unbind(-1)])
    return counts.cumsum(-1) / len(ranks)
