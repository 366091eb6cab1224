"""A fit starts at the given start, for every kind of guide."""

from __future__ import annotations

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import GAUSSIAN, build, demo, has_optimum
from pyro.infer.autoguide import AutoNormal, init_to_median, init_to_value

from guides import Amortized, FullRank, Global, Linear, Local, MeanField, Structured
from inference import analytic_elbo, fit, kl, starting
from inference.engine import Eager
from inference.optimisers import FixedDraws
from inference.programs.isolation import isolated
from inference.starting import FromDraws, FromGuide, FromInit, FromPathfinder, FromPrior, Start
from inference.starting.place import SHAPE_DRAWS, place
from models import EightSchools, GaussianMean, LinearRegression, LocalGaussian, LocalModel

STARTS = [s for s in map(starting.__dict__.get, starting.__all__) if issubclass(s, Start) and not inspect.isabstract(s)]


def make(cls, model, x):
    """An instance of the start, for this model."""
    guide = Local(model, FullRank()) if isinstance(model, LocalModel) else Global(model, FullRank())
    given = {"guide": guide, "latents": FromPrior(50).draw(model, (x,))}
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    return cls(**{name: given[name] for name in required})


@pytest.mark.parametrize("cls", STARTS)
@pytest.mark.parametrize("model_class", [LinearRegression, LocalGaussian, EightSchools])
def test_gives_draws_of_every_latent(cls, model_class):
    model, x = demo(model_class)
    with isolated(0):
        draws = make(cls, model, x).draw(model, (x,))
    names = {"mu", "tau", "theta_trans"} if model_class is EightSchools else {"h"}
    assert set(draws) == names
    assert len({len(value) for value in draws.values()}) == 1


class TestPlace:
    @pytest.mark.parametrize("family", [f for f in GAUSSIAN if has_optimum(LinearRegression, f)])
    @pytest.mark.parametrize("model_class", [LinearRegression, LocalGaussian])
    def test_is_the_maximum_likelihood(self, model_class, family):
        """q has the mean of the draws and, within the family's blocks, their covariance, to the optimiser's precision."""
        model, x = demo(model_class)
        guide = build(model, Local if issubclass(model_class, LocalModel) else Global, family, x)
        with torch.no_grad():
            h = 3.0 + 2.0 * model.posterior(x).sample((200,))
        place(guide, {"h": h}, (x,))
        with torch.no_grad():
            q = guide.q(x)
        centred = h - h.mean(0)
        covariance = torch.einsum("k...i,k...j->...ij", centred, centred) / len(h)
        for block in guide.family.blocks():
            index = torch.tensor(block)
            found = q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance.diag_embed()
            torch.testing.assert_close(
                found[..., index[:, None], index], covariance[..., index[:, None], index], rtol=1e-2, atol=1e-4
            )
        torch.testing.assert_close(q.mean, h.mean(0), rtol=0.0, atol=1e-2)

    def test_a_point_moves_the_mean_and_leaves_the_scale(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        place(guide, {"h": torch.full((1, 3), 7.0).double()}, (x,))
        torch.testing.assert_close(guide.q(x).mean, torch.full((3,), 7.0).double(), rtol=0.0, atol=1e-3)
        assert ((guide.q(x).stddev / 0.1 - 1).abs() < 5 * (2 * 64) ** -0.5).all()

    def test_latents_with_bounds_and_a_hierarchy(self):
        model, x = demo(EightSchools)
        for guide in (Global(model, MeanField()), Structured(model, MeanField()), Local(model, FullRank())):
            guide.setup(x)
            with isolated(0):
                place(guide, FromInit(init_to_value(values={"tau": torch.tensor(11.0).double()})).draw(model, (x,)), (x,))
                tau = torch.stack([guide(x)["tau"] for _ in range(200)])
            assert 10.0 < tau.median() < 12.0

    def test_an_encoder(self):
        model, x = demo(LocalGaussian)
        guide = Amortized(model, FullRank(), Linear())
        with torch.no_grad():
            h = model.posterior(x).sample((500,))
        guide.setup(x)
        place(guide, {"h": h}, (x,))
        assert kl(guide.q(x), model.posterior(x)).mean() < 0.02

    def test_missing_latents(self):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        with pytest.raises(ValueError, match="no draws of the latent 'h': it gives \\['z'\\]"):
            place(guide, {"z": torch.zeros(3, 2)}, (x,))


class TestFit:
    def test_from_another_guide(self):
        """A full rank that starts from a fitted mean field has its ELBO from the first step."""
        model, x = demo(LinearRegression)
        first = fit(model, Global(model, MeanField()), x, steps=400, lr=0.05)
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=1, lr=1e-6, start=FromGuide(first.guide))
        with torch.no_grad():
            reached = analytic_elbo(model, guide.q(x), x)
            fresh = build(model, Global, FullRank, x)
            assert reached > analytic_elbo(model, fresh.q(x), x) + 10.0
            assert abs(reached - analytic_elbo(model, first.guide.q(x), x)) < 0.3

    def test_from_draws_of_the_posterior(self):
        model, x = demo(LinearRegression)
        guide = Global(model, FullRank())
        with torch.no_grad():
            h = model.posterior(x).sample((5000,))
        fit(model, guide, x, steps=1, lr=1e-6, start=FromDraws({"h": h}))
        with torch.no_grad():
            assert model.log_evidence(x) - analytic_elbo(model, guide.q(x), x) < 0.02

    def test_of_a_solver(self):
        model, x = demo(LinearRegression)
        done = fit(model, Global(model, FullRank()), x, optimiser=FixedDraws(), start=FromInit(init_to_median))
        assert done.stop.converged
        with pytest.raises(ValueError, match="is not restarted"):
            fit(model, Global(model, FullRank()), x, optimiser=FixedDraws(), restarts=2)

    @pytest.mark.slow
    def test_the_best_of_several_starts_is_kept(self):
        """Two modes with weights 0.1 and 0.9: a single fit that starts at the lighter one stays there."""
        weights, places = torch.tensor([0.1, 0.9]).log().double(), torch.tensor([-6.0, 6.0]).double()

        def model(x):
            h = pyro.sample("h", dist.Normal(0.0, 6.0).expand([1]).to_event(1))
            near = torch.logsumexp(weights + dist.Normal(places, 0.5).log_prob(h), -1)
            pyro.factor("modes", near)

        x = torch.zeros(1).double()

        def reached(**options):
            guide = Global(model, MeanField())
            fit(model, guide, x, steps=400, lr=0.05, **options)
            return guide.q(x).mean.item()

        wrong = FromInit(init_to_value(values={"h": torch.tensor([-6.0]).double()}))
        assert reached(start=wrong) < -5.0
        found = [reached(restarts=6, seed=seed) for seed in range(3)]
        assert min(found) > 5.0

    @pytest.mark.parametrize("far", [2.0, -15.5, 40.0])
    def test_a_single_draw_moves_the_place_and_leaves_the_scale(self, far):
        """Also for a distant draw, at which the likelihood of the guide in its old place does not depend on the scale."""
        model, x = demo(GaussianMean)
        guide = Global(model, MeanField())
        guide.setup(x)
        name = guide.latents.sites[0].name
        shape = FromInit().draw(model, (x,))[name].shape
        before = guide.q(x).stddev
        place(guide, {name: torch.full(shape, far, dtype=x.dtype)}, (x,))
        error = before / math.sqrt(SHAPE_DRAWS)
        assert ((guide.q(x).mean - far).abs() < 5 * error).all()
        assert ((guide.q(x).stddev / before - 1).abs() < 5 / math.sqrt(2 * SHAPE_DRAWS)).all()

    def test_starts_differ_by_seed_and_repeat(self):
        model, x = demo(GaussianMean)
        runs = [
            fit(model, Global(model, MeanField()), x, steps=3, start=FromInit(), seed=s, engine=Eager).nelbo for s in (1, 1, 2)
        ]
        assert torch.equal(runs[0], runs[1])
        assert (runs[0] - runs[2]).abs().min() > 1e-3

    def test_bad_input(self):
        model, x = demo(GaussianMean)
        guide = Global(model, MeanField())
        with pytest.raises(TypeError, match="pass an instance, FromPrior\\(\\)"):
            fit(model, guide, x, steps=3, start=FromPrior)
        with pytest.raises(TypeError, match="start must be a Start"):
            fit(model, guide, x, steps=3, start=init_to_median)
        with pytest.raises(TypeError, match="AutoNormal: leave start=None, and give an autoguide of Pyro's"):
            fit(model, AutoNormal(model), x, steps=3, start=FromInit())
        with pytest.raises(ValueError, match="restarts must be at least 1"):
            fit(model, guide, x, steps=3, restarts=0)
        for start in (FromPrior, lambda draws: FromGuide(guide, draws)):
            with pytest.raises(ValueError, match="draws must be at least 2"):
                start(draws=1)


def test_a_fit_from_the_prior_starts_wide():
    model, x = demo(GaussianMean)
    guide = Global(model, MeanField())
    fit(model, guide, x, steps=1, lr=1e-6, start=FromPrior())
    assert (guide.q(x).stddev > 0.5).all()


def test_pathfinder_starts_in_the_bulk():
    """A fit of one tiny step ends near the optimum if it starts at Pathfinder's Gaussian, and far from it by default."""
    model, x = demo(LinearRegression)
    gaps = []
    for start in (None, FromPathfinder()):
        guide = Global(model, FullRank())
        fit(model, guide, x, steps=1, lr=1e-6, start=start)
        gaps.append(float((model.log_evidence(x) - analytic_elbo(model, guide.q(x), x)).detach()))
    assert gaps[0] > 100.0
    assert gaps[1] < 1.0


def test_pathfinder_without_a_finite_start():
    def broken(x):
        h = pyro.sample("h", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("broken", h.sum() * float("inf"))

    with pytest.raises(ValueError, match="not finite along any path: use FromInit"):
        fit(broken, Global(broken, FullRank()), torch.ones(1), steps=1, start=FromPathfinder())
    with pytest.raises(ValueError, match="draws must be at least 2"):
        FromPathfinder(draws=1)
