"""The exact answers of every model agree with each other, and the checks find a single wrong answer in any kind of model."""

from __future__ import annotations

import pytest
import torch
from contracts import check_exact_answers
from problems import ALL_MODELS, demo, has_gaussian_posterior
from torch.distributions import MultivariateNormal

from models import LocalModel, Target, Tractable

EXACT = [model for model in ALL_MODELS if hasattr(model, "log_evidence")]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def last_row_replaced(x):
    """Forgets the last row and counts another one twice."""
    other = x[(x != x[-1]).reshape(len(x), -1).any(1)]
    return torch.cat([x[:-1], other[:1]])


def evidence_one_nat_high(model_class):
    class Wrong(model_class):
        def log_evidence(self, x):
            return super().log_evidence(x) + 1.0

    return Wrong


def evidence_one_nat_low(model_class):
    class Wrong(model_class):
        def log_evidence(self, x):
            return super().log_evidence(x) - 1.0

    return Wrong


def evidence_of_one_row_twice(model_class):
    """A mistake that no change of the order of the rows shows."""

    class Wrong(model_class):
        def log_evidence(self, x):
            return super().log_evidence(last_row_replaced(x))

    return Wrong


def posterior_of_one_row_twice(model_class):
    class Wrong(model_class):
        def posterior(self, x):
            return super().posterior(last_row_replaced(x))

    return Wrong


def likelihood_one_nat_high(model_class):
    class Wrong(model_class):
        def expected_log_likelihood(self, q, x):
            return super().expected_log_likelihood(q, x) + 1.0

    return Wrong


def target_one_nat_high(model_class):
    """A density that integrates to e."""

    class Wrong(model_class):
        def target(self):
            target = super().target()
            density = target.log_prob
            target.log_prob = lambda h: density(h) + 1.0
            return target

    return Wrong


def target_one_nat_low(model_class):
    """A density that integrates to 1/e."""

    class Wrong(model_class):
        def target(self):
            target = super().target()
            density = target.log_prob
            target.log_prob = lambda h: density(h) - 1.0
            return target

    return Wrong


def mistakes(model_class):
    """The mistakes that a model of this kind can make."""
    yield from (evidence_one_nat_high, evidence_one_nat_low, evidence_of_one_row_twice)
    if issubclass(model_class, Target):
        yield from (target_one_nat_high, target_one_nat_low)
    elif hasattr(model_class, "posterior"):
        yield posterior_of_one_row_twice
    if issubclass(model_class, Tractable):
        yield likelihood_one_nat_high


WRONG = [pytest.param(m, mistake, id=f"{m.__name__}-{mistake.__name__}") for m in EXACT for mistake in mistakes(m)]


@pytest.mark.parametrize("model_class", EXACT)
def test_exact_answers_agree(model_class):
    check_exact_answers(*demo(model_class))


@pytest.mark.parametrize(("model_class", "mistake"), WRONG)
def test_a_wrong_answer_is_seen(model_class, mistake):
    with pytest.raises(AssertionError):
        check_exact_answers(*demo(mistake(model_class)))


def kind(model_class):
    """A name for the kind of exact answers that a model gives."""
    if issubclass(model_class, Target):
        return "target"
    if not hasattr(model_class, "posterior"):
        return "evidence alone"
    model, x = demo(model_class)
    posterior = model.posterior(x)
    place = "local" if issubclass(model_class, LocalModel) else "global"
    if posterior.support.is_discrete:
        return f"{place} discrete"
    if not has_gaussian_posterior(model_class):
        return f"{place} conjugate"
    return f"{place} {'correlated' if isinstance(posterior, MultivariateNormal) else 'independent'} Gaussian"


def test_wrong_models_of_every_kind_are_tried():
    assert {kind(model_class) for model_class in EXACT} >= {
        "target",
        "evidence alone",
        "global conjugate",
        "global independent Gaussian",
        "global correlated Gaussian",
        "local independent Gaussian",
        "local correlated Gaussian",
        "local discrete",
    }
