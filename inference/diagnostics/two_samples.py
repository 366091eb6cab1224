"""Two-sample tests, for comparing q's draws with reference draws."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..programs.arguments import checked
from ..programs.isolation import isolated
from ..programs.validation import check_count

__all__ = ["MMD", "c2st", "mmd"]

MIN_DRAWS = 20
"""Draws of either sample: fewer leave a test without power, and a fold of the cross-validation without both classes."""


class MMD(NamedTuple):
    """The squared maximum mean discrepancy, and its permutation test."""

    squared: float
    """Unbiased estimate, so it can be negative."""
    p_value: float


@checked
def c2st(a: Tensor, b: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """Cross-validated accuracy of a small neural net that classifies draws by their sample: ½ if alike, 1 if disjoint.

    Args:
        a, b: draws, shapes (K, D) and (L, D); the larger is cut to the size of the smaller, and both are standardised by the
            mean and sd of b.
        folds: of the cross-validation.
        seed: fixes the folds and the net's initial weights.

    Raises:
        ValueError: if the shapes do not fit.

    Reference: Lopez-Paz & Oquab, "Revisiting classifier two-sample tests" (2017); settings as in sbibm (2021).
    """
    with isolated(seed):  # the import draws from Python's generator
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier

    check_count(folds=folds, least=2)
    a, b = _comparable(a, b)
    features = torch.cat([a, b]).numpy()
    labels = torch.cat([torch.zeros(len(a)), torch.ones(len(b))]).numpy()
    width = 10 * a.shape[1]
    net = MLPClassifier((width, width), max_iter=200, early_stopping=True, random_state=seed % 2**32)
    with isolated(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(net, features, labels, cv=KFold(folds, shuffle=True, random_state=seed % 2**32)).mean())


@checked
def mmd(a: Tensor, b: Tensor, *, permutations: int = 200, seed: int = 0) -> MMD:
    """Squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance. Costs O((K + L)²).

    Args:
        a, b: as for `c2st`.
        permutations: of the test.
        seed: fixes the permutations.

    Reference: Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A kernel two-sample test" (2012), equation 3.
    """
    check_count(permutations=permutations)
    a, b = _comparable(a, b)
    both = torch.cat([a, b])
    squared = torch.cdist(both, both).square()
    kernel = torch.exp(-squared / squared[squared > 0].median())
    kernel.fill_diagonal_(0.0)
    draws = len(a)

    def value(order: Tensor) -> Tensor:
        k = kernel[order][:, order]
        within = (k[:draws, :draws].sum() + k[draws:, draws:].sum()) / (draws * (draws - 1))
        return within - 2 * k[:draws, draws:].mean()

    observed = value(torch.arange(2 * draws))
    with isolated(seed):
        null = torch.stack([value(torch.randperm(2 * draws)) for _ in range(permutations)])
    return MMD(float(observed), float(((null >= observed).sum() + 1) / (permutations + 1)))


def _comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"both samples must be (draws, D) with the same D, but are {tuple(a.shape)} and {tuple(b.shape)}.")
    draws = min(len(a), len(b))
    if draws < MIN_DRAWS or not a.shape[1]:
        raise ValueError(
            f"both samples a and b need at least {MIN_DRAWS} draws of one number, but have {len(a)} and {len(b)}."
        )
    for name, value in (("a", a), ("b", b)):
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite, but holds {value[~value.isfinite()][0].item()}.")
    if not bool((b.double().std(0) > 0).all()):
        raise ValueError("b has a column without spread, by which nothing can be standardised: leave it out.")
    centre, spread = b.double().mean(0), b.double().std(0)
    return tuple((v.double()[:draws] - centre) / spread for v in (a, b))  # type: ignore[return-value]
