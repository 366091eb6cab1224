"""Observations: p(x_i | decoder output), with one number of the output for each entry of x_i."""

from .base import Observation
from .bernoulli import Bernoulli
from .continuous_bernoulli import ContinuousBernoulli
from .discretised_logistic import DiscretisedLogistic
from .gaussian import Gaussian

__all__ = ["Bernoulli", "ContinuousBernoulli", "DiscretisedLogistic", "Gaussian", "Observation"]
