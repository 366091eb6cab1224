"""Covariances from how the optimum of the ELBO answers to a small change of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from guides import Global

from ..programs.bound import unwrap
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .base import Target
from .fixed_draws import SampleAverage

__all__ = ["linear_response"]


def linear_response(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor | tuple[Any, ...], *, draws: int = 128, seed: int = 0
) -> Tensor:
    r"""The posterior covariance that a fitted guide implies, correlations included that its family leaves out.

    With t · h added to log p(x, h), the posterior mean moves by the posterior covariance times t, and so does the mean m of
    the best q, as far as m follows the posterior mean. At the optimum λ of −ELBO that derivative is

        ∂m/∂t = J H⁻¹ Jᵀ,   J = ∂m/∂λ,   H = −∂²ELBO/∂λ².

    It is exact for a Gaussian target, where a mean field's own variances are too small. Here ELBO is the average over one
    set of frozen draws, whose own optimum is found first, from the guide's λ; the guide is left as it is.

    Args:
        model, x: as for `fit`.
        guide: a `Global` guide with a Gaussian family, fitted.
        draws: in the frozen set.
        seed: for them.

    Returns:
        The covariance of the packed unconstrained latents, shape (dim, dim).

    Raises:
        TypeError, ValueError: for bad input, or if q is not a Gaussian with reparameterised noise.

    Reference: Giordano, Broderick & Jordan, "Covariances, robustness, and variational Bayes" (2018), theorem 2; Giordano,
    Ingram & Broderick, "Black box variational inference with a deterministic objective" (2024), section 3.2.
    """
    args = as_args(x)
    check_count(draws=draws, least=2)
    check_data(model, args)
    own: Any = unwrap(guide)
    if not isinstance(own, Global):
        raise TypeError(
            f"linear_response needs a Global guide, whose q is one Gaussian over all latents, but it is {type(own).__name__}."
        )
    with isolated(seed), torch.enable_grad():
        check_pair(model, guide, args, {})
        parameters = [p for p in own.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        average = SampleAverage(Target(model, guide, args, parameters), draws)
        try:
            found = average.minimum(newton=True, iterations=200).x
            average.set(found)
            mean = own.q(args[0]).mean
            slopes = np.stack([_flat(torch.autograd.grad(m, parameters, retain_graph=True)) for m in mean])
            size = len(found)
            hessian = LinearOperator((size, size), matvec=lambda v: average.curvature(found, v.ravel()), dtype=np.float64)
            answers = np.stack([cg(hessian, slope, rtol=1e-10, atol=0.0, maxiter=10 * size)[0] for slope in slopes])
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
    covariance = torch.from_numpy(slopes @ answers.T).to(before[0])
    return (covariance + covariance.mT) / 2


def _flat(gradients: tuple[Tensor, ...]) -> Any:
    return torch.cat([g.reshape(-1) for g in gradients]).double().numpy()
