"""Posterior covariances from the response of the ELBO's optimum to a small change of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import cg
from torch import Tensor

from guides import Global

from ..programs.arguments import checked
from ..programs.bound import unwrap
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .base import SolverTask
from .fixed_draws import SampleAverage, flattened

__all__ = ["linear_response"]

MAX_ITERATIONS = 200
"""Newton steps to the optimum for the frozen draws: from a fitted guide far fewer are needed."""


@checked
def linear_response(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor | tuple[Any, ...], *, draws: int = 128, seed: int = 0
) -> Tensor:
    r"""Estimates the posterior covariance from a fitted guide, including correlations that its family leaves out.

    If t · h is added to log p(x, h), the posterior mean has the derivative Cov(h | x) in t at t = 0. The mean m of the best q
    follows the posterior mean, so its derivative estimates that covariance. At the optimum λ of −ELBO it is

        ∂m/∂t = J H⁻¹ Jᵀ,   J = ∂m/∂λ,   H = −∂²ELBO/∂λ².

    This is exact for a Gaussian target, where a mean field's own variances are too small. The ELBO is averaged over one set
    of frozen draws; its optimum for that set is found first, starting from the guide's λ. The guide is not changed.

    Args:
        model, x: as for `fit`.
        guide: a fitted `Global` guide with a Gaussian family.
        draws: number of frozen draws.
        seed: for the draws.

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
    gaussian_guide: Any = unwrap(guide)
    if not isinstance(gaussian_guide, Global):
        raise TypeError(
            "linear_response needs a Global guide, whose q is one Gaussian over all latents, but it is "
            f"{type(gaussian_guide).__name__}."
        )
    with isolated(seed), torch.enable_grad():
        check_pair(model, guide, args, {})
        parameters = [p for p in gaussian_guide.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        average = SampleAverage(SolverTask(model, guide, args, parameters), draws)
        try:
            found = average.minimum(newton=True, iterations=MAX_ITERATIONS).x
            average.set(found)
            mean = gaussian_guide.q(args[0]).mean
            slopes = np.stack([flattened(torch.autograd.grad(m, parameters, retain_graph=True)) for m in mean])
            hessian = average.hessian(found)
            responses = [cg(hessian, slope, rtol=1e-10, atol=0.0, maxiter=10 * len(found))[0] for slope in slopes]
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
    covariance = torch.from_numpy(slopes @ np.stack(responses).T).to(before[0])
    return (covariance + covariance.mT) / 2
