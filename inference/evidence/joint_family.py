"""The q of a guide with shared latents, or with latents of groups, as one distribution over all latents."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from guides import Guide
from guides.latents import Latents

__all__ = ["JointFamily", "JointQ"]


class JointQ:
    """q(shared) ∏_i q_i(h_i | shared) over all latents of a model, packed into one vector.

    Args:
        shared: q over the packed shared latents; None if there are none.
        given: the q_i given a draw of the shared latents, shape (K, 1, shared dim), batch shape (K, N) or (N,).
        order: the place of each number of (shared, h_1, …, h_N) in the vector.
    """

    def __init__(self, shared: Any, given: Callable[[Any], Any], order: Tensor) -> None:
        self.shared = shared
        self.given = given
        self.order = order

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable in λ."""
        shared = None if self.shared is None else self.shared.sample((1,)).unsqueeze(-2)
        return bool((self.shared is None or self.shared.has_rsample) and self.given(shared).has_rsample)

    def rsample(self, shape: tuple[int]) -> Tensor:
        """K draws, shape (K, dim), for `shape` = (K,)."""
        (draws,) = shape
        parts = []
        shared = None
        if self.shared is not None:
            shared = self.shared.rsample(shape)
            parts.append(shared)
            shared = shared.unsqueeze(-2)
        q = self.given(shared)
        local = q.rsample(shape if len(q.batch_shape) == 1 else ())
        parts.append(local.reshape(draws, -1))
        return torch.cat(parts, -1)[..., self.order.argsort()]

    def sample(self, shape: tuple[int]) -> Tensor:
        """As `rsample`, without a gradient."""
        with torch.no_grad():
            return self.rsample(shape)

    def log_prob(self, h: Tensor) -> Tensor:
        """The log density at each of K vectors, shape (K, dim): shape (K,)."""
        h = h[..., self.order]
        if self.shared is None:
            q = self.given(None)
            local: Tensor = q.log_prob(h.reshape(len(h), q.batch_shape[-1], -1))
            return local.sum(-1)
        width = self.shared.event_shape[0]
        shared = h[..., :width]
        q = self.given(shared.unsqueeze(-2))
        local = q.log_prob(h[..., width:].reshape(len(h), q.batch_shape[-1], -1))
        total: Tensor = self.shared.log_prob(shared) + local.sum(-1)
        return total


class JointFamily:
    r"""The q that a guide with one λ_i for each datum can reach when every λ_i is free: a map from one vector to a `JointQ`.

    λ_i(shared) = the guide's own λ_i(shared) + offset_i, and + coupling_i · (shared, standardised) if the guide's λ_i depend
    on the shared latents. The vector holds the λ of the shared latents, the offsets and the couplings. So the guide itself is
    a member, at `start`.

    Args:
        guide: a guide that is set up, with `local`.
        args: the data.

    Raises:
        TypeError: if the guide's `q_given` is not the family at its `lambdas_given`.
    """

    def __init__(self, guide: Guide, args: tuple[Any, ...]) -> None:
        assert guide.latents is not None
        self.guide = guide
        self.x = args[0] if args else None
        self.latents = Latents(guide.model, args, {}, plate=None, discrete=guide.family.discrete)
        self.rows = guide.latents.plate_sizes[guide.plate]
        self.order = _order(self.latents, guide)
        self.dependent = self._depends()
        self._check()

    @property
    def start(self) -> Tensor:
        """The vector of the guide itself; differentiable in the λ of its shared latents."""
        size = self.guide.family.size
        like = next(iter(self.guide.parameters()))
        shared = self.guide.shared_lam if self.guide.shared is not None else like.new_zeros(0)
        width = self.guide.shared.dim if self.guide.shared is not None and self.dependent else 0
        return torch.cat([shared, like.new_zeros(self.rows * size * (1 + width))])

    def parts(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The shared latents' λ; the offsets, shape (N, size); the couplings, shape (N, size, shared dim), or None."""
        size = self.guide.family.size
        own = len(self.guide.shared_lam) if self.guide.shared is not None else 0
        end = own + self.rows * size
        offset = lam[own:end].reshape(self.rows, size)
        coupling = lam[end:].reshape(self.rows, size, -1) if self.dependent else None
        return lam[:own], offset, coupling

    def __call__(self, lam: Tensor) -> JointQ:
        shared_lam, offset, coupling = self.parts(lam)
        shared = self.guide.shared_family(shared_lam) if self.guide.shared is not None else None

        def given(draw: Tensor | None) -> Any:
            if draw is None:
                return self.guide.family(self.guide.lambdas(self.x) + offset)  # type: ignore[arg-type]
            own = self.guide.lambdas_given(self.x, None, draw) + offset  # type: ignore[arg-type]
            if coupling is not None:
                own = own + (coupling * _standardised(draw, shared).unsqueeze(-2)).sum(-1)
            return self.guide.family(own)

        return JointQ(shared, given, self.order)

    def _depends(self) -> bool:
        """Whether λ_i is computed from the shared latents."""
        if self.guide.shared is None:
            return False
        with torch.enable_grad():
            draw = self.guide.q_shared().sample((1,)).unsqueeze(-2).requires_grad_()
            lam = self.guide.lambdas_given(self.x, None, draw)  # type: ignore[arg-type]
            return lam.requires_grad and torch.autograd.grad(lam.sum(), draw, allow_unused=True)[0] is not None

    def _check(self) -> None:
        with torch.no_grad():
            draw = None if self.guide.shared is None else self.guide.q_shared().sample((1,)).unsqueeze(-2)
            q = self.guide.q(self.x) if draw is None else self.guide.q_given(self.x, None, draw)  # type: ignore[arg-type]
            mine = self(self.start).given(draw)
            at = q.sample()
            if not torch.allclose(q.log_prob(at), mine.log_prob(at), rtol=1e-4, atol=1e-4, equal_nan=True):
                raise TypeError(
                    f"{type(self.guide).__name__}: its q is not its family at its λ, so its λ_i cannot be freed: define "
                    "lambdas and lambdas_given so that family(lambdas(x)) is q(x) and family(lambdas_given(…)) is q_given(…)."
                )


def _order(latents: Latents, guide: Guide) -> Tensor:
    """For each number of the packed shared latents, then of the packed latents of each row, its place in `latents`."""
    assert guide.latents is not None
    places, start = {}, 0
    for site in latents.sites:
        width = prod((*site.batch_shape, *site.unconstrained_shape))
        places[site.name] = torch.arange(start, start + width)
        start += width
    shared = [] if guide.shared is None else [places[site.name] for site in guide.shared.sites]
    rows = guide.latents.plate_sizes[guide.plate]
    local = torch.cat([places[site.name].reshape(rows, -1) for site in guide.latents.sites], -1)
    return torch.cat([*shared, local.reshape(-1)])


def _standardised(draw: Tensor, q: Any) -> Tensor:
    try:
        standard: Tensor = (draw - q.mean) / q.stddev
    except NotImplementedError:
        return draw
    return standard
