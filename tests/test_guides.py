"""The contract of every family, source and encoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import FAMILIES, GAUSSIAN, MODELS, SOURCES, build, demo, fits_together, shake
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import biject_to

import guides
from guides import MLP, Amortized, Blocks, Delta, FullRank, Global, Linear, Local, LowRank, MeanField
from inference import analytic_elbo, best_elbo, fit
from inference.engine import Eager
from models import LocalGaussian, LocalModel
from models.gaussian import mean_and_covariance

DIM = 3


def at_random(family_class, batch=(), seed=0):
    family = family_class.demo(DIM).over(DIM)
    lam = family.start() + 0.5 * torch.randn(*batch, family.size, generator=torch.Generator().manual_seed(seed))
    return family, lam.double().requires_grad_()


def draw(q, draws, seed=0):
    """Draws with fixed noise: a function of λ alone, for every family."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return q.rsample((draws,)) if q.has_rsample else q.sample((draws,))


def z_score(samples, mean):
    """Distance of the samples' mean from `mean`, in standard errors."""
    return (samples.mean(0) - mean) / (samples.std(0) / len(samples) ** 0.5)


@pytest.mark.parametrize("family_class", FAMILIES)
class TestFamily:
    @pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
    def test_shapes(self, family_class, batch):
        family, lam = at_random(family_class, batch)
        q = family.double()(lam)
        assert q.batch_shape == batch
        assert q.event_shape == (DIM,)
        assert draw(q, 5).shape == (5, *batch, DIM)

    def test_gradient_reaches_every_number_of_lambda(self, family_class):
        family, lam = at_random(family_class, (4,))
        q = family.double()(lam)
        if not q.has_rsample:
            (gradient,) = torch.autograd.grad(q.log_prob(q.sample()).sum(), lam)
            assert (gradient != 0).all()
            return
        h = q.rsample()
        (gradient,) = torch.autograd.grad((h.sin() * torch.arange(1.0, DIM + 1)).sum() + (h**2).prod(-1).sum(), lam)
        assert (gradient != 0).all()

    def test_batches_are_independent(self, family_class):
        family, lam = at_random(family_class, (4,))
        q, alone = family.double()(lam), family(lam[2])
        h = draw(q, 5)
        torch.testing.assert_close(q.log_prob(h)[:, 2], alone.log_prob(h[:, 2]))
        assert not torch.allclose(q.log_prob(h)[:, 1], alone.log_prob(h[:, 1]))

    def test_over_leaves_the_family_unbound(self, family_class):
        family = family_class.demo(DIM)
        assert family.over(DIM).dim == DIM
        assert not hasattr(family, "dim")


@pytest.mark.parametrize("family_class", GAUSSIAN)
class TestGaussianFamily:
    def test_samples_agree_with_the_density(self, family_class):
        """E_q[r(h) / q(h)] = 1 for any density r: here a narrower Gaussian, which keeps the variance finite."""
        family, lam = at_random(family_class)
        q = family.double()(lam.detach())
        samples = q.sample((20_000,))
        loc, covariance = mean_and_covariance(q)
        narrower = dist.MultivariateNormal(loc, 0.6 * covariance).log_prob(samples)
        assert abs(z_score((narrower - q.log_prob(samples)).exp(), 1.0)) < 5
        wrong = family(torch.cat([lam[:DIM], lam[DIM : 2 * DIM] + 0.2, lam[2 * DIM :]]).detach())
        assert abs(z_score((narrower - wrong.log_prob(samples)).exp(), 1.0)) > 5
        for h, moment in ((samples, loc), ((samples - loc) ** 2, covariance.diagonal())):
            assert z_score(h, moment).abs().max() < 5

    def test_blocks_say_what_is_correlated(self, family_class):
        family, lam = at_random(family_class)
        blocks = family.blocks()
        if blocks is None:
            return
        covariance = mean_and_covariance(family.double()(lam))[1].detach()
        together = torch.zeros(DIM, DIM, dtype=torch.bool)
        for block in blocks:
            together[torch.tensor(block).unsqueeze(-1), torch.tensor(block)] = True
        assert (covariance[together] != 0).all()
        assert (covariance[~together] == 0).all()

    def test_starts_with_its_scale(self, family_class):
        family = family_class.demo(DIM)
        family.scale = 0.3
        bound = family.over(DIM)
        sd = bound(bound.start()).variance.sqrt()
        torch.testing.assert_close(sd, torch.full((DIM,), 0.3), rtol=0.01, atol=0.0)


SOURCE_PAIRS = [
    pytest.param(m, s, f, id=f"{m.__name__}-{s.__name__}-{f.__name__}")
    for m in MODELS
    for s in SOURCES
    for f in FAMILIES
    if fits_together(m, s, f)
]


@pytest.mark.parametrize(("model_class", "source", "family_class"), SOURCE_PAIRS)
class TestSource:
    def test_draws_the_latents_of_the_model(self, model_class, source, family_class):
        model, x = demo(model_class)
        guide = build(model, source, family_class, x)
        trace = prune_subsample_sites(poutine.trace(guide).get_trace(x))
        nodes = poutine.trace(model).get_trace(x).nodes
        assert trace.nodes["h"]["value"].shape == nodes["h"]["value"].shape
        assert trace.nodes["h"]["value"].dtype == x.dtype
        assert guide.q(x).batch_shape == (x.shape[:1] if isinstance(model, LocalModel) else ())

    def test_state_dict(self, model_class, source, family_class, tmp_path):
        model, x = demo(model_class)
        guide = build(model, source, family_class, x)
        shake(guide, 0.1, seed=0)
        torch.save(guide.state_dict(), tmp_path / "guide.pt")
        other = build(model, source, family_class, x)
        other.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
        h = draw(guide.q(x), 3)
        torch.testing.assert_close(other.q(x).log_prob(h), guide.q(x).log_prob(h), rtol=0.0, atol=0.0)

    def test_does_not_adopt_the_model(self, model_class, source, family_class):
        model, x = demo(model_class)
        guide = build(model, source, family_class, x)
        own = {id(p) for p in model.parameters()}
        assert not own & {id(p) for p in guide.parameters()}

    def test_minibatch_has_the_rows_of_the_whole(self, model_class, source, family_class):
        model, x = demo(model_class)
        guide = build(model, source, family_class, x)
        shake(guide, 0.1, seed=0)
        index = torch.tensor([3, 0, 7])
        lam = guide.lambdas(x)
        torch.testing.assert_close(guide.lambdas(x[index], index), lam[index] if isinstance(model, LocalModel) else lam)


def test_amortized_applies_to_unseen_data():
    model, x = demo(LocalGaussian)
    guide = build(model, Amortized, MeanField, x)
    unseen = model.simulate(7, seed=9)[1]
    assert guide.q(unseen).batch_shape == (7,)
    assert Trace_ELBO().loss(model, guide, unseen) < float("inf")


def test_local_refuses_other_data():
    model, x = demo(LocalGaussian)
    guide = build(model, Local, MeanField, x)
    with pytest.raises(ValueError, match="for each of 100 data, but x has 7 rows"):
        guide.q(x[:7])


def test_local_needs_latents_inside_the_plate():
    def model(x):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    with pytest.raises(ValueError, match="'h' is inside no plate.*Global"):
        Local(model, MeanField())(torch.zeros(3))


def test_local_needs_the_plate_at_the_right():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    with pytest.raises(ValueError, match="at dim -2, but .* needs the data plate at dim -1"):
        Local(model, MeanField()).setup(torch.zeros(3, 1))


def test_discrete_latents_are_refused():
    def model(x):
        pyro.sample("h", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'h' is discrete"):
        Global(model, MeanField())(torch.zeros(3))


def test_encoder_of_the_wrong_size():
    model, x = LocalGaussian.demo()
    with pytest.raises(ValueError, match=r"\(1, 3\), but \(1, 4\) is needed"):
        Amortized(model, MeanField(), torch.nn.Linear(2, 3)).setup(x)


ENCODERS = [getattr(guides.encoders, name) for name in guides.encoders.__all__]
SHAPES = [(), (6,), (2, 3), (8, 8), (3, 8, 4)]


@pytest.mark.parametrize("encoder", ENCODERS)
class TestEncoder:
    def nets(self, encoder, size=6):
        """A net for each shape of x_i that this encoder takes."""
        found = {}
        for shape in SHAPES:
            try:
                found[shape] = encoder()(shape, size)
            except ValueError as refusal:
                assert encoder.__name__ in str(refusal)  # noqa: PT017
        assert found
        return found.items()

    @pytest.mark.parametrize("lead", [(5,), (2, 5)])
    def test_each_row_has_a_lambda_of_its_own(self, encoder, lead):
        for shape, net in self.nets(encoder):
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                x = torch.randn(*lead, *shape)
                lam = net(x)
                assert lam.shape == (*lead, 6)
                torch.testing.assert_close(net(x[:1]), lam[:1])
                assert not torch.allclose(lam[0], lam[1])

    def test_gradient_reaches_every_parameter(self, encoder):
        for shape, net in self.nets(encoder):
            parameters = list(net.parameters())
            gradients = torch.autograd.grad(
                net(torch.randn(5, *shape)).square().sum() + net(torch.randn(5, *shape)).sum(), parameters
            )
            assert all(gradient.any() for gradient in gradients)

    def test_a_fit_through_it_comes_near_to_the_best(self, encoder):
        """To a fifth of the gap that the start has."""
        model, x = demo(LocalGaussian)
        try:
            guide = Amortized(model, MeanField(), encoder())
            guide.setup(x)
        except ValueError:
            pytest.skip("takes no vectors of two numbers")
        start = analytic_elbo(model, guide.q(x), x).sum()
        fit(model, guide, x, steps=150, lr=0.05, engine=Eager)
        best = best_elbo(model, guide.family, x).sum()
        assert best - analytic_elbo(model, guide.q(x), x).sum() < 0.2 * (best - start)


@pytest.mark.parametrize("encoder", [Linear(), MLP((5, 4)), MLP((), activation=torch.nn.ReLU)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_encoder_shapes(encoder, shape):
    assert encoder(shape, 7)(torch.randn(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanField(scale=0.0), "scale must be positive"),
        (lambda: LowRank(0), "rank must be at least 1"),
        (lambda: Blocks(2, 0), "sizes must be positive"),
        (lambda: Blocks(2, 2).over(3), "add up to 4, but the latents have 3"),
        (lambda: MLP((0,)), "hidden must be positive"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_family_must_be_a_family():
    with pytest.raises(TypeError, match="must be a Family such as MeanField"):
        Global(lambda x: None, MeanField)


def many_sites(x):
    """A plain Pyro model: a positive, a bounded, a vector and a plated latent."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("groups", 2):
        loc = pyro.sample("loc", dist.Beta(2.0, 3.0))
    if len(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.mean(-1, keepdim=True) + share[..., 0], scale), obs=x)


class TestManySites:
    @pytest.mark.parametrize("family", [MeanField(), FullRank(), LowRank(2)])
    def test_density_is_of_the_constrained_latents(self, family):
        """The log density of the trace is that of q minus the log determinant of the map to the constrained latents."""
        guide = Global(many_sites, family)
        guide.setup(torch.zeros(0))
        assert guide.latents.dim == 1 + 2 + 2
        trace = poutine.trace(guide).get_trace(torch.zeros(0))
        packed = trace.nodes["_latent"]["value"].detach()

        def free_coordinates(packed):
            scale, share, loc = packed[:1].exp(), biject_to(constraints.simplex)(packed[1:3]), packed[3:].sigmoid()
            return torch.cat([scale, share[:2], loc])

        values = torch.cat(
            [trace.nodes["scale"]["value"].view(1), trace.nodes["share"]["value"][:2], trace.nodes["loc"]["value"]]
        )
        torch.testing.assert_close(free_coordinates(packed), values)
        volume = torch.linalg.slogdet(torch.autograd.functional.jacobian(free_coordinates, packed)).logabsdet
        torch.testing.assert_close(trace.log_prob_sum(), guide.q().log_prob(packed) - volume)
        assert abs(volume) > 0.1

    def test_vectorised_draws_have_the_shapes_of_single_ones(self):
        guide = Global(many_sites, MeanField())
        x = torch.zeros(4)
        guide.setup(x)
        one = poutine.trace(guide).get_trace(x).nodes
        with pyro.plate("draws", 5, dim=-2):
            many = poutine.trace(guide).get_trace(x).nodes
        assert one["loc"]["value"].shape == (2,)
        assert many["loc"]["value"].shape == (5, 2)
        assert many["scale"]["value"].shape == (5, 1)
        assert many["share"]["value"].shape == (5, 1, 3)

    def test_runs_under_pyro(self):
        guide = Global(many_sites, FullRank())
        svi = SVI(many_sites, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert all(svi.step(torch.randn(5)) < float("inf") for _ in range(3))


def test_delta_is_a_point():
    q = Delta().over(2)(torch.tensor([1.0, -2.0]))
    assert torch.equal(q.sample(), torch.tensor([1.0, -2.0]))
