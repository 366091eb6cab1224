"""The truth for models that have none: long runs of NUTS, checked and kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from ..programs.validation import as_args, check_count, check_data
from .samplers import Length, Sampler, best_sampler, packages

__all__ = ["LongRun", "NotConvergedError", "reference"]

RHAT, ESS = 1.01, 400.0
"""What every scalar must reach: the usual limits (Vehtari et al. 2021)."""


class NotConvergedError(RuntimeError):
    """The chains have not agreed, so their draws are no reference. The message names the worst scalar."""


@dataclass(frozen=True)
class LongRun:
    """Draws of a long run of NUTS that has passed its checks."""

    names: tuple[str, ...]
    """Scalars of the model's quantities, as ``theta[1]``."""
    draws: Tensor = field(repr=False)
    """Shape (chains, draws, D), float64."""
    rhat: Tensor = field(repr=False)
    """Split rank-normalised R̂ of each scalar, shape (D,)."""
    ess: Tensor = field(repr=False)
    """Bulk effective sample size of each scalar, shape (D,)."""
    divergences: int
    about: dict[str, Any]
    """The call and the versions that made it."""

    def moments(self) -> tuple[dict[str, float], dict[str, float]]:
        """Mean and standard deviation of each scalar."""
        flat = self.draws.flatten(0, 1)
        mean, sd = flat.mean(0).tolist(), flat.std(0).tolist()
        return dict(zip(self.names, mean, strict=True)), dict(zip(self.names, sd, strict=True))


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
    """Runs NUTS in unconstrained space, from scattered starts, and refuses what has not converged.

    Args:
        model, x: the posterior. A funnel should be given in its non-centred parametrisation: R̂ does not see what no chain
            visits.
        chains: at least 2, for R̂.
        draws, warmup: of each chain.
        target_accept: NUTS's target for the step size.
        seed: fixes starts and chains.
        sampler: one of `inference.nuts`, by default NumPyro's NUTS where it is installed (the extra ``bench``), else
            nutpie's where that is, else Pyro's.
        cache: a folder. A run of the same model (its code, parameters and data), settings and versions is read from there, and
            a new one is written there; a damaged file is made anew.
        progress: whether to show progress bars.

    Raises:
        TypeError, ValueError: for bad input, before any work starts.
        NotConvergedError: if a scalar's R̂ is above 1.01 or its effective sample size below 400.

    References: Hoffman & Gelman, "The no-U-turn sampler" (2014); Vehtari, Gelman, Simpson, Carpenter & Bürkner,
    "Rank-normalization, folding, and localization: an improved R̂" (2021).
    """
    args = as_args(x)
    check_count(draws=draws, warmup=warmup)
    check_count(least=2, chains=chains)
    check_data(model, args)
    settings: dict[str, Any] = {
        "chains": chains,
        "draws": draws,
        "warmup": warmup,
        "target_accept": target_accept,
        "seed": seed,
    }
    sampler = best_sampler() if sampler is None else sampler
    needed = ("torch", "pyro-ppl", "arviz", *packages(sampler))
    about = {
        "command": f"inference.reference({_name(model)}, x, {', '.join(f'{k}={v}' for k, v in settings.items())}, "
        f"sampler={getattr(sampler, '__name__', repr(sampler))})",
        "versions": {package: version(package) for package in needed},
    }
    file = None if cache is None else Path(cache) / f"{_name(model)}-{_key(model, args, about)}.npz"
    if file is not None and (known := _read(file)) is not None:
        return known
    joint = LogJoint(model, x)
    with isolated(seed):
        runs = sampler(joint, Length(**settings, progress=progress))
    table = [scalars(quantities(model, joint.constrain(u))) for u in runs.u]
    result = _checked(table[0].names, torch.stack([t.draws for t in table]), runs.divergences, about)
    if file is not None:
        _write(file, result)
    return result


def _checked(names: tuple[str, ...], draws: Tensor, divergences: int, about: dict[str, Any]) -> LongRun:
    from arviz import convert_to_dataset, ess, rhat

    dataset = convert_to_dataset({"q": draws.numpy()})
    r, n = (torch.from_numpy(np.atleast_1d(f(dataset)["q"].values)) for f in (rhat, ess))
    result = LongRun(names, draws, r, n, divergences, about)
    if not (r <= RHAT).all() or not (n >= ESS).all():
        worst = int(r.nan_to_num(torch.inf).argmax()) if not (r <= RHAT).all() else int(n.argmin())
        raise NotConvergedError(
            f"{names[worst]} has R̂ = {r[worst]:.3f} and {n[worst]:.0f} effective draws, with {divergences} divergences; "
            f"at most {RHAT} and at least {ESS:.0f} are needed. Take more warmup and draws, or a non-centred model."
        )
    return result


def _key(model: Callable[..., Any], args: tuple[Any, ...], about: dict[str, Any]) -> str:
    """Of all that the draws depend on: the code of the model and its bases, its numbers, the data, the call, the versions."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    kinds = type(model).__mro__ if isinstance(model, nn.Module) else (model,)
    for kind in kinds:
        if not getattr(kind, "__module__", "").startswith(("torch", "pyro", "builtins", "abc")):
            digest.update(inspect.getsource(kind).encode())
    if isinstance(model, nn.Module):
        options = {k: v for k, v in vars(model).items() if isinstance(v, (int, float, str, bool, tuple))}
        digest.update(repr(sorted(options.items())).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    for value in args:
        plain = not isinstance(value, Tensor)
        digest.update(repr(value).encode() if plain else value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> LongRun | None:
    try:
        with np.load(BytesIO(file.read_bytes())) as arrays:
            about = json.loads(str(arrays["about"]))
            draws, r, n = (torch.from_numpy(arrays[name]) for name in ("draws", "rhat", "ess"))
            return LongRun(tuple(map(str, arrays["names"])), draws, r, n, int(arrays["divergences"]), about)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, result: LongRun) -> None:
    """Whole or not at all: a reader never sees a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".npz")
    with os.fdopen(handle, "wb") as stream:
        np.savez_compressed(
            stream,
            names=np.array(result.names),
            draws=result.draws.numpy(),
            rhat=result.rhat.numpy(),
            ess=result.ess.numpy(),
            divergences=result.divergences,
            about=json.dumps(result.about),
        )
    Path(name).replace(file)


def _name(model: Callable[..., Any]) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")
