"""Models p(x, h) = p(x | h) p(h) whose truth is known.

Each module declares one model: its prior, its likelihood and, where the algebra closes, its exact posterior and evidence.
"""

from .banana import Banana
from .base import HierarchicalModel, LocalModel, Model, RegressionModel, Tractable
from .beta_bernoulli import BetaBernoulli
from .binary_vae import BinaryVAE
from .dirichlet_categorical import DirichletCategorical
from .eight_schools import EightSchools
from .factor_analysis import FactorAnalysis
from .funnel import Funnel
from .gamma_poisson import GammaPoisson
from .gaussian_mean import GaussianMean
from .gaussian_mixture import GaussianMixture
from .gaussian_process import GaussianProcess
from .linear_regression import LinearRegression
from .linear_vae import LinearVAE
from .local_gaussian import LocalGaussian
from .logistic_regression import LogisticRegression
from .normal_gamma import NormalGamma
from .probabilistic_pca import ProbabilisticPCA
from .radon import Radon
from .ring import Ring
from .rosenbrock_like import RosenbrockLike
from .state_space import StateSpace
from .target import Target
from .vae import VAE

__all__ = [
    "VAE",
    "Banana",
    "BetaBernoulli",
    "BinaryVAE",
    "DirichletCategorical",
    "EightSchools",
    "FactorAnalysis",
    "Funnel",
    "GammaPoisson",
    "GaussianMean",
    "GaussianMixture",
    "GaussianProcess",
    "HierarchicalModel",
    "LinearRegression",
    "LinearVAE",
    "LocalGaussian",
    "LocalModel",
    "LogisticRegression",
    "Model",
    "NormalGamma",
    "ProbabilisticPCA",
    "Radon",
    "RegressionModel",
    "Ring",
    "RosenbrockLike",
    "StateSpace",
    "Target",
    "Tractable",
]
