"""Models p(x, h) = p(x | h) p(h) whose truth is known.

Each module declares one model: its prior, its likelihood and, where the algebra closes, its exact posterior and evidence.
"""

from .base import LocalModel, Model, RegressionModel, Tractable
from .binary_vae import BinaryVAE
from .factor_analysis import FactorAnalysis
from .gaussian_mean import GaussianMean
from .linear_regression import LinearRegression
from .linear_vae import LinearVAE
from .local_gaussian import LocalGaussian
from .probabilistic_pca import ProbabilisticPCA
from .vae import VAE

__all__ = [
    "VAE",
    "BinaryVAE",
    "FactorAnalysis",
    "GaussianMean",
    "LinearRegression",
    "LinearVAE",
    "LocalGaussian",
    "LocalModel",
    "Model",
    "ProbabilisticPCA",
    "RegressionModel",
    "Tractable",
]
