"""The table of a comparison: one row for each guide, means over its seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, nan, sqrt
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from ..fitting.fit import Fit
from ..plots.elbo_curves import Panel, elbo_curves
from .text import comparison_html, comparison_text

__all__ = ["Comparison", "Run"]


@dataclass(frozen=True)
class Run:
    """One guide fitted with one seed, or a reference row, which needs no fit."""

    guide: str
    seed: int | None
    elbo: float
    elbo_se: float
    evidence: float
    """Exact log p(x) of the fitted model; NaN if unknown."""
    best: float
    """The highest ELBO in the guide's family; NaN if unknown."""
    fit: Fit | None = field(repr=False)
    """None for a reference row."""
    objective: str = ""
    """Name of the objective, if objectives are compared."""
    optimiser: str = ""
    """Name of the optimiser, if optimisers are compared."""

    @property
    def name(self) -> str:
        """Name of the row: the guide, and the objective and optimiser if these are compared."""
        return ", ".join(filter(None, (self.guide, self.objective, self.optimiser)))


@dataclass(frozen=True)
class Comparison:
    """The tightness of each guide's bound. ELBO and evidence are totals over the data, in nats; a gap is evidence − ELBO."""

    model: str
    rows: int
    """N, the number of data."""
    learned: bool
    """Whether the model has parameters, which each run learned separately, so that log p(x) changed during the run."""
    runs: tuple[Run, ...]

    def __repr__(self) -> str:
        return comparison_text(self)

    def _repr_html_(self) -> str:
        return comparison_html(self)

    def to_frame(self) -> pd.DataFrame:
        """One row for each guide, means over its seeds, from the floor (prior) to the ceiling (exact posterior).

        If objectives or optimisers are compared too, one row for each combination, named in columns of their own.

        elbo_se is the Monte Carlo standard error of the mean, seed_sd the standard deviation between seeds. best_gap is the
        gap of the family's best q: no λ can close it. gap_per_datum is gap / N.
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
        seeds = len(runs)
        values = torch.tensor([run.elbo for run in runs], dtype=torch.float64)
        value = float(values.mean())
        evidence = sum(run.evidence for run in runs) / seeds
        best = sum(run.best for run in runs) / seeds
        fits = [run.fit for run in runs if run.fit is not None]
        return {
            "guide": runs[0].guide,
            "objective": runs[0].objective,
            "optimiser": runs[0].optimiser,
            "elbo": value,
            "elbo_se": sqrt(sum(run.elbo_se**2 for run in runs)) / seeds,
            "seed_sd": float(values.std()) if seeds > 1 else nan,
            "evidence": evidence,
            "gap": evidence - value,
            "gap_per_datum": (evidence - value) / self.rows,
            "best_gap": evidence - best,
            "seconds": sum(f.seconds for f in fits) / len(fits) if fits else nan,
            "steps": round(sum(f.steps for f in fits) / len(fits)) if fits else 0,
            "seeds": len(fits),
        }
