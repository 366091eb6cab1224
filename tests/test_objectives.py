"""Value and gradient of every objective against the quantities they estimate, by algebra, quadrature or enumeration."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import pickle
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import SLOW, TRACTABLE, build, demo, few, shake
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoNormal,
    AutoNormalMessenger,
    init_to_mean,
)
from torch.fx.experimental.proxy_tensor import make_fx

from guides import Amortized, FullRank, Global, Linear, Local, MeanField
from inference import analytic_elbo, elbo, fit, objectives
from inference.objectives import (
    IWAE,
    VIMCO,
    AnalyticKL,
    ClosedFormEntropy,
    DReG,
    Enumerated,
    Loss,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    TraceELBO,
)
from inference.programs.isolation import isolated
from inference.stopping import Plateau
from models import FactorAnalysis, GaussianMean, LocalGaussian, LocalModel

EXPORTS = [getattr(objectives, name) for name in objectives.__all__]
ALL = [export for export in EXPORTS if inspect.isclass(export) and dataclasses.is_dataclass(export)]
OBJECTIVES = [cls for cls in ALL if dataclasses.fields(cls)]
"""Objectives that draw. AnalyticELBO does not; it has a test of its own."""
CONTINUOUS = [cls for cls in OBJECTIVES if cls is not Enumerated]
ELBOS = [cls for cls in CONTINUOUS if cls.estimates_elbo]
BOUNDS = [cls for cls in CONTINUOUS if not cls.estimates_elbo]


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def sample(objective, model, guide, x, parameters, *, draws, seed=0, **kwargs):
    """Independent estimates, shape (draws, 1 + parameters): the value, then the gradient."""
    found = []
    with isolated(seed):
        for _ in range(draws):
            loss = objective(model, guide, (x,), kwargs)
            gradients = torch.autograd.grad(loss.surrogate, parameters, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            found.append(torch.cat([loss.value.view(1), flat(filled)]))
    return torch.stack(found)


def z_scores(found, truth):
    se = found.std(0) / len(found) ** 0.5
    return (found.mean(0) - truth) / (se + 1e-12 * (1.0 + truth.abs()))


def assert_unbiased(found, value, gradient, *, wrong=1.0):
    """Estimates lie within 5 standard errors of the truth, along the gradient and along a random direction. They do not if
    the value is off by 20 %, or the gradient by the factor 1 + `wrong`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(gradient), generator=generator, dtype=gradient.dtype) / len(gradient) ** 0.5
    directions = torch.stack([gradient / gradient.norm(), noise], 1)
    seen = torch.cat([found[:, :1], found[:, 1:] @ directions], 1)
    truth = torch.cat([value.detach().view(1), gradient @ directions])
    assert (z_scores(seen, truth).abs() < 5).all(), z_scores(seen, truth)
    assert (z_scores(seen, truth + torch.stack([0.2 * truth[0], wrong * truth[1], 0 * truth[2]])).abs()[:2] > 5).all()


class TestContract:
    @pytest.mark.parametrize("cls", OBJECTIVES)
    def test_is_a_frozen_object_that_says_what_it_does(self, cls):
        objective = cls()
        assert objective == pickle.loads(pickle.dumps(objective)) == cls()
        assert hash(objective) == hash(cls())
        with pytest.raises(dataclasses.FrozenInstanceError):
            objective.draws = 3
        assert isinstance(cls.estimates_elbo, bool)
        for said in ("Estimates: ", "lower is better", "unbiased", "exact posterior", "Harmful: ", "Reference: "):
            assert said in " ".join(cls.__doc__.split())

    @SLOW
    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_can_be_captured(self, cls):
        """As aten ops, with the random state as the only other input: the graph gives value and gradient of the call."""
        x = torch.tensor([0.3, -1.0, 2.0])

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("h", dist.Normal(0.0, 1.0)), 0.5), obs=x)

        def both(lam):
            def guide(x):
                with pyro.plate("data", len(x)):
                    pyro.sample("h", dist.Normal(lam[0] * x, lam[1].exp()))

            loss = cls()(model, guide, (x,), {})
            return loss.value, torch.autograd.grad(loss.surrogate, lam)[0]

        lam = torch.tensor([0.5, -0.3], requires_grad=True)
        with isolated(0), pyro.validation_enabled(False):
            graph = make_fx(both)(lam)
            torch.manual_seed(7)
            captured = [graph(lam) for _ in range(2)]
            torch.manual_seed(7)
            eager = [both(lam) for _ in range(2)]
        assert captured[0][0] != captured[1][0]
        torch.testing.assert_close(captured, eager, atol=1e-6, rtol=1e-6)

    @SLOW
    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_reaches_the_posterior(self, cls):
        """The best λ of each is the exact posterior here."""
        model, x = LocalGaussian(1).double(), torch.linspace(-2, 2, 20).double().unsqueeze(-1)
        guide = Amortized(model, MeanField(), Linear())
        guide.setup(x)
        evidence = model.log_evidence(x).sum()
        assert evidence - analytic_elbo(model, guide.q(x), x).sum() > 1.0 * len(x)
        fit(model, guide, x, steps=200, lr=0.1, objective=cls())
        assert evidence - analytic_elbo(model, guide.q(x), x).sum() < 0.02 * len(x)


class TestELBO:
    @pytest.mark.parametrize("family", [MeanField, FullRank])
    @pytest.mark.parametrize("model_class", few(TRACTABLE))
    @pytest.mark.parametrize("cls", ELBOS)
    def test_is_unbiased(self, cls, model_class, family):
        """Value and gradient against the closed form, on every tractable model."""
        model, x = demo(model_class)
        guide = build(model, Local if issubclass(model_class, LocalModel) else Global, family, x)
        shake(guide, 0.1, seed=1)
        parameters = list(guide.parameters())
        exact = -analytic_elbo(model, guide.q(x), x).sum()
        gradient = flat(torch.autograd.grad(exact, parameters))
        found = sample(cls(100) if cls is ScoreFunction else cls(16), model, guide, x, parameters, draws=40)
        assert_unbiased(found, exact, gradient)

    @pytest.mark.parametrize("cls", ELBOS)
    def test_minibatches_are_scaled(self, cls):
        """The mean over the batches of an epoch is the whole."""
        model, x = demo(FactorAnalysis)
        guide = build(model, Local, MeanField, x)
        exact = -analytic_elbo(model, guide.q(x), x).sum()
        found = []
        for index in torch.arange(len(x)).split(len(x) // 3):
            values = sample(cls(16), model, guide, x[index], list(guide.parameters()), draws=30, index=index, size=len(x))[
                :, 0
            ]
            found.append(values)
        found = torch.stack(found)
        se = (found.var(1).sum() / found.shape[1]).sqrt() / len(found)
        assert (found.mean() - exact).abs() < 5 * se + 1e-8 < 0.1 * exact


class TestZeroAtThePosterior:
    @pytest.mark.parametrize("model_class", few(TRACTABLE))
    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_value_is_the_evidence_and_the_gradient_has_mean_zero(self, cls, model_class):
        """True of every objective; three standard deviations beside the posterior, of none."""
        model, x = demo(model_class)
        there, beside = (self.estimates(cls(), model, x, draws=25, shift=shift) for shift in (0.0, 3.0))
        directions = torch.block_diag(torch.ones(1), torch.randn(there.shape[1] - 1, 3)).to(there)
        there, beside = there @ directions, beside @ directions
        truth = torch.stack([-model.log_evidence(x).detach().sum(), *torch.zeros(3)])
        assert (z_scores(there, truth).abs() < 5).all()
        assert (z_scores(beside, truth).abs() > 5).any()

    @pytest.mark.parametrize("model_class", few(TRACTABLE))
    @pytest.mark.parametrize("objective", [StickingTheLanding(), DReG(), ScoreFunction()])
    def test_gradient_vanishes(self, objective, model_class):
        model, x = demo(model_class)
        found = self.gradients(objective, model, x)
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-10, rtol=0.0)

    @pytest.mark.parametrize("model_class", few(TRACTABLE))
    def test_others_do_not(self, model_class):
        model, x = demo(model_class)
        for objective in (TraceELBO(), IWAE(), VIMCO(), ReweightedWakeSleep()):
            assert self.gradients(objective, model, x).abs().max() > 1e-3

    @pytest.mark.parametrize("objective", [StickingTheLanding(), DReG()])
    def test_where_one_draw_depends_on_another(self, objective):
        """The guide draws the second latent given the first: the path through the first is no part of the score."""
        x = torch.tensor(1.5).double()
        lam = torch.tensor([0.5, 1 / 3, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
        scale = torch.tensor([2 / 3, 0.5], dtype=torch.float64).sqrt()

        def model(x):
            a = pyro.sample("a", dist.Normal(0.0 * x, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

        def guide(x):
            a = pyro.sample("a", dist.Normal(lam[1] * x, scale[0]))
            pyro.sample("b", dist.Normal(lam[0] * a + lam[2] * x + lam[3], scale[1]))

        found = sample(objective, model, guide, x, [lam], draws=5)[:, 1:]
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-10, rtol=0.0)
        assert sample(TraceELBO(), model, guide, x, [lam], draws=5)[:, 1:].abs().max() > 0.1

    @classmethod
    def gradients(cls, objective, model, x):
        return cls.estimates(objective, model, x, draws=5)[:, 1:]

    @staticmethod
    def estimates(objective, model, x, *, draws, shift=0.0):
        """Values and gradients where q is the posterior, its mean moved by `shift` standard deviations."""
        posterior = model.posterior(x)
        covariance = getattr(posterior, "covariance_matrix", None)
        covariance = posterior.variance.diag_embed() if covariance is None else covariance
        loc = (posterior.mean + shift * posterior.stddev).detach().clone().requires_grad_()
        scale_tril = torch.linalg.cholesky(covariance).detach().expand(*loc.shape, loc.shape[-1]).clone().requires_grad_()

        def guide(x):
            q = dist.MultivariateNormal(loc, scale_tril=scale_tril.tril())
            if isinstance(model, LocalModel):
                with pyro.plate("data", len(x)):
                    pyro.sample("h", q)
            else:
                pyro.sample("h", q)

        return sample(objective, model, guide, x, [loc, scale_tril], draws=draws)


NODES, NODE_WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


def expected(objective, log_p, q):
    """The exact loss of K = 2 draws from the one-dimensional Gaussian q, by quadrature, and a surrogate to differentiate.

    `log_p` maps h, shape (M, N), to log p(x, h), shape (M, N) or, with N = 1, (M, 1); `q` is Normal with batch shape (N,).
    """
    h = q.mean + q.stddev * NODES.unsqueeze(-1)
    if isinstance(objective, ReweightedWakeSleep):
        h = h.detach()
    p, own = log_p(h), q.log_prob(h)
    pairs = [torch.stack(torch.broadcast_tensors(t.unsqueeze(0), t.unsqueeze(1))) for t in (p, own)]
    log_w = pairs[0] - pairs[1]
    mass = (NODE_WEIGHTS.unsqueeze(0) * NODE_WEIGHTS.unsqueeze(1)).unsqueeze(-1)
    order = 1.0 - getattr(objective, "alpha", 0.0)
    bound = -(mass * ((order * log_w).logsumexp(0) - math.log(2)) / order).sum()
    if not isinstance(objective, ReweightedWakeSleep):
        return bound, bound
    share = log_w.detach().softmax(0)
    return bound, -(mass * (share * (pairs[0] + pairs[1])).sum(0)).sum()


class TestBounds:
    """The bounds of two draws against two-dimensional quadrature, in the guide's parameters and the model's."""

    @staticmethod
    def local_problem():
        torch.manual_seed(3)
        model = FactorAnalysis(torch.nn.Parameter(torch.tensor([[1.0], [-0.5]]).double()), noise_scale=0.8)
        model = model.double()
        x = model.simulate(6, seed=0)[1]
        guide = Amortized(model, MeanField(scale=0.9), Linear())
        guide.setup(x)

        def log_p(h):
            mean = h.unsqueeze(-1) * model.loading.squeeze(-1)
            return dist.Normal(mean, model.noise_scale).log_prob(x).sum(-1) + dist.Normal(0.0, 1.0).log_prob(h)

        return model, guide, x, log_p

    @SLOW
    @pytest.mark.parametrize("looped", [False, True])
    @pytest.mark.parametrize("cls", BOUNDS)
    def test_per_datum(self, cls, looped):
        """`looped` hides the type of the guide, so that each draw is a separate run."""
        model, guide, x, log_p = self.local_problem()
        objective = cls(draws=2)
        parameters = [*model.parameters(), *guide.parameters()]
        q = dist.Normal(guide.q(x).mean.squeeze(-1), guide.q(x).stddev.squeeze(-1))
        value, surrogate = expected(objective, log_p, q)
        gradient = flat(torch.autograd.grad(surrogate, parameters))
        program = functools.partial(guide) if looped else guide
        found = sample(objective, model, program, x, parameters, draws=250 if looped else 500)
        assert_unbiased(found, value, gradient)

    @SLOW
    @pytest.mark.parametrize("cls", BOUNDS)
    def test_minibatch(self, cls):
        model, guide, x, log_p = self.local_problem()
        index = torch.tensor([4, 1])
        q = dist.Normal(guide.q(x).mean.squeeze(-1), guide.q(x).stddev.squeeze(-1))
        parameters = [*model.parameters(), *guide.parameters()]
        rows = dist.Normal(q.mean[index], q.stddev[index])
        objective = cls(draws=2)

        def of_rows(h):
            full = torch.zeros(len(h), len(x)).double()
            return log_p(full.index_copy(1, index, h))[:, index]

        value, surrogate = (3 * part for part in expected(objective, of_rows, rows))
        gradient = flat(torch.autograd.grad(surrogate, parameters))
        found = sample(objective, model, guide, x[index], parameters, draws=400, index=index, size=len(x))
        assert_unbiased(found, value, gradient)

    @pytest.mark.parametrize("cls", BOUNDS)
    def test_joint(self, cls):
        """One latent for all the data: one weight for all the data."""
        model = GaussianMean(1, noise_scale=2.0).double()
        x = 2.0 + model.simulate(4, seed=0)[1]
        guide = Global(model, MeanField(scale=0.7))
        guide.setup(x)
        q = dist.Normal(guide.q(x).mean, guide.q(x).stddev)
        parameters = list(guide.parameters())

        def log_p(h):
            return dist.Normal(h, 2.0).log_prob(x.squeeze(-1)).sum(-1, keepdim=True) + dist.Normal(0.0, 1.0).log_prob(h)

        objective = cls(draws=2)
        value, surrogate = expected(objective, log_p, q)
        gradient = flat(torch.autograd.grad(surrogate, parameters))
        assert_unbiased(sample(objective, model, guide, x, parameters, draws=400), value, gradient)

    @SLOW
    def test_iwae_does_not_fall_with_k(self):
        model, guide, x, _ = self.local_problem()
        with torch.no_grad():
            evidence = float(model.log_evidence(x).sum())
        means, errors = [], []
        for draws in (1, 2, 5, 20, 100):
            found = -sample(IWAE(draws), model, guide, x, list(guide.parameters()), draws=200)[:, 0]
            means.append(float(found.mean()))
            errors.append(float(found.std()) / len(found) ** 0.5)
        for i in range(1, len(means)):
            assert means[i] - means[i - 1] > -5 * math.hypot(errors[i], errors[i - 1])
        assert means[-1] - means[0] > 5 * math.hypot(errors[0], errors[-1])
        assert means[-1] < evidence + 5 * errors[-1]

    def test_renyi_at_zero_is_iwae_and_one_draw_is_the_elbo(self):
        model, guide, x, _ = self.local_problem()
        parameters = list(guide.parameters())
        iwae = sample(IWAE(3), model, guide, x, parameters, draws=3)
        torch.testing.assert_close(sample(Renyi(0.0, 3), model, guide, x, parameters, draws=3), iwae, atol=1e-10, rtol=0.0)
        assert (sample(Renyi(0.5, 3), model, guide, x, parameters, draws=3) - iwae).abs().max() > 1e-3
        one = sample(TraceELBO(), model, guide, x, parameters, draws=3)
        torch.testing.assert_close(sample(IWAE(1), model, guide, x, parameters, draws=3), one, atol=1e-10, rtol=0.0)
        path = sample(StickingTheLanding(), model, guide, x, parameters, draws=3)
        torch.testing.assert_close(sample(DReG(1), model, guide, x, parameters, draws=3), path, atol=1e-10, rtol=0.0)


class TestGuidesThatRunTheModel:
    """Pyro's effect-based guides hold the model and run it; the objectives see the pair as Pyro does."""

    X = torch.tensor([1.5, 0.3, -2.0]).double()

    @staticmethod
    def series(x):
        a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0).expand(x.shape).to_event(1), obs=x)

    @staticmethod
    def positive(x):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(torch.zeros(()).double(), scale))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def at_the_posterior(self):
        """a | x ~ N(n x̄ / (2n + 1), (n + 1) / (2n + 1)) and b | a, x ~ N((a + n x̄) / (n + 1), 1 / (n + 1))."""
        guide, n = AutoHierarchicalNormalMessenger(self.series), len(self.X)
        guide(self.X)
        total = self.X.sum()
        places = {"a": (total / (2 * n + 1), (n + 1) / (2 * n + 1), 0.5), "b": (total / (n + 1), 1 / (n + 1), 1 / (n + 1))}
        for name, (loc, variance, weight) in places.items():
            for table, value in ((guide.locs, loc), (guide.scales, variance**0.5), (guide.weights, weight)):
                setattr(table, name, torch.as_tensor(value, dtype=torch.float64))
        return guide

    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_value_at_the_posterior_is_the_evidence(self, cls):
        covariance = 2.0 + torch.eye(3).double()
        evidence = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(self.X)
        guide = self.at_the_posterior()
        parameters = list(guide.parameters())
        try:
            found = sample(cls(), self.series, guide, self.X, parameters, draws=5)
        except ValueError:
            # The closed forms do not know a transformed Gaussian.
            assert cls in (AnalyticKL, ClosedFormEntropy)
            return
        torch.testing.assert_close(found[:, 0], -evidence.expand(5), atol=1e-10, rtol=0.0)
        if cls in (StickingTheLanding, DReG):
            torch.testing.assert_close(found[:, 1:], torch.zeros_like(found[:, 1:]), atol=1e-10, rtol=0.0)
        bound = elbo(self.series, guide, self.X, draws=5)
        assert abs(bound.value - evidence) < 1e-10
        assert bound.se < 1e-10

    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_agrees_with_the_guide_of_the_same_family(self, cls):
        """AutoNormalMessenger is AutoNormal, draw by draw."""
        messenger, same = AutoNormalMessenger(self.positive), AutoNormal(self.positive, init_loc_fn=init_to_mean)
        same.scale_constraint = constraints.positive
        for guide in (messenger, same):
            guide(self.X)
        with torch.no_grad():
            for name in ("scale", "h"):
                for ours, theirs in ((same.locs, messenger.locs), (same.scales, messenger.scales)):
                    setattr(ours, name, getattr(theirs, name).detach())
        try:
            expected = sample(cls(), self.positive, same, self.X, list(same.parameters()), draws=3)
        except ValueError:
            return
        try:
            found = sample(cls(), self.positive, messenger, self.X, list(messenger.parameters()), draws=3)
        except ValueError:
            # The closed forms do not know a transformed Gaussian.
            assert cls in (AnalyticKL, ClosedFormEntropy)
        else:
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)

    def test_fits(self):
        """The information of its scores, the watch on its draws and the rules of a fit see a guide, not the data."""
        guide = AutoHierarchicalNormalMessenger(self.series)
        done = fit(self.series, guide, self.X, stop=Plateau(), steps=1500, lr=0.03)
        evidence = dist.MultivariateNormal(torch.zeros(3).double(), 2.0 + torch.eye(3).double()).log_prob(self.X)
        assert abs(elbo(done.model, done.guide, self.X).value - evidence) < 0.1
        assert done.stop.converged

    def test_keeps_the_parameters_of_a_model_that_is_a_function(self):
        def model(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            h = pyro.sample("h", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0).expand(x.shape).to_event(1), obs=x)

        x = torch.tensor([5.0, 6.0, 7.0])
        done = fit(model, AutoNormalMessenger(model), x, steps=300, lr=0.1)
        assert abs(done.params["params"]["loc"].item() - 6.0) < 0.5
        with pytest.warns(UserWarning, match="its guide runs the model, and cannot be mapped with it"):
            found = elbo(done.model, done.guide, x)
        assert abs(found.value + done.nelbo[-50:].mean()) < 1.0

    def test_of_another_model_is_refused(self):
        """It would run its own model in place of this one."""
        with pytest.raises(ValueError, match="built for another model"):
            fit(self.series, AutoNormalMessenger(self.positive), self.X, steps=3)

    def test_a_guide_that_scores_the_data_is_refused(self):
        guide = AutoGuideList(self.series)
        guide.append(AutoNormal(poutine.block(self.series, expose=["a"])))
        guide.append(AutoNormalMessenger(poutine.block(self.series, hide=["a"])))
        with pytest.raises(ValueError, match="scores the data at the site 'x'"):
            fit(self.series, guide, self.X, steps=3)


class Mixture(torch.nn.Module):
    """h_i ~ Bernoulli(0.3), x_i ~ Normal(±1, 0.8); q(h_i | x_i) = Bernoulli(logits = λ₀ + λ₁ x_i)."""

    def __init__(self):
        super().__init__()
        self.lam = torch.nn.Parameter(torch.tensor([0.2, 0.5]).double())
        self.loc = torch.nn.Parameter(torch.tensor([-1.0, 1.0]).double())
        self.x = torch.tensor([0.5, -2.0, 1.0]).double()

    def model(self, x, index=None, size=None):
        pyro.module("mixture", self)
        with pyro.plate("data", size or len(x), subsample=index):
            h = pyro.sample("h", dist.Bernoulli(0.3 * torch.ones_like(x)))
            pyro.sample("x", dist.Normal(self.loc[h.long()], 0.8), obs=x)

    def guide(self, x, index=None, size=None):
        with pyro.plate("data", size or len(x), subsample=index):
            pyro.sample("h", dist.Bernoulli(logits=self.lam[0] + self.lam[1] * x))

    def densities(self):
        """log p(x_i, h) and log q(h | x_i) for h = 0, 1, each of shape (2, N)."""
        h = torch.tensor([[0.0], [1.0]]).double().expand(2, len(self.x))
        log_p = dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).log_prob(h) + dist.Normal(
            self.loc.unsqueeze(-1), 0.8
        ).log_prob(self.x)
        return log_p, dist.Bernoulli(logits=self.lam[0] + self.lam[1] * self.x).log_prob(h)

    def elbo(self):
        log_p, log_q = self.densities()
        return (log_q.exp() * (log_p - log_q)).sum()

    def bound(self):
        """IWAE's bound of two draws, summed over the four outcomes."""
        log_p, log_q = self.densities()
        log_w = log_p - log_q
        outcomes = [(a, b) for a in (0, 1) for b in (0, 1)]
        return sum(
            ((log_q[a] + log_q[b]).exp() * (torch.logaddexp(log_w[a], log_w[b]) - math.log(2))).sum() for a, b in outcomes
        )


class TestDiscrete:
    def test_enumerated_is_exact(self):
        mixture = Mixture()
        exact = -mixture.elbo()
        truth = torch.cat([exact.detach().view(1), flat(torch.autograd.grad(exact, list(mixture.parameters())))])
        found = sample(Enumerated(), mixture.model, mixture.guide, mixture.x, list(mixture.parameters()), draws=2)
        torch.testing.assert_close(found, truth.expand(2, -1), atol=1e-10, rtol=0.0)

    def test_enumerated_marginalises_latents_that_the_guide_leaves_out(self):
        mixture = Mixture()
        exact = -mixture.densities()[0].logsumexp(0).sum()
        gradient = torch.autograd.grad(exact, mixture.loc)[0]
        found = sample(Enumerated(), mixture.model, lambda x: None, mixture.x, [mixture.loc], draws=1)
        torch.testing.assert_close(found[0], torch.cat([exact.detach().view(1), gradient]), atol=1e-10, rtol=0.0)

    @SLOW
    @pytest.mark.parametrize("objective", [ScoreFunction(), ScoreFunction(1, baseline=None), TraceELBO(4)])
    def test_elbos_agree_with_enumeration(self, objective):
        mixture = Mixture()
        parameters = list(mixture.parameters())
        truth = sample(Enumerated(), mixture.model, mixture.guide, mixture.x, parameters, draws=1)[0]
        found = sample(objective, mixture.model, mixture.guide, mixture.x, parameters, draws=400)
        assert_unbiased(found, truth[0], truth[1:])

    @SLOW
    @pytest.mark.parametrize("rows", [None, torch.tensor([2, 0])])
    def test_vimco_agrees_with_enumeration(self, rows):
        mixture = Mixture()
        parameters = list(mixture.parameters())
        whole = mixture.x
        kwargs = {} if rows is None else {"index": rows, "size": 3}
        mixture.x = whole if rows is None else whole[rows]
        exact = -mixture.bound() * len(whole) / len(mixture.x)
        gradient = flat(torch.autograd.grad(exact, parameters))
        found = sample(VIMCO(2), mixture.model, mixture.guide, mixture.x, parameters, draws=500, **kwargs)
        assert_unbiased(found, exact, gradient)

    @SLOW
    def test_wake_updates_agree_with_enumeration(self):
        mixture = Mixture()
        parameters = list(mixture.parameters())
        log_p, log_q = mixture.densities()
        log_w = (log_p - log_q).detach()
        surrogate = torch.zeros(()).double()
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = torch.stack([log_w[a], log_w[b]]).softmax(0)
            mass = (log_q[a] + log_q[b]).exp().detach()
            surrogate = surrogate - (mass * (share[0] * (log_p[a] + log_q[a]) + share[1] * (log_p[b] + log_q[b]))).sum()
        gradient = flat(torch.autograd.grad(surrogate, parameters))
        found = sample(ReweightedWakeSleep(2), mixture.model, mixture.guide, mixture.x, parameters, draws=500)
        assert_unbiased(found, -mixture.bound(), gradient)

    @SLOW
    def test_baseline_lowers_the_variance(self):
        mixture = Mixture()
        with_it, without = (
            sample(o, mixture.model, mixture.guide, mixture.x, [mixture.lam], draws=100)[:, 1:].var(0).sum()
            for o in (ScoreFunction(5), ScoreFunction(5, baseline=None))
        )
        assert with_it < 0.5 * without


def flow_guide(model, x):
    loc = torch.nn.Parameter(torch.zeros(1).double())
    base = dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)

    def guide(x, index=None, size=None):
        with pyro.plate("data", size or len(x), subsample=index):
            pyro.param("loc", loc)
            pyro.sample("h", dist.TransformedDistribution(base, [dist.transforms.AffineTransform(loc, 1.0, event_dim=1)]))

    return guide


class TestBadInput:
    @staticmethod
    def assert_refused(objective, model, guide, x, **kwargs):
        """The error names objectives, and these work."""
        with isolated(0), pytest.raises(ValueError, match=type(objective).__name__) as error:
            objective(model, guide, (x,), kwargs)
        advice = str(error.value).split(": use ")[1]
        names = [name for name in objectives.__all__ if re.search(rf"\b{name}\b", advice)]
        assert names
        for name in names:
            loss = getattr(objectives, name)()(model, guide, (x,), kwargs)
            assert isinstance(loss, Loss)
            assert loss.value.isfinite()

    @pytest.mark.parametrize("cls", [AnalyticKL, StickingTheLanding, ClosedFormEntropy, Renyi, IWAE, DReG])
    def test_discrete_latents_under_a_reparameterised_objective(self, cls):
        mixture = Mixture()
        self.assert_refused(cls(), mixture.model, mixture.guide, mixture.x)

    @pytest.mark.parametrize("cls", CONTINUOUS)
    def test_discrete_latents_are_refused_or_the_value_is_right(self, cls):
        mixture = Mixture()
        exact = -(mixture.elbo() if cls.estimates_elbo else mixture.bound()).detach()
        try:
            found = sample(cls(draws=2), mixture.model, mixture.guide, mixture.x, [mixture.lam], draws=100)[:, :1]
        except ValueError:
            self.assert_refused(cls(), mixture.model, mixture.guide, mixture.x)
        else:
            assert (z_scores(found, exact.view(1)).abs() < 5).all()
            assert (z_scores(found, 1.2 * exact.view(1)).abs() > 5).all()

    @pytest.mark.parametrize("cls", [AnalyticKL, ClosedFormEntropy])
    def test_closed_forms_on_a_flow(self, cls):
        model, x = LocalGaussian(1).double(), torch.ones(3, 1).double()
        self.assert_refused(cls(), model, flow_guide(model, x), x)

    def test_analytic_kl_of_a_packed_guide(self):
        def model(x):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=x)

        x = torch.ones(3)
        guide = Global(model, MeanField())
        guide.setup(x)
        self.assert_refused(AnalyticKL(), model, guide, x)

    @pytest.mark.parametrize("cls", BOUNDS)
    def test_minibatches_with_a_shared_latent(self, cls):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        self.assert_refused(cls(), model, guide, x[:5], index=torch.arange(5), size=len(x))

    def test_nothing_to_enumerate(self):
        model, x = demo(LocalGaussian)
        self.assert_refused(Enumerated(), model, build(model, Local, MeanField, x), x)

    @pytest.mark.parametrize("cls", OBJECTIVES)
    def test_number_of_draws(self, cls):
        with pytest.raises(ValueError, match="must be at least"):
            cls(draws=0)
        with pytest.raises(TypeError, match="must be an integer"):
            cls(draws=2.0)

    def test_order_of_renyi(self):
        with pytest.raises(ValueError, match="TraceELBO"):
            Renyi(alpha=1.0)

    def test_a_fit_refuses_before_its_first_step(self):
        mixture = Mixture()
        before = mixture.lam.detach().clone()
        with pytest.raises(ValueError, match="discrete"):
            fit(mixture.model, mixture.guide, mixture.x, steps=3, objective=IWAE())
        assert torch.equal(mixture.lam, before)
