"""Simulation-based calibration: over data simulated from the model, a posterior's ranks of the truth are uniform."""

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

from ..plots.rank_histograms import rank_histograms
from ..programs.draws import draw_chunks
from ..programs.isolation import isolated
from ..programs.quantities import quantities, scalars
from ..programs.validation import check_count

__all__ = ["Calibration", "calibration"]

BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true h among draws from q(h | x), over simulated (h, x)."""

    ranks: Tensor
    """Shape (simulations, D), in 0 … draws."""
    draws: int
    names: tuple[str, ...]
    """Of the D scalars."""

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

    def plot(self) -> Figure:
        """For each scalar the histogram of its ranks, and their ECDF minus the uniform's with its 95 % band."""
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


def calibration(
    model: Model,
    q: Callable[[Tensor], Any],
    *,
    simulations: int = 1000,
    draws: int = 99,
    rows: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulates (h, x) from the model and ranks h among draws from q(h | x), each of the model's quantities on its own.

    `q` is called with data and says what the posterior is: a distribution over the single latent "h", such as
    ``model.posterior`` or ``guide.q``; or a guide for these data, one that applies to unseen data (``lambda x: encoder``) or
    one fitted to them (``lambda x: fit(model, Global(model, FullRank()), x, steps=500).guide``); or draws, for each latent
    shape (draws, *shape), made in any other way.

    For a local model every datum is a simulation of its own, so that all are done by one call. For a global model q is called
    for each simulated data set; to have all done at once, take ``DataSets(model, rows)``, whose data are data sets, and a
    guide that is fitted to all of them together (`inference.fit_unseen`) or amortized over them.

    Args:
        model: a model with a proper prior.
        q: from data x to a posterior. A distribution has batch shape (N,) for a local model, () for a global one.
        simulations: how many truths.
        draws: how many draws each is ranked among.
        rows: data in each simulation of a global model.

    Raises:
        ValueError: if a global model is given without `rows`, or draws have not the shape of the truth.
        TypeError: if q gives a distribution, but the model has not the single latent "h".

    References: Talts, Betancourt, Simpson, Vehtari & Gelman, "Validating Bayesian inference algorithms with simulation-based
    calibration" (2018); Yao, Vehtari, Simpson & Gelman (2018), section 3.
    """
    check_count(simulations=simulations, draws=draws)
    if isinstance(model, LocalModel):
        h, x = model.simulate(simulations, seed=seed)
        with isolated(seed + 1):
            truth = _named(h)
            sampled = _sampled(model, q(x), x, draws, truth)
        return _ranked(model, truth, sampled, draws)
    if rows is None:
        raise ValueError(f"{type(model).__name__} is global: say how many rows each simulated data set has, by rows=.")
    truths, samples = [], []
    for simulation in range(simulations):
        h, x = model.simulate(rows, seed=seed + simulation)
        with isolated(seed + simulation):
            truths.append(_named(h))
            samples.append(_sampled(model, q(x), x, draws, truths[-1]))
    truth = {name: torch.stack([one[name] for one in truths]) for name in truths[0]}
    sampled = {name: torch.stack([one[name] for one in samples], 1) for name in truth}
    return _ranked(model, truth, sampled, draws)


def _named(h: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"h": h} if isinstance(h, Tensor) else h


def _sampled(model: Model, answer: Any, x: Tensor, draws: int, truth: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Draws of each latent, shape (draws, *shape), from whatever q has answered."""
    if isinstance(answer, Distribution):
        if list(truth) != ["h"]:
            raise TypeError(
                f'{type(model).__name__} has the latents {sorted(truth)}, and a distribution is over the single "h": let q '
                "give a guide, or draws of each latent."
            )
        with torch.no_grad():
            found: Mapping[str, Tensor] = {"h": answer.sample(torch.Size([draws]))}
    elif isinstance(answer, Mapping):
        found = answer
    elif callable(answer):
        with torch.no_grad():
            chunks = list(draw_chunks(model, answer, (x,), draws=draws))
        found = {name: torch.cat([chunk.h[name] for chunk in chunks]) for name in chunks[0].h}
    else:
        raise TypeError(f"q gave {type(answer).__name__}, but a distribution, a guide or a mapping of draws is needed.")
    for name, value in truth.items():
        got = tuple(found[name].shape) if name in found else "nothing"
        if got != (draws, *value.shape):
            raise ValueError(f"draws of the latent {name!r} must have shape {(draws, *value.shape)}, but q gave {got}.")
    return found


def _ranked(model: Model, truth: Mapping[str, Tensor], sampled: Mapping[str, Tensor], draws: int) -> Calibration:
    """Truths (S, *shape) among draws (L, S, *shape)."""
    count = len(next(iter(truth.values())))
    if isinstance(model, LocalModel):
        # All data are the N of one draw of a local model's quantities.
        known = {name: value[0] for name, value in quantities(model, {k: v.unsqueeze(0) for k, v in truth.items()}).items()}
        guessed = {name: value.flatten(0, 1) for name, value in quantities(model, sampled).items()}
    else:
        known = quantities(model, truth)
        guessed = quantities(model, {name: value.flatten(0, 1) for name, value in sampled.items()})
    table = scalars(known)
    ranks = (scalars(guessed).draws.reshape(draws, count, -1) < table.draws).sum(0)
    return Calibration(ranks, draws, table.names)


def _ecdf(ranks: Tensor, draws: int) -> Tensor:
    counts = torch.stack([torch.bincount(column, minlength=draws + 1) for column in ranks.unbind(-1)])
    return counts.cumsum(-1) / len(ranks)
