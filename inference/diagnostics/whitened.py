"""The posterior in coordinates in which draws of q have mean zero and unit covariance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ..programs.isolation import seed_all
from ..programs.log_joint import LogJoint
from ..programs.mapping import NotMappedError, agree, mappable
from ..programs.validation import as_args

__all__ = ["Whitened", "mapped"]

MAX_NUMBERS = 2**21
"""Numbers in the data times points that one vectorised call evaluates."""
MAX_CHUNK = 1000
"""Points that one vectorised call evaluates."""
MAX_REJECTED = 50
"""Points that get density zero together if a matrix of the model cannot be factorised for one of them."""
DRAWS_PER_DIM = 10
"""Draws for each dimension that a covariance needs; with fewer only the variances are used."""
MAX_CHANCE = 6.0
"""Standard errors of the largest correlation of independent coordinates."""
MAX_REASON = 120
"""Letters of an error that is quoted as a reason."""


def mapped(model: Callable[..., Any], x: Tensor | tuple[Any, ...], h: dict[str, Tensor]) -> tuple[LogJoint, Tensor] | str:
    """The log joint density as a function of many points, and the draws `h` as such points; or why there is no such function.

    A program with discrete latents has no unconstrained points. One whose path depends on its latents cannot be vectorised.
    """
    numbers = sum(value.numel() for value in as_args(x) if isinstance(value, Tensor))
    try:
        joint = LogJoint(model, x, chunk=max(1, min(MAX_CHUNK, MAX_NUMBERS // max(1, numbers))))
        u = joint.unconstrain(h)
        with joint.evaluated():
            with mappable():
                several = torch.func.vmap(torch.func.grad_and_value(joint.at))(u[:3])[1]
            single = torch.stack([joint.at(point) for point in u[:3]])
    except NotMappedError as error:
        return str(error)
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        return str(error).split("\n")[0][:MAX_REASON]
    return (joint, u) if agree(several.detach(), single.detach()) else "mapped, it is not the density of a single call"


class Whitened:
    """u = centre + scale (lower z), for the mean, the sds, and a root of the correlation of draws u.

    Args:
        joint: the posterior.
        u: draws, shape (K, dim).
        weights: normalised weights of the draws, shape (K,).
    """

    def __init__(self, joint: LogJoint, u: Tensor, weights: Tensor | None = None) -> None:
        self.joint = joint
        self.dim = joint.dim
        share = torch.full_like(u[:, 0], 1 / len(u)) if weights is None else weights.to(u)
        self.centre = share @ u
        off = u - self.centre
        self.scale = (share @ off.square()).sqrt().clamp(min=1e-12)
        self.lower = self._correlation(off, share) if len(u) > DRAWS_PER_DIM * self.dim > DRAWS_PER_DIM else None
        self.log_det = float(self.scale.log().sum())
        if self.lower is not None:
            self.log_det += float(self.lower.diagonal().log().sum())
        self._value = torch.func.vmap(self.at)
        self._both = torch.func.vmap(torch.func.grad_and_value(self.at))
        self._factors = torch.func.vmap(self._at_factors)

    def at(self, z: Tensor) -> Tensor:
        """The log density over u at one z. Use it inside `evaluated`."""
        return self.joint.at(self._point(z))

    def points(self, z: Tensor) -> Tensor:
        """The points u of the rows of z."""
        return self.centre + self.scale * (z if self.lower is None else z @ self.lower.mT)

    def whiten(self, u: Tensor) -> Tensor:
        """The inverse of `points`."""
        z = (u - self.centre) / self.scale
        return z if self.lower is None else torch.linalg.solve_triangular(self.lower, z.mT, upper=False).mT

    @contextmanager
    def evaluated(self, seed: int) -> Iterator[None]:
        """Within it the methods below may be called, and random numbers are those of the seed."""
        with self.joint.evaluated():  # isolated already, with the parameters of the model
            seed_all(seed)
            yield

    def log_density(self, z: Tensor) -> Tensor:
        """log p over u at each z, shape (K,); −inf where it is not a number."""
        return torch.cat([self._safe(self._value, part)[0] for part in z.split(self.joint.chunk)]).nan_to_num(
            nan=-torch.inf, posinf=-torch.inf
        )

    def log_density_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p over u at each z, and its gradient in z, shapes (K,) and (K, dim)."""
        found = [self._safe(self._both, part) for part in z.split(self.joint.chunk)]
        slope, value = torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])
        return value.nan_to_num(nan=-torch.inf, posinf=-torch.inf), slope.nan_to_num(0.0, 0.0, 0.0)

    def log_factors(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p over u, and log of the prior alone over u, at each z."""
        found = [self._safe(self._factors, part) for part in z.split(self.joint.chunk)]
        prior, likelihood = (torch.cat([part[i] for part in found]) for i in (0, 1))
        return (prior + likelihood).nan_to_num(nan=-torch.inf, posinf=-torch.inf), prior.nan_to_num(nan=-torch.inf)

    def hessian(self, z: Tensor) -> Tensor:
        """Second derivatives in z at one z."""
        return torch.func.jacrev(torch.func.grad(self.at))(z).detach()

    def _at_factors(self, z: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.joint
        return joint.latents.log_factors(joint.model, self._point(z), joint.args)

    def _point(self, z: Tensor) -> Tensor:
        return self.centre + self.scale * (z if self.lower is None else self.lower @ z)

    def _correlation(self, off: Tensor, share: Tensor) -> Tensor | None:
        """Cholesky factor of the correlation of weighted deviations; None if it is the identity within its errors."""
        z = off / self.scale
        correlation = (z * share.unsqueeze(-1)).mT @ z
        beside = correlation - correlation.diagonal().diag()
        if float(beside.abs().max()) < MAX_CHANCE * float(share.square().sum().sqrt()):
            return None
        factor, failed = torch.linalg.cholesky_ex(correlation + 1e-6 * torch.eye(self.dim, dtype=off.dtype))
        return None if int(failed) else factor

    def _safe(self, function: Callable[[Tensor], Any], z: Tensor) -> tuple[Tensor, ...]:
        """The values of a mapped function; density zero where a matrix cannot be factorised, and at a few points beside it."""
        try:
            with mappable():
                found = function(z)
        except NotMappedError as error:
            if not isinstance(error.__cause__, LinAlgError):
                raise
            if len(z) > MAX_REJECTED:
                halves = [self._safe(function, half) for half in z.chunk(2)]
                return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
            nothing = torch.full_like(z[:, 0], -torch.inf)
            return (torch.zeros_like(z), nothing) if function is self._both else (nothing, nothing)
        return tuple(v.detach() for v in found) if isinstance(found, tuple) else (found.detach(),)
