"""Where log p(x) − ELBO comes from: the family, the encoder, the optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

from guides import Amortized, Guide
from models import Tractable

from ..engine.minibatches import Batches
from ..evidence import Evidence, ais, iwae
from ..evidence.blocks import with_table
from ..fitting.unseen import Ascent, ascend, log_weights
from ..plots.gap_bars import gap_bars
from ..programs.bound import unwrap
from ..programs.draws import MAX_SCORED_NUMBERS
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair, check_rate

__all__ = ["Gaps", "Part", "gaps"]


class Part(NamedTuple):
    """A quantity in nats with its Monte Carlo standard error: shape (N,), or () where latents are shared between data."""

    value: Tensor
    se: Tensor

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Standard error of `mean`: of the draws, not of the choice of data."""
        return float(self.se.square().sum().sqrt() / max(1, self.se.numel()))


@dataclass(frozen=True)
class Gaps:
    """evidence = elbo + approximation + amortization + optimisation, exactly, for each datum. In nats, float64.

    A gap that is negative by more than 3 standard errors is a failed inner optimisation (`failed`), or an evidence estimate
    that is too low; it is reported as it is.
    """

    evidence: Part
    evidence_by: str
    """"exact", or the estimator of the lower bound that stands for log p(x); then `approximation` is too low by its error."""
    elbo: Part
    approximation: Part
    """log p(x) − ELBO(best λ_i of the family)."""
    amortization: Part
    """ELBO(best λ_i) − ELBO(λ of the best encoder): zero for a guide without one."""
    optimisation: Part
    """ELBO(the best that this guide can be) − ELBO(the guide)."""

    @property
    def parts(self) -> dict[str, Part]:
        """The three gaps by name."""
        return {name: getattr(self, name) for name in ("approximation", "amortization", "optimisation")}

    @property
    def failed(self) -> dict[str, float]:
        """Gaps whose mean is negative beyond 3 standard errors, and by how many nats per datum."""
        return {name: part.mean for name, part in self.parts.items() if part.mean < -3 * part.mean_se - 1e-12}

    def to_frame(self) -> pd.DataFrame:
        """One row for each quantity: mean over the data, its standard error, and the quartiles between data."""
        rows = []
        for name, part in {"evidence": self.evidence, "elbo": self.elbo, **self.parts}.items():
            low, middle, high = part.value.reshape(-1).quantile(part.value.new_tensor([0.25, 0.5, 0.75])).tolist()
            rows.append({"quantity": name, "mean": part.mean, "se": part.mean_se, "25%": low, "50%": middle, "75%": high})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """The three gaps as bars, nats per datum, with two standard errors on either side."""
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
    r"""Splits log p(x) − ELBO of a fitted guide in its three causes, datum by datum, with the model frozen.

    The best λ_i of the family is found by one batched optimisation of all data, starting at the guide's own λ_i. The best
    encoder is found by training a copy of it further, for `encoder_steps`; with 0, what its optimiser left is counted as
    amortization, as in the literature. The ELBOs at both ends of a difference share their noise.

    Args:
        model, guide: a fitted pair; the guide one of this suite with a λ.
        x: the data, or a tuple of the model's arguments.
        train: what to train the copy of the encoder on; x by default. For held-out x give the training data: an encoder
            trained on x itself is no longer amortized over anything else.
        encoder_steps, encoder_lr, batch_size: steps of this training, its learning rate and rows in a minibatch.
        ascent: how λ_i is optimised.
        draws: draws for each ELBO.
        evidence_draws: draws of the importance-weighted bound, from the best λ_i, where log p(x) is not known exactly.
        temperatures: if not 0, annealed importance sampling from there too; the higher mean of the two bounds is taken.
        seed: fixes all draws.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.

    Reference: Cremer, Li & Duvenaud, "Inference suboptimality in variational autoencoders" (2018).
    """
    args = as_args(x)
    check_rate(encoder_lr)
    check_count(evidence_draws=evidence_draws)
    check_count(draws=draws, least=2)
    check_count(encoder_steps=encoder_steps, temperatures=temperatures, least=0)
    check_data(model, args)
    guide, model = unwrap(guide), unwrap(model)
    if not isinstance(guide, Guide):
        raise TypeError(f"gaps needs a guide of this suite, which has a λ to optimise; {type(guide).__name__} has none.")
    ascent = Ascent() if ascent is None else ascent
    with isolated(seed):
        check_pair(model, guide, args, {})
        assert guide.latents is not None
        with torch.no_grad():
            own = guide.lambdas(args[0])
        source = own
        if isinstance(guide, Amortized) and encoder_steps:
            data = args if train is None else as_args(train)
            source = _best_encoder(model, guide, data, steps=encoder_steps, lr=encoder_lr, batch_size=batch_size)(args[0])
        latents = guide.latents
        best = ascend(model, latents, guide.family, source, args, ascent=ascent)
        if not isinstance(guide, Amortized):
            source = best
    with isolated(seed + 1):
        elbo, gained, lost, top = _elbos(model, guide, (own, source, best), args, draws)
    evidence, evidence_by = _evidence(
        model, guide, best, x, evidence_draws=evidence_draws, temperatures=temperatures, seed=seed + 2
    )
    value = elbo.value + gained.value + lost.value
    return Gaps(
        evidence=evidence,
        evidence_by=evidence_by,
        elbo=elbo,
        approximation=Part(evidence.value - value, (evidence.se**2 + top.se**2).sqrt()),
        amortization=lost,
        optimisation=gained,
    )


def _best_encoder(
    model: Callable[..., Any], guide: Amortized, train: tuple[Any, ...], *, steps: int, lr: float, batch_size: int | None
) -> Callable[[Tensor], Tensor]:
    """x → λ of a copy of the guide whose encoder was trained further, the model left as it is."""
    twin = copy.deepcopy(guide)
    assert twin.latents is not None
    parameters = [p.requires_grad_() for p in twin.parameters()]
    adam = torch.optim.Adam(parameters, lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    stream = Batches(train, batch_size)
    with pyro.validation_enabled(False):
        for _ in range(steps):
            rows = next(stream).args
            lam = twin.lambdas(rows[0])
            loss = -log_weights(model, twin.latents, twin.family, lam, rows, draws=1, path=True).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                parameter.grad = gradient
            adam.step()
            decay.step()

    def lambdas(x: Tensor) -> Tensor:
        with torch.no_grad():
            return twin.lambdas(x)

    return lambdas


def _elbos(
    model: Callable[..., Any], guide: Guide, ends: tuple[Tensor, Tensor, Tensor], args: tuple[Any, ...], draws: int
) -> tuple[Part, Part, Part, Part]:
    """ELBO(own), ELBO(source) − ELBO(own), ELBO(best) − ELBO(source), and ELBO(best), draw for draw on the same noise."""
    assert guide.latents is not None
    numbers = sum(value.numel() for value in args if isinstance(value, Tensor))
    chunk = max(1, min(draws, MAX_SCORED_NUMBERS // max(1, numbers)))
    own, source, best = ends
    chunks = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, draws, chunk):
            count = min(chunk, draws - start)
            state = torch.get_rng_state()
            weights = []
            for lam in (own, source, best):
                torch.set_rng_state(state)
                weights.append(log_weights(model, guide.latents, guide.family, lam, args, draws=count).double())
            chunks.append(torch.stack([weights[0], weights[1] - weights[0], weights[2] - weights[1], weights[2]]))
    differences = torch.cat(chunks, 1)
    value, se = differences.mean(1), differences.std(1) / draws**0.5
    own_part, gained, lost, top = (Part(v, s) for v, s in zip(value, se, strict=True))
    return own_part, gained, lost, top


def _evidence(
    model: Any, guide: Guide, best: Tensor, x: Any, *, evidence_draws: int, temperatures: int, seed: int
) -> tuple[Part, str]:
    args = as_args(x)
    if isinstance(model, Tractable):
        with torch.no_grad():
            exact = model.log_evidence(*args).double()
        return Part(exact, torch.zeros_like(exact)), "exact"
    proposal: Guide = guide
    if guide.local:
        with isolated(seed):
            proposal = with_table(guide, best, args)
    found: dict[str, Evidence] = {f"IWAE, {evidence_draws} draws": iwae(model, proposal, x, draws=evidence_draws, seed=seed)}
    if temperatures:
        found[f"AIS, {temperatures} temperatures"] = ais(model, proposal, x, temperatures=temperatures, seed=seed)
    name = max(found, key=lambda key: found[key].mean)
    return Part(found[name].value, found[name].se), name
