"""Search for modes of the posterior outside q, which importance weights cannot detect because q has no draws there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, log, pi
from typing import Any

import torch
from torch import Tensor

from guides import Prior

from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities, scalars
from .importance import Moments
from .whitened import Whitened, mapped

__all__ = ["Mode", "missed_modes", "search"]

MIN_SHARE = 1e-4
"""Modes with a smaller share of the posterior are ignored."""
MIN_DISTANCE = 0.3
"""Two ends of climbs count as one if they are closer, in q's standard deviations, and in those of the mode."""
MAX_CANDIDATES = 24
"""Different ends of climbs that are polished, the highest first."""
MIN_SEEN = 1e-3
"""Ends of climbs closer than this, in q's standard deviations, are polished once."""
MAX_NEWTON_STEPS = 30
MAX_DECREMENT = 1e-6
"""Newton's decrement at a maximum, in nats."""
MAX_CORRECTED_DIM = 20
"""Dimensions up to which Laplace's estimate of a mass is corrected by draws."""
NEIGHBOURS = 8
"""Draws of q nearest to a mode that are made to climb: if one of them reaches the mode, q has draws in its basin."""
SCAN = 20_000
"""Points at which the density is computed to find places where to climb."""
MAX_SCAN_NUMBERS = 2**28
"""Points of the scan times numbers in the data."""
REACH = 40.0
"""Distance to which the scan goes along each coordinate, in q's standard deviations."""
SCANNED_RATES = (0.003, 0.03, 0.3)
"""First step sizes of climbs from points of the scan: large ones leave a narrow mode, small ones do not reach a wide one."""
DRAWS_PER_MODE = 500
MAX_RIDGES_DIM = 30
"""Dimensions up to which the scan goes along whitened coordinates as well as along the ridges of the latents' own."""


@dataclass(frozen=True)
class Mode:
    """A maximum of the posterior in unconstrained space that lies outside q."""

    h: dict[str, Tensor]
    """The latents at the maximum."""
    log_mass: float
    """Estimate of the mode's contribution to log p(x), in nats: Laplace's, corrected by draws in few dimensions."""
    share: float
    """The mode's share of the total of the masses of all modes that were found and the evidence estimated from q's draws."""
    moments: Moments = field(repr=False)
    """Means and sds of the scalars around the mode."""


def missed_modes(
    model: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    h: Mapping[str, Tensor],
    log_evidence: float,
    *,
    starts: int = 32,
    steps: int = 150,
    seed: int = 0,
) -> list[Mode]:
    """Climbs the posterior from many points and returns the modes of which q has no draws.

    The density is scanned along each coordinate and in a wide cloud. Climbs start at the best points of the scan, at points
    spread three and ten times as widely as q's draws, and at draws of the prior. A mode that no draw of q climbs to is missed.
    Maxima without mass, such as the neck of a funnel, do not count. A mode that no climb reaches is not found, so an empty
    list proves nothing: a mode much narrower than q is found only where the scan comes near, so in few dimensions.

    Args:
        model, x: the posterior.
        h: draws from q, for each latent shape (K, *shape).
        log_evidence: log p(x) estimated by q's importance weights.
        starts: number of climbs of each kind.
        steps: steps of Adam in each climb; the step size falls from one standard deviation of q to zero.
        seed: fixes the start points.

    Raises:
        ValueError: if the model's density cannot be computed at many points at once.
    """
    found = mapped(model, x, dict(h))
    if isinstance(found, str):
        raise ValueError(  # noqa: TRY004 - a string is a reason, not a wrong type
            f"missed_modes: the density of this model cannot be mapped over points: {found}."
        )
    return search(*found, log_evidence, starts=starts, steps=steps, seed=seed)


def search(
    joint: LogJoint, u: Tensor, log_evidence: float, *, starts: int = 32, steps: int = 150, seed: int = 0, proper: bool = True
) -> list[Mode]:
    """`missed_modes` for a mapped density and draws of q as its points."""
    space = Whitened(joint, u)
    prior = _from_prior(space, starts, seed) if proper else torch.zeros(0, joint.dim, dtype=u.dtype)
    with space.evaluated(seed):
        climber = _Climber(space, steps)
        draws = space.whiten(u)
        own = climber.distinct(climber.climb(draws[torch.randperm(len(draws))[:starts]], 0.1))
        ends = climber.distinct(climber.from_far(draws, prior, starts))
        masses = [(end, climber.log_mass(end)) for end in ends if not any(climber.same(end, one) for one in own)]
        masses = [(end, mass) for end, mass in masses if mass - log_evidence > log(MIN_SHARE)]
        missed = [(end, mass) for end, mass in masses if not climber.reached(end, draws)]
        if not missed:
            return []
        # The level of q: in many dimensions its weights may be far off, and Laplace's estimate is not.
        level = max([log_evidence, *(climber.log_mass(end) for end in own)])
        total = torch.tensor([level, *(mass for _, mass in missed)]).logsumexp(0)
        found = [climber.mode(end, mass, float((mass - total).exp())) for end, mass in missed]
    return [mode for mode in found if mode.share > MIN_SHARE]


class _Climber:
    """Climbs, and what is asked about their ends; used inside `Whitened.evaluated`."""

    def __init__(self, space: Whitened, steps: int) -> None:
        self.space = space
        self.steps = steps
        self.curvatures: list[tuple[Tensor, Tensor]] = []

    def climb(self, z: Tensor, rate: Tensor | float) -> Tensor:
        """The highest point of each climb by Adam, whose step size falls from `rate` to zero."""
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        best, height = z.clone(), torch.full_like(z[:, 0], -torch.inf)
        for step in range(1, self.steps + 1):
            value, slope = self.space.log_density_and_slope(z)
            higher = value > height
            best, height = torch.where(higher.unsqueeze(-1), z, best), torch.where(higher, value, height)
            first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
            size = rate * (1 - step / self.steps) ** 2
            z = z + size * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
        return best[height.argsort(descending=True)]

    def from_far(self, draws: Tensor, prior: Tensor, starts: int) -> Tensor:
        """The ends of climbs from distant points, from draws of the prior, and from the best points of the scan."""
        noise = torch.randn(2 * starts, draws.shape[1], dtype=draws.dtype)
        wide = torch.cat([3 * noise[:starts], 10 * noise[starts:], prior])
        rates = (wide.abs().amax(-1, keepdim=True) / 20).clamp(min=1.0)
        scanned = self._scan(starts)
        z = torch.cat([wide, *[scanned] * len(SCANNED_RATES)])
        rates = torch.cat([rates, *(torch.full_like(scanned[:, :1], rate) for rate in SCANNED_RATES)])
        return self.climb(z, rates)

    def distinct(self, ends: Tensor) -> list[Tensor]:
        """The maxima at which the climbs ended, polished and without repetitions, the highest first."""
        kept: list[Tensor] = []
        seen: list[Tensor] = []
        for end in ends[ends.isfinite().all(-1)]:
            if len(seen) == MAX_CANDIDATES:
                break
            if any(float((end - other).norm()) < MIN_SEEN for other in seen) or any(self.same(end, other) for other in kept):
                continue
            seen.append(end)
            top = self._polished(end)
            if top is not None and not any(self.same(top, other) for other in kept):
                kept.append(top)
        return kept

    def log_mass(self, z: Tensor) -> float:
        """Log integral around a maximum z."""
        root = torch.linalg.cholesky(torch.linalg.inv(self._curvature(z)))
        half_log_det = root.diagonal().log().sum()
        height = self.space.log_density(z.unsqueeze(0))[0]
        laplace = float(height + 0.5 * len(z) * log(2 * pi) + half_log_det) + self.space.log_det
        if len(z) > MAX_CORRECTED_DIM:
            return laplace
        noise = torch.randn(DRAWS_PER_MODE, len(z), dtype=z.dtype)
        # Only points near the mode: others belong to the rest of the posterior.
        noise = noise[noise.square().sum(-1) < len(z) + 1]
        ratio = self.space.log_density(z + noise @ root.mT) - height + 0.5 * noise.square().sum(-1)
        return laplace + float(ratio.logsumexp(0)) - log(len(noise))

    def reached(self, end: Tensor, draws: Tensor) -> bool:
        """Whether one of the draws nearest to the mode climbs to it."""
        curvature = self._curvature(end)
        distance = ((draws - end) @ curvature * (draws - end)).sum(-1)
        near = draws[distance.topk(min(NEIGHBOURS, len(draws)), largest=False).indices]
        return any(self.same(top, end) for top in self.distinct(self.climb(near, 0.05)))

    def mode(self, end: Tensor, log_mass: float, share: float) -> Mode:
        """The mode, with moments from draws of Laplace's approximation."""
        root = torch.linalg.cholesky(torch.linalg.inv(self._curvature(end)))
        z = end + torch.randn(DRAWS_PER_MODE, len(end), dtype=end.dtype) @ root.mT
        joint = self.space.joint
        table = scalars(quantities(joint.model, joint.constrain(self.space.points(z)))).draws
        at = {name: value[0] for name, value in joint.constrain(self.space.points(end.unsqueeze(0))).items()}
        return Mode(at, log_mass, share, Moments(table.mean(0), table.std(0)))

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Whether a point is within a standard deviation of a maximum, and close in q's units."""
        off = one - other
        return float(off.norm()) < MIN_DISTANCE and float(off @ self._curvature(other) @ off) < 1.0

    def _polished(self, z: Tensor) -> Tensor | None:
        """The maximum that Newton's method reaches from the end of a climb; None if there is none."""
        for _ in range(MAX_NEWTON_STEPS):
            height, slope = self.space.log_density_and_slope(z.unsqueeze(0))
            curvature = -self.space.hessian(z)
            factor, failed = torch.linalg.cholesky_ex(curvature)
            if int(failed) or not bool(curvature.isfinite().all()):
                return None
            step = torch.cholesky_solve(slope.mT, factor)[:, 0]
            if float(slope[0] @ step) < MAX_DECREMENT:
                self.curvatures.append((z, curvature))
                return z
            tries = z + step * 0.5 ** torch.arange(6, dtype=z.dtype).unsqueeze(-1)
            values = self.space.log_density(tries)
            if not float(values.max()) >= float(height[0]):
                return None
            z = tries[int(values.argmax())]
        return None

    def _curvature(self, z: Tensor) -> Tensor:
        """Minus the Hessian at a maximum."""
        return next(curvature for at, curvature in self.curvatures if at is z)

    def _scan(self, starts: int) -> Tensor:
        """Points where the density is higher than at others of their distance from q, or high and far away."""
        z = self._cloud()
        value = self.space.log_density(z)
        radius = z.norm(dim=-1)
        order = radius.argsort()
        width = max(3, min(101, len(z) // 20) | 1)
        windows = value[order].unfold(0, width, 1)
        middle = windows.median(-1).values.clamp(min=-1e30)
        middle = torch.cat([middle[:1].expand(width // 2), middle, middle[-1:].expand(width // 2)])
        excess = torch.empty_like(value)
        excess[order] = value[order].clamp(min=-1e30) - middle
        chosen = torch.cat([excess.topk(min(starts // 2, len(z))).indices, self._peaks(z, value, starts // 2)])
        return z[chosen.unique()]

    def _peaks(self, z: Tensor, value: Tensor, starts: int) -> Tensor:
        """The highest points that lie more than four standard deviations out along some coordinate."""
        far = z.abs().amax(-1) > 4
        return value.where(far, -torch.inf).topk(min(starts // 2, int(far.sum()))).indices

    def _cloud(self) -> Tensor:
        """Points along each coordinate, and a cloud around q, in equal parts."""
        dim = self.space.dim
        numbers = sum(value.numel() for value in self.space.joint.args if isinstance(value, Tensor))
        count = max(500, min(SCAN, MAX_SCAN_NUMBERS // max(1, numbers)))
        like = self.space.centre
        each = max(4, ceil(count / 4 / dim))
        dense = torch.linspace(-10, 10, each, dtype=like.dtype)
        coarse = torch.linspace(10, REACH, max(2, each // 2), dtype=like.dtype)
        line = torch.cat([dense, coarse, -coarse])
        axes = torch.eye(dim, dtype=like.dtype)
        # The ridge along a coordinate: the mean of the others given its value.
        directions = [axes] if self.space.lower is None else [axes, self.space.lower]
        along = (line.reshape(-1, 1, 1) * torch.cat(directions if dim <= MAX_RIDGES_DIM else directions[-1:])).reshape(-1, dim)
        # In many dimensions a cloud meets nothing.
        noise = torch.randn(count // 2 if dim <= MAX_RIDGES_DIM else count // 20, dim, dtype=like.dtype)
        spread = torch.tensor([1.5, 3.0, 6.0], dtype=like.dtype)[torch.randint(3, (len(noise), 1))]
        return torch.cat([along, noise * spread])


def _from_prior(space: Whitened, starts: int, seed: int) -> Tensor:
    """Draws of the prior in whitened coordinates; none if it cannot be drawn from."""
    joint = space.joint
    with isolated(seed), torch.no_grad():
        try:
            u = joint.unconstrain(draw_all(joint.model, Prior(joint.model), joint.args, draws=starts).h)
        except (ValueError, RuntimeError, NotImplementedError):
            return torch.zeros(0, joint.dim, dtype=space.centre.dtype)
    z = space.whiten(u.to(space.centre))
    return z[z.isfinite().all(-1)]
