"""Reference draws by a long run of NUTS, checked for convergence and kept on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from models.arguments import number, shown

from ..programs.arguments import checked
from ..programs.free_coordinates import fixed_by_support
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from ..programs.validation import as_args, check_count, check_data, naming
from .base import Chains, Length, Sampler
from .cache import program_name, read_run, run_file, write_run
from .fingerprint import NoFingerprintError, fingerprint
from .samplers import best_sampler, packages

__all__ = ["LongRun", "NotConvergedError", "reference"]

MAX_RHAT, MIN_ESS = 1.01, 400.0
"""Limits for every scalar (Vehtari et al. 2021)."""
MIN_DRAWS = 4
"""Draws of a chain, for the R̂ of its two halves."""


class NotConvergedError(RuntimeError):
    """The chains disagree, so their draws are no reference. The message names the worst scalar."""


@dataclass(frozen=True)
class LongRun:
    """Draws of a long run of NUTS that has passed its checks."""

    names: tuple[str, ...]
    """Scalars of the model's quantities, such as ``theta[1]``."""
    draws: Tensor = field(repr=False)
    """Shape (chains, draws, D), float64."""
    rhat: Tensor = field(repr=False)
    """Split rank-normalised R̂ of each scalar, shape (D,)."""
    ess: Tensor = field(repr=False)
    """Bulk effective sample size of each scalar, shape (D,)."""
    divergences: int
    about: dict[str, Any]
    """The call and the package versions of the run."""

    def moments(self) -> tuple[dict[str, float], dict[str, float]]:
        """Mean and standard deviation of each scalar, by name."""
        flat = self.draws.flatten(0, 1)
        mean, sd = flat.mean(0).tolist(), flat.std(0).tolist()
        return dict(zip(self.names, mean, strict=True)), dict(zip(self.names, sd, strict=True))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The run kept in `file`; None if there is none, or it is damaged."""
        arrays = read_run(file)
        if arrays is None or not {"names", "draws", "rhat", "ess", "divergences", "about"} <= arrays.keys():
            return None
        draws, r, n = (torch.from_numpy(arrays[name]) for name in ("draws", "rhat", "ess"))
        about = json.loads(str(arrays["about"]))
        return cls(tuple(map(str, arrays["names"])), draws, r, n, int(arrays["divergences"]), about)

    def write(self, file: Path) -> None:
        """Keeps the run in `file`."""
        arrays = {name: getattr(self, name).numpy() for name in ("draws", "rhat", "ess")}
        names, about = np.array(self.names), json.dumps(self.about)
        write_run(file, {"names": names, **arrays, "divergences": self.divergences, "about": about})


@checked
def reference(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    target_accept: float = 0.9,
    seed: int = 0,
    sampler: Sampler | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> LongRun:
    """Runs NUTS in unconstrained space from scattered starts, and refuses a run that has not converged.

    Args:
        model, x: the posterior. Give a funnel in its non-centred parametrisation: R̂ cannot detect a region that no chain
            visits.
        chains: number of chains, at least 2 for R̂.
        draws, warmup: draws and warmup steps of each chain.
        target_accept: NUTS's target acceptance for the step size.
        seed: fixes starts and chains.
        sampler: one of `inference.nuts`; by default NumPyro's NUTS if it is installed (the extra ``bench``), else nutpie's if
            that is, else Pyro's.
        cache: a folder of kept runs. A run of the same posterior, settings, sampler (by its name) and versions is read from
            it, a new run is written to it, and a damaged file is replaced. Posteriors are the same if the same tensor
            operations on the same numbers give density and quantities. If a model is no fixed sequence of operations, no run
            is read or written, with a warning.
        progress: whether to show progress bars.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NotConvergedError: if a scalar's R̂ is above 1.01 or its effective sample size below 400.

    References: Hoffman & Gelman, "The no-U-turn sampler" (2014); Vehtari, Gelman, Simpson, Carpenter & Bürkner,
    "Rank-normalization, folding, and localization: an improved R̂" (2021).
    """
    args = as_args(x)
    check_count(warmup=warmup)
    check_count(least=2, chains=chains)
    check_count(least=MIN_DRAWS, draws=draws)
    number("target_accept", target_accept, above=0, below=1)
    check_data(model, args)
    sampler = best_sampler() if sampler is None else sampler
    length = Length(chains, draws, warmup, target_accept, seed, progress)
    about = _about(model, length, sampler)
    joint = LogJoint(model, x)
    file = None if cache is None else _file(Path(cache), joint, about)
    if file is not None and (known := LongRun.read(file)) is not None:
        return known
    with isolated(seed), naming("sampler", sampler, (joint, length)):
        drawn = sampler(joint, length)
    if not isinstance(drawn, Chains):
        raise TypeError(f"sampler must return Chains, but returned {shown(drawn)}.")
    run = _checked(joint, drawn, about)
    if file is not None:
        run.write(file)
    return run


def _file(folder: Path, joint: LogJoint, about: dict[str, Any]) -> Path | None:
    """The file of the run; None, with a warning, if it cannot be told from the runs of other posteriors."""
    try:
        posterior = fingerprint(joint)
    except NoFingerprintError as error:
        name = program_name(joint.model)
        warnings.warn(f"reference: no kept run of {name} is used and this one is not kept, because {error}.", stacklevel=3)
        return None
    return run_file(folder, program_name(joint.model), posterior, about)


def _about(model: Callable[..., Any], length: Length, sampler: Sampler) -> dict[str, Any]:
    """The call and the versions of all packages that its draws depend on."""
    settings = ", ".join(f"{name}={value}" for name, value in length._asdict().items() if name != "progress")
    by = getattr(sampler, "__name__", repr(sampler))
    return {
        "command": f"inference.reference({program_name(model)}, x, {settings}, sampler={by})",
        "versions": {package: version(package) for package in ("torch", "pyro-ppl", "arviz", *packages(sampler))},
    }


def _checked(joint: LogJoint, drawn: Chains, about: dict[str, Any]) -> LongRun:
    """The drawn chains as a run; raises unless they have converged."""
    from arviz import convert_to_dataset, ess, rhat

    table = [scalars(quantities(joint.model, joint.constrain(u))) for u in drawn.u]
    names, draws = table[0].names, torch.stack([t.draws for t in table])
    dataset = convert_to_dataset({"q": draws.numpy()})
    r, n = (torch.from_numpy(np.atleast_1d(f(dataset)["q"].values)) for f in (rhat, ess))
    fixed = fixed_by_support(joint)
    r, n = r.masked_fill(fixed, 1.0), n.masked_fill(fixed, float(draws.shape[0] * draws.shape[1]))
    if not (r <= MAX_RHAT).all() or not (n >= MIN_ESS).all():
        worst = int(r.nan_to_num(torch.inf).argmax()) if not (r <= MAX_RHAT).all() else int(n.argmin())
        raise NotConvergedError(
            f"{names[worst]} has R̂ = {r[worst]:.3f} and {n[worst]:.0f} effective draws, with {drawn.divergences} divergences; "
            f"at most {MAX_RHAT} and at least {MIN_ESS:.0f} are needed. Take more warmup and draws, or a non-centred model."
        )
    return LongRun(names, draws, r, n, drawn.divergences, about)
