"""Several guides of one model, side by side with the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from guides import Family, FullRank, Guide, MeanField, Posterior, Prior
from models import Tractable

from ..elbos.closed_form import best_elbo
from ..elbos.estimate import elbo
from ..fitting.fit import Fit
from ..fitting.many import fit_many
from ..objectives import Objective
from ..optimisers import Solver
from ..plots.elbo_curves import Panel, elbo_curves
from ..programs.bound import unwrap
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_rate

__all__ = ["Comparison", "Run", "compare"]

FLOOR, CEILING = "prior", "exact posterior"


@dataclass(frozen=True)
class Run:
    """One guide fitted with one seed, or a reference row (`fit` is None) that has nothing to fit."""

    guide: str
    seed: int | None
    elbo: float
    elbo_se: float
    evidence: float
    """Exact log p(x) of the fitted model; NaN if unknown."""
    best: float
    """The highest ELBO that the guide's family can reach; NaN if unknown."""
    fit: Fit | None = field(repr=False)
    objective: str = ""
    """Its name, if objectives are compared."""
    optimiser: str = ""
    """Likewise."""

    @property
    def name(self) -> str:
        """Of the row: the guide, and what else is compared."""
        return ", ".join(filter(None, (self.guide, self.objective, self.optimiser)))


@dataclass(frozen=True)
class Comparison:
    """How tight each guide's bound is. ELBO and evidence are totals over the data, in nats; a gap is evidence − ELBO."""

    model: str
    rows: int
    """N, the number of data."""
    learned: bool
    """Whether the model has parameters that each run learned for itself, so that log p(x) changed during it."""
    runs: tuple[Run, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row for each guide, means over its seeds, from the floor (prior) to the ceiling (exact posterior).

        If objectives or optimisers are compared too, one row for each combination, named in columns of their own.

        elbo_se is the Monte Carlo standard error of the mean, seed_sd the standard deviation between seeds. best_gap is the
        part of the gap that is the family's fault: no λ can close it. gap_per_datum is gap / N.
        """
        names = dict.fromkeys(run.name for run in self.runs)
        frame = pd.DataFrame([self._row([run for run in self.runs if run.name == name]) for name in names])
        return frame.drop(columns=[axis for axis in ("objective", "optimiser") if not frame[axis].any()])

    def plot(self) -> Figure:
        """The ELBO of each guide rising to log p(x), with the KL between them shaded; the first seed of each guide."""
        first: dict[str, Panel] = {}
        for run in self.runs:
            if run.fit is not None and isfinite(run.elbo):
                first.setdefault(run.name, Panel(run.name, run.fit.nelbo, run.elbo, run.evidence, run.best))
        return elbo_curves(list(first.values()), rows=self.rows, title=self.model, shade=not self.learned)

    def to_html(self) -> str:
        """The table of `to_frame` as HTML."""
        return self.to_frame().to_html(index=False, float_format="{:.4f}".format, na_rep="–")

    def _row(self, runs: list[Run]) -> dict[str, Any]:
        n = len(runs)
        values = torch.tensor([run.elbo for run in runs], dtype=torch.float64)
        value = float(values.mean())
        evidence = sum(run.evidence for run in runs) / n
        best = sum(run.best for run in runs) / n
        fits = [run.fit for run in runs if run.fit is not None]
        return {
            "guide": runs[0].guide,
            "objective": runs[0].objective,
            "optimiser": runs[0].optimiser,
            "elbo": value,
            "elbo_se": sqrt(sum(run.elbo_se**2 for run in runs)) / n,
            "seed_sd": float(values.std()) if n > 1 else nan,
            "evidence": evidence,
            "gap": evidence - value,
            "gap_per_datum": (evidence - value) / self.rows,
            "best_gap": evidence - best,
            "seconds": sum(f.seconds for f in fits) / len(fits) if fits else nan,
            "steps": round(sum(f.steps for f in fits) / len(fits)) if fits else 0,
            "seeds": len(fits),
        }


def compare(
    model: Callable[..., Any],
    guides: Mapping[str, Callable[[Any], Callable[..., Any]]],
    x: Tensor | tuple[Any, ...],
    *,
    objectives: Mapping[str, Objective | ELBO] | None = None,
    optimisers: Mapping[str, Callable[..., Optimizer] | Solver] | None = None,
    steps: int | None = 2000,
    lr: float | None = 0.05,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 3,
    draws: int = 1000,
    jobs: int = 1,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Fits every guide with every seed, and every objective and optimiser if there are several, and measures its ELBO.

    Each run works on a copy of the model, so a model with parameters of its own is learned anew in each. All guides share
    their seeds. Two rows need no fit: the prior as a guide, the floor, unless it is improper, and the exact posterior where
    it is known, the ceiling. They are of the model as given, so a guide whose fit learns the model too may pass the ceiling.

    Args:
        model: the model.
        guides: for each name a factory, any callable model -> guide: ``lambda m: Local(m, MeanField())``, or Pyro's
            ``AutoNormal`` as it is.
        x: the data, or a tuple of the model's arguments.
        objectives: for each name an objective; a further axis of the table. The ELBO after the fit is always the same one.
        optimisers: for each name what `fit` takes as `optimiser`; a further axis.
        steps, lr, batch_size: as for `fit`, the same for all; None for both lets each fit find its rate and its end.
        seeds: the seeds, or their number.
        draws: draws for each ELBO after the fit.
        jobs: processes to share the runs out to.
        progress: whether to show a progress bar.
        options: further options of `fit`.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
    """
    args = as_args(x)
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    check_count(jobs=jobs, seeds=len(seeds), **({} if steps is None else {"steps": steps}))
    check_count(draws=draws, least=2)
    if lr is not None:
        check_rate(lr)
    axes = {"objective": _axis("objectives", objectives, options), "optimiser": _axis("optimisers", optimisers, options)}
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {list(seeds)}: a seed that stands twice adds nothing but a false standard error.")
    if not guides:
        raise ValueError("no guides to compare: pass at least one name -> factory.")
    if taken := [name for name in guides if name.startswith((FLOOR, CEILING))]:
        raise ValueError(f"{taken[0]!r} is the name of a reference row: give the guide another.")
    check_data(model, args)
    settings = {"steps": steps, "lr": lr, "batch_size": batch_size, **options}
    rows = [
        (name, factory, {"objective": objective, "optimiser": optimiser})
        for name, factory in guides.items()
        for objective in axes["objective"]
        for optimiser in axes["optimiser"]
    ]
    # Fits with several seeds go together, but no process shall be idle.
    parts = np.array_split(seeds, min(len(seeds), ceil(jobs / len(rows))))
    work = (
        delayed(_runs)(
            model,
            name,
            factory,
            x,
            chosen=chosen,
            seeds=part.tolist(),
            draws=draws,
            settings={**settings, **{axis: axes[axis][key] for axis, key in chosen.items() if key}},
            dtype=torch.get_default_dtype(),
        )
        for name, factory, chosen in rows
        for part in parts
    )
    fitted: list[Run] = []
    with tqdm(total=len(rows) * len(seeds), disable=not progress, unit="fit") as bar:
        for done in Parallel(n_jobs=jobs, return_as="generator")(work):
            fitted += done
            bar.update(len(done))
    which = " of the model as given" if _is_learned(model) else ""
    # An improper prior is no distribution to draw from, so there is no floor.
    proper, known = getattr(unwrap(model), "proper", True), hasattr(model, "posterior")
    floor = [_reference(FLOOR + which, model, Prior(model), x, draws)] if proper else []
    ceiling = [_reference(CEILING + which, model, Posterior(model), x, draws)] if known else []
    return Comparison(
        model=type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "model"),
        rows=next((len(value) for value in args if isinstance(value, Tensor) and value.dim()), 1),
        learned=_is_learned(model),
        runs=(*floor, *fitted, *ceiling),
    )


def _runs(
    model: Any,
    name: str,
    factory: Callable[[Any], Any],
    x: Any,
    *,
    chosen: dict[str, str],
    seeds: list[int],
    draws: int,
    settings: dict[str, Any],
    dtype: torch.dtype,
) -> list[Run]:
    pairs = []
    with isolated(0):
        torch.set_default_dtype(dtype)
        for seed in seeds:
            with isolated(seed):
                own = copy.deepcopy(model)
                pairs.append((own, factory(own)))
        fits = fit_many(pairs, x, seeds=seeds, **settings)
        return [
            _measured(name, chosen, own, guide, x, done=done, draws=draws)
            for (own, guide), done in zip(pairs, fits, strict=True)
        ]


def _measured(name: str, chosen: dict[str, str], model: Any, guide: Any, x: Any, *, done: Fit, draws: int) -> Run:
    estimate = elbo(done.model, done.guide, x, draws=draws, seed=done.seed)
    return Run(
        guide=name,
        seed=done.seed,
        elbo=estimate.value,
        elbo_se=estimate.se,
        evidence=_evidence(model, x),
        best=_best(model, guide, x),
        fit=done,
        **chosen,
    )


def _axis(name: str, values: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of an axis by their names; where it is not compared the single name ''."""
    if values is None:
        return {"": None}
    if not values or "" in values:
        raise ValueError(f"{name} needs at least one name -> value, and no empty name; or leave it out.")
    if name[:-1] in options:
        raise ValueError(f"{name} and {name[:-1]} are both given: leave one out.")
    return values


def _reference(name: str, model: Any, guide: Any, x: Any, draws: int) -> Run:
    estimate = elbo(model, guide, x, draws=draws)
    evidence = _evidence(model, x)
    best = evidence if isinstance(guide, Posterior) else nan
    return Run(name, None, estimate.value, estimate.se, evidence, best, None)


def _evidence(model: Any, x: Any) -> float:
    """Exact log p(x), by algebra or quadrature, of models that have it: more than are Tractable."""
    if not hasattr(model, "log_evidence"):
        return nan
    with torch.no_grad():
        return float(model.log_evidence(*as_args(x)).sum())


def _best(model: Any, guide: Any, x: Any) -> float:
    """The best ELBO of the guide's family, where it is known in closed form."""
    family = _family(unwrap(guide))
    if family is None or not isinstance(model, Tractable):
        return nan
    if isinstance(guide, Guide) and family.blocks() is None:
        return nan
    with torch.no_grad():
        try:
            return float(best_elbo(model, family, *as_args(x)).sum())
        except (TypeError, ValueError):
            return nan


def _is_learned(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and any(p.requires_grad for p in model.parameters())


def _family(guide: Any) -> Family | None:
    """The family of a guide; of Pyro's autoguides those that are the same Gaussians under another name."""
    if isinstance(guide, Guide):
        return guide.family
    if isinstance(guide, (AutoNormal, AutoDiagonalNormal)):
        return MeanField()
    return FullRank() if isinstance(guide, AutoMultivariateNormal) else None
