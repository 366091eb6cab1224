"""Minibatches: the mean of loss and gradient over the batches of an epoch is that of all the data, for every objective."""

from __future__ import annotations

import dataclasses
import inspect
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import PAIRS, TRACTABLE, build, demo, shake
from pyro import poutine
from pyro.poutine.messenger import Messenger

from guides import Global, Local, MeanField, Posterior
from inference import analytic_elbo, fit, fit_many, objectives
from inference.objectives import VIMCO, AnalyticELBO, Enumerated, ScoreFunction, TraceELBO
from inference.programs.isolation import isolated
from inference.programs.minibatch_check import check_minibatch_scale
from models import GaussianMean, LocalModel, RegressionModel

EXPORTS = [getattr(objectives, name) for name in objectives.__all__]
ALL = [export for export in EXPORTS if inspect.isclass(export) and dataclasses.is_dataclass(export)]
DRAWING = [cls for cls in ALL if cls not in (AnalyticELBO, Enumerated)]
BOUNDS = [cls for cls in DRAWING if not cls.estimates_elbo]


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


class Fixed(dist.Normal):
    """A Gaussian whose K-th draw uses row K of a table of noise."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale, validate_args=False)
        self.noise = noise

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * next(self.noise)

    def sample(self, sample_shape=()):
        return self.rsample().detach()

    def expand(self, batch_shape, _instance=None):
        assert tuple(batch_shape) == tuple(self.batch_shape)
        return self


class Minibatched:
    """A pair of plain functions with a global latent g, local latents h_i, or both, its noise fixed row by row."""

    X = torch.tensor([0.5, -2.0, 1.0, 1.7]).double()
    BATCHES = ((0, 1), (2, 3)), ((3,), (0,), (2,), (1,))

    def __init__(self, shared, local, discrete=False):
        self.shared, self.local, self.discrete = shared, local, discrete
        generator = torch.Generator().manual_seed(1)
        self.noise_g = torch.randn(8, generator=generator).double()
        self.noise_h = torch.randn(8, len(self.X), generator=generator).double()
        self.lam = torch.tensor([0.2, 0.5, -0.3], dtype=torch.float64, requires_grad=True)
        self.table = torch.tensor([0.3, -0.1, 0.4, 0.2], dtype=torch.float64, requires_grad=True)
        self.loc = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        self.parameters = [self.lam, self.table, self.loc]

    def prior(self, name, loc):
        q = dist.Bernoulli(logits=loc) if self.discrete else dist.Normal(loc, 1.3)
        return pyro.sample(name, q)

    def q(self, name, loc, noise):
        if self.discrete:
            return pyro.sample(name, dist.Bernoulli(logits=loc))
        return pyro.sample(name, Fixed(loc, self.lam[2].exp() * torch.ones_like(loc), noise))

    def model(self, x, index=None, size=None):
        loc = self.loc
        g = self.prior("g", loc * torch.ones_like(loc)) if self.shared else 0.0
        with pyro.plate("data", size or len(x), subsample=index):
            h = self.prior("h", (loc + g) * torch.ones_like(x)) if self.local else 0.0
            pyro.sample("x", dist.Normal(g + h * loc, 0.8), obs=x)

    def guide(self, x, index=None, size=None):
        g = self.q("g", self.lam[0] * torch.ones_like(self.loc), self.for_g) if self.shared else 0.0
        with pyro.plate("data", size or len(x), subsample=index):
            if self.local:
                rows = self.table[: len(x)] if index is None else self.table[index]
                self.q("h", rows + self.lam[1] * g, self.for_h)

    def loss(self, objective, rows=None):
        """Value and gradient at the fixed noise, for the given rows or for all."""
        index = None if rows is None else torch.tensor(rows)
        self.for_g = iter(self.noise_g)
        self.for_h = iter(self.noise_h if rows is None else self.noise_h[:, index])
        x = self.X if rows is None else self.X[index]
        kwargs = {} if rows is None else {"index": index, "size": len(self.X)}
        return self.flat(objective(self.model, self.guide, (x,), kwargs))

    def flat(self, loss):
        gradient = torch.autograd.grad(loss.surrogate, self.parameters, materialize_grads=True, allow_unused=True)
        return torch.cat([loss.value.detach().view(1), flat(gradient)])

    def mean_over(self, batches, objective):
        return torch.stack([self.loss(objective, rows) for rows in batches]).mean(0)


SHARED_AND_LOCAL = [(True, False), (False, True), (True, True)]


class TestMinibatches:
    """The mean of loss and gradient over the batches of an epoch is that of all the data, or the objective refuses."""

    @pytest.mark.parametrize("cls", DRAWING)
    @pytest.mark.parametrize(("shared", "local"), SHARED_AND_LOCAL)
    def test_at_fixed_noise(self, cls, shared, local):
        problem = Minibatched(shared, local)
        with isolated(0):
            whole = problem.loss(cls())
            for batches in problem.BATCHES:
                if shared and not cls.estimates_elbo:
                    with pytest.raises(ValueError, match="use TraceELBO, or batch_size=None"):
                        problem.mean_over(batches, cls())
                elif not (cls is ScoreFunction and shared and local):
                    # Its gradient, a product of two sums over the data, agrees in the mean alone: see the next test.
                    found = problem.mean_over(batches, cls())
                    torch.testing.assert_close(found, whole, atol=1e-10, rtol=1e-10)
        assert whole[1:].abs().max() > 1e-2

    @pytest.mark.parametrize("objective", [ScoreFunction(2), ScoreFunction(1, baseline=None), TraceELBO(), VIMCO(2)])
    @pytest.mark.parametrize(("shared", "local"), SHARED_AND_LOCAL)
    def test_in_the_exact_mean_over_discrete_draws(self, objective, shared, local):
        """Two rows of zeros and ones: every outcome of the draws is tried, and weighted by its probability."""
        if shared and not objective.estimates_elbo:
            pytest.skip("refused, as the test before this one shows")
        problem = Minibatched(shared, local, discrete=True)
        problem.X = problem.X[:2]
        with isolated(0):
            whole = self.mean(problem, objective, None)
            parts = torch.stack([self.mean(problem, objective, [row]) for row in (0, 1)]).mean(0)
        torch.testing.assert_close(parts, whole, atol=1e-10, rtol=1e-10)
        assert whole[1:].abs().max() > 1e-2

    @staticmethod
    def mean(problem, objective, rows):
        """The exact mean of value and gradient over all outcomes of the guide's draws."""
        index = None if rows is None else torch.tensor(rows)
        x = problem.X if rows is None else problem.X[index]
        kwargs = {} if rows is None else {"index": index, "size": len(problem.X)}
        entries = int(problem.shared) + (len(x) if problem.local else 0)
        total = 0.0
        for bits in itertools.product((0.0, 1.0), repeat=entries * objective.draws):
            outcomes = iter(torch.tensor(bits).double())
            log_q = []

            def draw(msg, outcomes=outcomes, log_q=log_q):
                if msg["type"] == "sample" and not msg["is_observed"] and isinstance(msg["fn"], dist.Bernoulli):
                    shape = msg["fn"].batch_shape
                    msg["value"] = torch.stack([next(outcomes) for _ in range(shape.numel())]).reshape(shape)
                    msg["done"] = True
                    log_q.append(msg["fn"].log_prob(msg["value"]).sum().detach())

            def guide(*args, draw=draw, **kwargs):
                with Drawn(draw):
                    problem.guide(*args, **kwargs)

            problem.for_g = problem.for_h = None
            found = problem.flat(objective(problem.model, guide, (x,), kwargs))
            total = total + found * torch.stack(log_q).sum().exp()
        return total

    @pytest.mark.parametrize(("shared", "local"), SHARED_AND_LOCAL)
    def test_enumerated(self, shared, local):
        """Summed out in guide and model alike, where Pyro can."""
        problem = Minibatched(shared, local, discrete=True)
        with isolated(0):
            whole = problem.loss(Enumerated())
            for batches in problem.BATCHES:
                torch.testing.assert_close(problem.mean_over(batches, Enumerated()), whole, atol=1e-10, rtol=1e-10)
        assert whole[1:].abs().max() > 1e-2

    @pytest.mark.parametrize("model_class", TRACTABLE)
    def test_analytic_elbo(self, model_class):
        model, x = demo(model_class)
        source = Local if isinstance(model, LocalModel) else Global
        families = [pair.values[2] for pair in PAIRS if pair.values[:2] == (model_class, source)]
        guide = build(model, source, families[0], x)
        shake(guide, 0.1, seed=1)
        parameters = [*model.parameters(), *guide.parameters()]

        def loss(rows):
            kwargs = {} if rows is None else {"index": rows, "size": len(x)}
            found = AnalyticELBO()(model, guide, (x if rows is None else x[rows],), kwargs)
            return torch.cat(
                [
                    found.value.view(1),
                    flat(torch.autograd.grad(found.surrogate, parameters, allow_unused=True, materialize_grads=True)),
                ]
            )

        whole = loss(None)
        torch.testing.assert_close(whole[0], -analytic_elbo(model, guide.q(x), x).sum().detach(), atol=1e-10, rtol=0.0)
        batches = torch.arange(len(x)).split(len(x) // 4) if len(x) % 4 == 0 else torch.arange(len(x)).split(1)
        if isinstance(model, RegressionModel):
            with pytest.raises(ValueError, match=r"needs the rows of all the data.*use TraceELBO"):
                loss(batches[0])
        else:
            found = torch.stack([loss(rows) for rows in batches]).mean(0)
            torch.testing.assert_close(found, whole, atol=1e-8, rtol=1e-10)

    def test_analytic_elbo_of_the_posterior_given_a_minibatch_is_refused(self):
        model, x = demo(GaussianMean)
        with pytest.raises(ValueError, match="use TraceELBO"):
            AnalyticELBO()(model, Posterior(model), (x[:5],), {"index": torch.arange(5), "size": len(x)})

    def test_a_global_latent_learns_the_posterior(self):
        model, x = demo(GaussianMean)
        guide = Global(model, MeanField())
        fit(model, guide, x, steps=400, lr=0.1, objective=AnalyticELBO(), batch_size=5)
        torch.testing.assert_close(guide.q(x).stddev, model.posterior(x).stddev, rtol=1e-3, atol=0.0)

    @pytest.mark.parametrize("cls", BOUNDS)
    def test_a_scale_by_hand_is_refused(self, cls):
        """Inside the logarithm of a sum of weights it is a power."""
        problem = Minibatched(shared=False, local=True)
        by_plate = problem.model

        def model(x, index=None, size=None):
            with poutine.scale(scale=(size or len(x)) / len(x)):
                by_plate(x)

        def guide(x, index=None, size=None):
            with poutine.scale(scale=(size or len(x)) / len(x)), pyro.plate("data", len(x)):
                rows = problem.table if index is None else problem.table[index]
                problem.q("h", rows, problem.for_h)

        problem.model, problem.guide = model, guide
        problem.loss(cls())
        with pytest.raises(ValueError, match=r"poutine.scale biases it: use TraceELBO"):
            problem.loss(cls(), (0, 1))
        found = problem.mean_over(problem.BATCHES[0], TraceELBO())
        torch.testing.assert_close(found, problem.loss(TraceELBO()), atol=1e-10, rtol=1e-10)


class Drawn(Messenger):
    """Calls a function at every site."""

    def __init__(self, draw):
        super().__init__()
        self._pyro_sample = draw


def scaled_by(model_scale, guide_scale=1.0):
    """A pair of a shared and local latents whose log densities of the data are multiplied by powers of size / len(x)."""

    def model(x, index=None, size=None):
        g = pyro.sample("g", dist.Normal(0.0, 3.0))
        with poutine.scale(scale=((size or len(x)) / len(x)) ** model_scale), pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x, index=None, size=None):
        table = pyro.param("table", lambda: torch.zeros(size or len(x)))
        pyro.sample("g", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))
        with poutine.scale(scale=((size or len(x)) / len(x)) ** guide_scale), pyro.plate("data", len(x)):
            pyro.sample("h", dist.Normal(table if index is None else table[index], 0.7))

    return model, guide


def everything_scaled():
    """The prior of the shared latent is scaled too."""
    model, guide = scaled_by(0.0, 0.0)

    def scaled(program):
        def run(x, index=None, size=None):
            with poutine.scale(scale=(size or len(x)) / len(x)):
                program(x, index=index, size=size)

        return run

    return scaled(model), scaled(guide)


def net_with(layer):
    """A pair whose encoder normalises over the batch, or draws noise of its own."""
    encoder = torch.nn.Sequential(torch.nn.Linear(1, 4), layer, torch.nn.Linear(4, 1))

    def model(x, index=None, size=None):
        with pyro.plate("data", size or len(x), subsample=index):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x, index=None, size=None):
        pyro.module("encoder", encoder)
        with pyro.plate("data", size or len(x), subsample=index):
            pyro.sample("h", dist.Normal(encoder(x.unsqueeze(-1)).squeeze(-1), 0.7))

    return model, guide, encoder


class TestMistakesAreCaught:
    X = torch.linspace(-2.0, 5.0, 40)

    def fit(self, pair, batch_size, **options):
        return fit(pair[0], pair[1], self.X, steps=2, batch_size=batch_size, objective=TraceELBO(), **options)

    @pytest.mark.parametrize("batch_size", [1, 5, 32])
    @pytest.mark.parametrize(
        ("pair", "role", "message"),
        [
            (lambda: scaled_by(0.0), "model", "ignore size"),
            (lambda: scaled_by(2.0), "model", "scale twice"),
            (lambda: scaled_by(1.0, 0.0), "guide", "ignore size"),
            (lambda: scaled_by(1.0, 2.0), "guide", "scale twice"),
            (everything_scaled, "guide", "that all data share"),
        ],
    )
    def test_with_the_factor(self, pair, role, message, batch_size):
        with pytest.raises(ValueError, match=f"the {role} does not scale minibatches") as error:
            self.fit(pair(), batch_size)
        count = min(40, 4 * batch_size)
        if count % batch_size == 0:
            share = batch_size / count
            assert message in str(error.value)
            factor = share if message == "ignore size" else 1 / share
            assert f"is {factor:.3g} times" in str(error.value)

    def test_in_many_fits_too(self):
        pairs = [scaled_by(0.0), scaled_by(0.0)]
        with pytest.raises(ValueError, match="the model does not scale minibatches"):
            fit_many(pairs, self.X, seeds=[0, 1], steps=2, batch_size=5)

    @pytest.mark.parametrize("batch_size", [1, 5, 32, 40])
    @pytest.mark.parametrize(
        "pair",
        [
            lambda: scaled_by(1.0),
            lambda: net_with(torch.nn.BatchNorm1d(4)),
            lambda: net_with(torch.nn.Dropout(0.5)),
            lambda: net_with(torch.nn.LayerNorm(4)),
        ],
    )
    def test_right_programs_pass(self, pair, batch_size):
        pair = pair()
        if len(pair) == 3 and batch_size in (1, 32):
            pair[2].eval()  # Batch normalisation has no training step for a single row.
        assert self.fit(pair, batch_size).steps == 2

    def test_programs_made_for_their_data_pass_and_are_judged(self):
        """They refuse to be called with fewer rows, but take them as a batch."""
        model, guide = scaled_by(1.0)

        def sized(program):
            def run(x, index=None, size=None):
                assert index is None or size == 40
                if index is None and len(x) != 40:
                    raise ValueError("made for 40 rows")
                program(x, index=index, size=size)

            return run

        assert self.fit((sized(model), sized(guide)), 5).steps == 2
        with pytest.raises(ValueError, match="the model does not scale"):
            self.fit((sized(scaled_by(0.0)[0]), sized(guide)), 5)

    @pytest.mark.parametrize(("model_class", "source", "family"), PAIRS)
    def test_every_model_and_guide_passes(self, model_class, source, family):
        model, x = demo(model_class)
        guide = build(model, source, family, x)
        for batch_size in (3, len(x)):
            check_minibatch_scale(model, guide, (x,), batch_size)

    def test_random_state_buffers_and_trajectory_stay_as_they_were(self, monkeypatch):
        def losses():
            torch.manual_seed(0)
            model, guide, encoder = net_with(torch.nn.BatchNorm1d(4))
            done = self.fit((model, guide), 8)
            return done.nelbo, encoder[1].running_mean.clone()

        checked = losses()
        monkeypatch.setattr("inference.fitting.plan.check_minibatch_scale", lambda *args, **kwargs: None)
        for found, expected in zip(losses(), checked, strict=True):
            assert torch.equal(found, expected)
