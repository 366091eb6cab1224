"""log p(x) − ELBO split into approximation, amortization and optimisation gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

from guides import Guide
from models import Tractable

from ..evidence import Evidence, ais, iwae
from ..evidence.blocks import with_table
from ..fitting.unseen import Ascent, log_weights
from ..plots.gap_bars import gap_bars
from ..programs.bound import unwrap
from ..programs.draws import MAX_SCORED_NUMBERS
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair, check_rate
from .best_lambda import EncoderTraining, Lambdas, best_lambdas
from .text import gaps_html, gaps_text

__all__ = ["Gaps", "Part", "gaps"]


class Part(NamedTuple):
    """A quantity in nats with its Monte Carlo standard error: shape (N,), or () if latents are shared between data."""

    value: Tensor
    se: Tensor

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; the choice of data does not count."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))


@dataclass(frozen=True)
class Gaps:
    """evidence = elbo + approximation + amortization + optimisation, exactly, for each datum. In nats, float64.

    A gap that is negative by more than 3 standard errors reveals a failed inner optimisation (`failed`), or an evidence
    estimate that is too low. It is reported unchanged.
    """

    evidence: Part
    evidence_by: str
    """"exact", or the estimator of a lower bound used in place of log p(x); `approximation` is then too low by its error."""
    elbo: Part
    approximation: Part
    """log p(x) − ELBO(best λ_i of the family)."""
    amortization: Part
    """ELBO(best λ_i) − ELBO(λ of the best encoder): zero for a guide without an encoder."""
    optimisation: Part
    """ELBO(λ of the best encoder, or best λ_i without an encoder) − ELBO(the guide)."""

    def __repr__(self) -> str:
        return gaps_text(self)

    def _repr_html_(self) -> str:
        return gaps_html(self)

    @property
    def parts(self) -> dict[str, Part]:
        """The three gaps by name."""
        return {name: getattr(self, name) for name in ("approximation", "amortization", "optimisation")}

    @property
    def failed(self) -> dict[str, float]:
        """Gaps whose mean is negative by more than 3 standard errors, with that mean in nats per datum."""
        return {name: part.mean for name, part in self.parts.items() if part.mean < -3 * part.mean_se - 1e-12}

    def to_frame(self) -> pd.DataFrame:
        """One row for each quantity: mean over the data, its standard error, and the quartiles over the data."""
        rows = []
        for name, part in {"evidence": self.evidence, "elbo": self.elbo, **self.parts}.items():
            low, middle, high = part.value.reshape(-1).quantile(part.value.new_tensor([0.25, 0.5, 0.75])).tolist()
            rows.append({"quantity": name, "mean": part.mean, "se": part.mean_se, "25%": low, "50%": middle, "75%": high})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """The three gaps as bars, in nats per datum, with error bars of two standard errors on either side."""
        title = f"log p(x) − ELBO = {(self.evidence.value - self.elbo.value).mean():.3f} ({self.evidence_by})"
        return gap_bars({name: (part.mean, part.mean_se) for name, part in self.parts.items()}, title=title)


def gaps(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    train: Tensor | tuple[Any, ...] | None = None,
    encoder_steps: int = 0,
    encoder_lr: float = 1e-3,
    batch_size: int | None = None,
    ascent: Ascent | None = None,
    draws: int = 1000,
    evidence_draws: int = 5000,
    temperatures: int = 0,
    seed: int = 0,
) -> Gaps:
    """Splits log p(x) − ELBO of a fitted guide into its three causes for each datum, with the model frozen.

    The best λ_i of the family are found by one batched optimisation of all data, from the guide's own λ_i. The best encoder is
    found by training a copy of the guide's for `encoder_steps` more steps; with 0, as in the literature, its optimisation gap
    counts as amortization. ELBOs that are subtracted share their random numbers.

    Args:
        model, guide: a fitted pair; the guide must be one of this suite with a λ.
        x: the data, or a tuple of the model's arguments.
        train: data for training the copy of the encoder; x by default. For held-out x pass the training data, because an
            encoder trained on x itself is fitted to x and no longer measures amortization.
        encoder_steps, encoder_lr, batch_size: steps, learning rate and minibatch rows of this training.
        ascent: how the λ_i are optimised.
        draws: draws for each ELBO.
        evidence_draws: draws of the importance-weighted bound at the best λ_i, if log p(x) is not known exactly.
        temperatures: if not 0, annealed importance sampling from the best λ_i too; the bound with the higher mean is used.
        seed: fixes all draws.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.

    Reference: Cremer, Li & Duvenaud, "Inference suboptimality in variational autoencoders" (2018).
    """
    args, ascent = as_args(x), Ascent() if ascent is None else ascent
    check_rate(encoder_lr)
    check_count(evidence_draws=evidence_draws)
    check_count(draws=draws, least=2)
    check_count(encoder_steps=encoder_steps, temperatures=temperatures, least=0)
    check_data(model, args)
    guide, model = _suite_guide(guide), unwrap(model)
    training = EncoderTraining(args if train is None else as_args(train), encoder_steps, encoder_lr, batch_size)
    with isolated(seed):
        check_pair(model, guide, args, {})
        lambdas = best_lambdas(model, guide, args, training=training, ascent=ascent)
    elbos = _elbos(model, guide, lambdas, args, draws=draws, seed=seed + 1)
    known = _evidence(model, guide, lambdas.best, x, draws=evidence_draws, temperatures=temperatures, seed=seed + 2)
    return _split(elbos, *known)


def _suite_guide(guide: Callable[..., Any]) -> Guide:
    own = unwrap(guide)
    if not isinstance(own, Guide):
        raise TypeError(f"gaps needs a guide of this suite, which has a λ to optimise; {type(own).__name__} has none.")
    return own


class _Elbos(NamedTuple):
    """ELBOs and their differences, draw for draw on the same random numbers."""

    own: Part
    """ELBO(own)."""
    optimisation: Part
    """ELBO(source) − ELBO(own)."""
    amortization: Part
    """ELBO(best) − ELBO(source)."""
    best: Part
    """ELBO(best)."""


def _elbos(
    model: Callable[..., Any], guide: Guide, lambdas: Lambdas, args: tuple[Any, ...], *, draws: int, seed: int
) -> _Elbos:
    assert guide.latents is not None
    numbers = sum(value.numel() for value in args if isinstance(value, Tensor))
    size = max(1, min(draws, MAX_SCORED_NUMBERS // max(1, numbers)))
    chunks = []
    with isolated(seed), torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, draws, size):
            chunk = min(size, draws - start)
            state = torch.get_rng_state()
            weights = []
            for lam in lambdas:
                torch.set_rng_state(state)
                weights.append(log_weights(model, guide.latents, guide.family, lam, args, draws=chunk).double())
            own, source, best = weights
            chunks.append(torch.stack([own, source - own, best - source, best]))
    terms = torch.cat(chunks, 1)
    value, se = terms.mean(1), terms.std(1) / draws**0.5
    return _Elbos(*(Part(v, s) for v, s in zip(value, se, strict=True)))


def _evidence(model: Any, guide: Guide, best: Tensor, x: Any, *, draws: int, temperatures: int, seed: int) -> tuple[Part, str]:
    """log p(x), and how it is known: exactly, or by a lower bound from the best λ."""
    args = as_args(x)
    if isinstance(model, Tractable):
        with torch.no_grad():
            exact = model.log_evidence(*args).double()
        return Part(exact, torch.zeros_like(exact)), "exact"
    proposal: Guide = guide
    if guide.local:
        with isolated(seed):
            proposal = with_table(guide, best, args)
    found: dict[str, Evidence] = {f"IWAE, {draws} draws": iwae(model, proposal, x, draws=draws, seed=seed)}
    if temperatures:
        found[f"AIS, {temperatures} temperatures"] = ais(model, proposal, x, temperatures=temperatures, seed=seed)
    name = max(found, key=lambda key: found[key].mean)
    return Part(found[name].value, found[name].se), name


def _split(elbos: _Elbos, evidence: Part, evidence_by: str) -> Gaps:
    best = elbos.own.value + elbos.optimisation.value + elbos.amortization.value
    return Gaps(
        evidence=evidence,
        evidence_by=evidence_by,
        elbo=elbos.own,
        approximation=Part(evidence.value - best, (evidence.se**2 + elbos.best.se**2).sqrt()),
        amortization=elbos.amortization,
        optimisation=elbos.optimisation,
    )
