"""Grey values with a finite number of levels."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..arguments import count, number
from .base import Observation

__all__ = ["DiscretisedLogistic"]


class _Levels(constraints.Constraint):
    """Multiples of 1/(levels − 1) in [0, 1]."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.levels - 1)
        return (level - level.round()).abs().lt(1e-3) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"multiples of 1/{self.levels - 1} in [0, 1]"


class DiscretisedLogistic(Observation):
    """P(x) = the mass of Logistic(output, scale) that rounds to x, for x in {0, 1/(levels − 1), …, 1}.

    The lowest and the highest level take the tails, so the probabilities sum to 1. The log evidence is never positive and
    comparable with that of any other model of the same levels.

    Args:
        levels: number of grey levels: 256 for eight bits, 17 for scikit-learn's digits.
        scale: learned scale s of the logistic that a fit starts from; its standard deviation is s π/√3.

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, "Improved variational inference with inverse
    autoregressive flow" (2016), appendix.
    """

    def __init__(self, levels: int = 256, *, scale: float = 0.1) -> None:
        super().__init__()
        self.levels = levels = count("DiscretisedLogistic: levels", levels, least=2)
        scale = number("DiscretisedLogistic: scale", scale, above=0)
        self.support = _Levels(levels)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, output: Tensor) -> _DiscretisedLogistic:
        return _DiscretisedLogistic(output, self.log_scale.exp(), self.levels)

    def offset(self, mean: Tensor) -> Tensor:
        return mean


class _DiscretisedLogistic(TorchDistribution):
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 (torch reads it as it is)

    def __init__(self, loc: Tensor, scale: Tensor, levels: int) -> None:
        self.levels = levels
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, torch.Size(), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)  # type: ignore[untyped-decorator]
    def support(self) -> constraints.Constraint:
        return _Levels(self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _DiscretisedLogistic:
        return _DiscretisedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            uniform = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * uniform.clamp(1e-7, 1 - 1e-7).logit()
            return (x * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), from σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)), which loses no digits in the tails."""
        half = 0.5 / (self.levels - 1)
        above = ((value + half - self.loc) / self.scale).masked_fill(value > 1 - half, torch.inf)
        below = ((value - half - self.loc) / self.scale).masked_fill(value < half, -torch.inf)
        return logsigmoid(above) + logsigmoid(-below) + torch.log1p(-(below - above).exp())

    @property
    def mean(self) -> Tensor:
        """Mean of the logistic before rounding, clipped to [0, 1]."""
        return self.loc.clamp(0, 1)
