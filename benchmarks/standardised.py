"""A model in the coordinates of its Laplace approximation, in which posteriors.py fits most of posteriordb."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import Normal

from inference.programs.log_joint import LogJoint
from models import Model

__all__ = ["Standardised"]


class Standardised(Model):
    """A model in standardised coordinates h, where u = centre + scale h are its packed unconstrained latents.

    Centre and scale are those of the Laplace approximation at the mode. An affine family describes the same set of q in both
    coordinates, and in h a step of Adam is in units of a standard deviation. The site "h" has a wide Gaussian as prior, which
    the likelihood is divided by, so that it can be drawn from even if the model's prior is improper.
    """

    def __init__(self, model: Model, x: torch.Tensor, *, diagonal: bool) -> None:
        super().__init__()
        self.inner, self.joint = [model], [LogJoint(model, x)]
        self.proper = model.proper
        joint = self.joint[0]
        centre = torch.zeros(joint.dim, dtype=x.dtype, requires_grad=True)
        descent = torch.optim.LBFGS([centre], max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure() -> torch.Tensor:
            descent.zero_grad()
            loss = -joint(centre.unsqueeze(0)).sum()
            loss.backward()
            return loss

        descent.step(closure)
        curvature = -joint.hessian(centre)
        lower = torch.linalg.cholesky(torch.linalg.inv(curvature))
        scale = curvature.diagonal().rsqrt().diag() if diagonal else lower
        self.register_buffer("centre", centre.detach())
        self.register_buffer("scale", scale)

    @classmethod
    def demo(cls, *, seed: int = 0) -> Any:
        raise NotImplementedError("Standardised is made from a model and its data: it has no demonstration.")

    @classmethod
    def from_dataset(cls, data: Any) -> Any:
        raise NotImplementedError("Standardised is made from a model and its data, not from a data set.")

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.inner[0].data_shape

    def check_data(self, x: torch.Tensor) -> None:
        self.inner[0].check_data(x)

    def forward(self, x: Any = None, index: Any = None, size: Any = None) -> torch.Tensor:
        return self.likelihood(self.prior(), x)

    def prior(self) -> torch.Tensor:
        return pyro.sample("h", self.wide())

    def wide(self) -> torch.distributions.Distribution:
        return Normal(torch.zeros_like(self.centre), 3.0).to_event(1)

    def likelihood(self, h: torch.Tensor, x: Any = None) -> torch.Tensor:
        u = self.centre + h @ self.scale.mT
        with pyro.validation_enabled(False):
            flat_density = torch.func.vmap(self.joint[0].at)(u.reshape(-1, u.shape[-1]))
        density = flat_density.reshape(u.shape[:-1]) + self.scale.diagonal().log().sum() - self.wide().log_prob(h)
        # The plates of the inner model use dimension -1, so draws must not be there: this plate reserves it.
        with pyro.plate("data", 1, dim=-1):
            pyro.factor("x", density)
        return density

    def quantities(self, h: Any) -> dict[str, torch.Tensor]:
        return self.inner[0].quantities(self.joint[0].constrain(self.centre + h["h"] @ self.scale.mT))
