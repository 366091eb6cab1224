"""log p(x) − ELBO split into approximation, amortization and optimisation gap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

from guides import Guide

from ..evidence.ais import annealed
from ..evidence.annealing_path import paths_from
from ..evidence.estimate import LogMean
from ..evidence.finite import require_density, require_finite
from ..evidence.packed_guide import PackedGuide
from ..evidence.packed_model import PackedModel
from ..evidence.whole_pair import whole_pair
from ..fitting.unseen import Ascent, check_ascent, log_weights
from ..plots.gap_bars import gap_bars
from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.draws import MAX_SCORED_NUMBERS
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_rate
from ..programs.whole_data import whole_data
from .best_lambda import EncoderTraining, Stages, best_stages
from .text import gaps_html, gaps_text

__all__ = ["Gaps", "Part", "gaps"]


class Part(NamedTuple):
    """A quantity in nats with its Monte Carlo standard error: shape (N,) for each datum, or () for all data together."""

    value: Tensor
    se: Tensor

    @property
    def mean(self) -> float:
        """Mean over the data; the number itself if it is one for all data."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`; the choice of data does not count."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))


@dataclass(frozen=True)
class Gaps:
    """evidence = elbo + approximation + amortization + optimisation, exactly. In nats, float64.

    Each datum has its own numbers if every site of model and guide lies inside the data plate. Else, as with latents that
    data share, the data are not independent, and there is one number for all of them.

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


@checked
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
    """Splits log p(x) − ELBO of a fitted guide into its three causes, with the model frozen.

    If latents are shared between data, their q is optimised with the λ_i, which get an affine function of the shared latents
    of their own if the guide's λ_i depend on them.

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
    training = EncoderTraining(None if train is None else as_args(train), encoder_steps, encoder_lr, batch_size)
    guide, model = _suite_guide(guide), unwrap(model)
    _check(model, args, training, ascent, draws=draws, evidence_draws=evidence_draws, temperatures=temperatures)
    with whole_pair(model, guide, args, seed=seed):
        stages = best_stages(model, guide, args, training=training, ascent=ascent)
        require_density(stages.own.family(stages.own.lam), "gaps")
    exact = _exact(model, args, per_datum=stages.own.per_datum)
    elbos = _elbos(model, stages, args, draws=draws, seed=seed + 1)
    if exact is not None:
        return _split(elbos, exact, "exact")
    return _split(elbos, *_bound(model, stages.best, args, draws=evidence_draws, temperatures=temperatures, seed=seed + 2))


def _suite_guide(guide: Callable[..., Any]) -> Guide:
    own = unwrap(guide)
    if not isinstance(own, Guide):
        raise TypeError(f"gaps needs a guide of this suite, which has a λ to optimise; {type(own).__name__} has none.")
    return own


def _check(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    training: EncoderTraining,
    ascent: Any,
    *,
    draws: int,
    evidence_draws: int,
    temperatures: int,
) -> None:
    check_rate(training.lr)
    check_ascent(ascent)
    check_count(evidence_draws=evidence_draws)
    check_count(draws=draws, least=2)
    check_count(encoder_steps=training.steps, temperatures=temperatures, least=0)
    if temperatures == 1:
        raise ValueError("temperatures must be 0, for no annealing, or at least 2, but is 1.")
    check_data(model, args)
    if training.data is not None:
        check_data(model, training.data)
    if training.batch_size is not None:
        check_count(batch_size=training.batch_size)
        rows = [len(v) for v in training.data or args if isinstance(v, Tensor) and v.dim()]
        if rows and training.batch_size > rows[0]:
            raise ValueError(f"batch_size must be at most the {rows[0]} rows of the data, but is {training.batch_size}.")


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


def _elbos(model: Callable[..., Any], stages: Stages, args: tuple[Any, ...], *, draws: int, seed: int) -> _Elbos:
    chunks = []
    joint = PackedModel(model, stages.own.latents, args)
    with isolated(seed), whole_data(), torch.no_grad(), pyro.validation_enabled(False):
        for chunk in _chunks(args, draws):
            state = torch.get_rng_state()
            weights = []
            for stage in stages:
                torch.set_rng_state(state)
                weights.append(log_weights(joint, stage.family, stage.lam, draws=chunk).double())
            own, source, best = weights
            chunks.append(torch.stack([own, source - own, best - source, best]))
    terms = torch.cat(chunks, 1)
    value, se = terms.mean(1), terms.std(1) / draws**0.5
    for mean, name in ((value[0], "guide"), (value[3], "best λ_i")):
        require_finite(mean, f"gaps: the ELBO of the {name}")
    return _Elbos(*(Part(v, s) for v, s in zip(value, se, strict=True)))


def _chunks(args: tuple[Any, ...], draws: int) -> Iterator[int]:
    """Sizes of the chunks into which `draws` draws are split."""
    numbers = sum(value.numel() for value in args if isinstance(value, Tensor))
    size = max(1, min(draws, MAX_SCORED_NUMBERS // max(1, numbers)))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _exact(model: Any, args: tuple[Any, ...], *, per_datum: bool) -> Part | None:
    """log p(x) of a model that can compute it, for each datum or for all data together; None if it is not known so."""
    if not hasattr(model, "log_evidence"):
        return None
    with torch.no_grad():
        exact = model.log_evidence(*args).double()
    if not per_datum:
        exact = exact.sum()
    elif exact.dim() == 0:
        return None
    require_finite(exact, "gaps: log p(x)")
    return Part(exact, torch.zeros_like(exact))


def _bound(
    model: Any, best: PackedGuide, args: tuple[Any, ...], *, draws: int, temperatures: int, seed: int
) -> tuple[Part, str]:
    """A lower bound on log p(x) from the best λ, and its name."""
    joint, mean = PackedModel(model, best.latents, args), LogMean(draws)
    with isolated(seed), whole_data(), torch.no_grad(), pyro.validation_enabled(False):
        for chunk in _chunks(args, draws):
            mean.add(log_weights(joint, best.family, best.lam, draws=chunk))
    found = {f"IWAE, {draws} draws": mean.result().checked("gaps")}
    if temperatures:
        with isolated(seed):
            paths = paths_from(model, best, args)
        found[f"AIS, {temperatures} temperatures"] = annealed(paths, temperatures=temperatures, seed=seed)
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
