"""Comparisons: guides (`compare`), causes of a gap (`gaps`), gradient estimators (`gradient_variance`)."""

from .compare import compare
from .gaps import Gaps, Part, gaps
from .gradient_variance import Estimator, GradientVariance, gradient_variance
from .table import Comparison, Run

__all__ = ["Comparison", "Estimator", "Gaps", "GradientVariance", "Part", "Run", "compare", "gaps", "gradient_variance"]
