"""Models with a net between h and x: linear nets against probabilistic PCA, binary latents against sums over states."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest
import torch
from problems import demo
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from guides import MLP, Amortized, Bernoulli, Conv, Linear, Local, MeanField, Posterior
from inference import analytic_elbo, elbo, evidence_minus_kl, fit, gaps, iwae
from inference.objectives import AnalyticELBO, ScoreFunction
from models import VAE, BinaryVAE, LinearVAE, LocalGaussian, ProbabilisticPCA, datasets, decoders, images, observations
from models.states import States, all_states

EXACT = {"atol": 1e-10, "rtol": 0.0}
OBSERVATIONS = [
    o for o in (getattr(observations, name) for name in observations.__all__) if not inspect.isabstract(o)
]  # fmt: skip


@pytest.fixture
def digits():
    return datasets.digits().x.double()


class TestLinearVAE:
    def test_is_probabilistic_pca(self):
        model, x = demo(LinearVAE)
        weight = next(iter(model.decoder.parameters()))
        twin = ProbabilisticPCA(weight.detach(), model.offset.detach(), model.observation.scale.detach())
        torch.testing.assert_close(model.log_evidence(x).detach(), twin.log_evidence(x), **EXACT)
        torch.testing.assert_close(model.posterior(x).mean.detach(), twin.posterior(x).mean, **EXACT)

    @pytest.mark.slow
    def test_svi_reaches_the_closed_form_from_random_weights(self, digits):
        torch.manual_seed(0)
        model, x = LinearVAE.from_dataset(datasets.Dataset("digits", digits))
        best = model.optimum(x).log_evidence(x).mean()
        assert best - model.log_evidence(x).mean() > 10.0
        guide = Amortized(model, MeanField(scale=1.0), Linear())
        fit(model, guide, x, steps=4000, lr=0.02, batch_size=256, objective=TraceMeanField_ELBO())
        assert 0 <= best - model.log_evidence(x).mean() < 0.05
        x = x[:200]
        found = gaps(model, guide, x, draws=500)
        whole = (model.log_evidence(x) - analytic_elbo(model, guide.q(x), x)).detach().mean()
        parts = sum(part.mean for part in found.parts.values())
        assert abs(parts - whole) < 3 * found.elbo.mean_se
        assert not found.failed

    def test_too_many_latents(self):
        with pytest.raises(ValueError, match="6 latents for x_i with 6 entries"):
            LinearVAE(6, 6)


class TestBinaryVAE:
    def test_evidence_is_the_sum_over_states_written_out(self):
        model, x = demo(BinaryVAE)
        total = torch.zeros(2, dtype=x.dtype)
        for state in range(8):
            h = torch.tensor([state & 1, state >> 1 & 1, state >> 2 & 1], dtype=x.dtype).expand(2, 3)
            trace = poutine.trace(poutine.condition(model, {"h": h})).get_trace(x[:2])
            trace.compute_log_prob()
            total += (trace.nodes["h"]["log_prob"] + trace.nodes["x"]["log_prob"]).exp().detach()
        torch.testing.assert_close(model.log_evidence(x[:2]).detach(), total.log(), **EXACT)

    def test_both_routes_to_the_elbo_agree(self):
        model, x = demo(BinaryVAE)
        guide = Local(model, Bernoulli())
        guide.setup(x)
        guide.table.data = torch.randn(guide.table.shape, dtype=x.dtype)
        q = guide.q(x)
        torch.testing.assert_close(analytic_elbo(model, q, x), evidence_minus_kl(model, q, x), **EXACT)
        assert (model.log_evidence(x) - analytic_elbo(model, q, x) > 1e-4).all()
        posterior = model.posterior(x)
        torch.testing.assert_close(analytic_elbo(model, posterior, x), model.log_evidence(x), **EXACT)

    def test_a_q_that_is_not_over_its_states_is_refused(self):
        model, x = demo(BinaryVAE)
        zeros = torch.zeros(len(x), 3, dtype=x.dtype)
        with pytest.raises(TypeError, match="BinaryVAE: q must be over zeros and ones"):
            model.expected_log_likelihood(torch.distributions.Independent(torch.distributions.Normal(zeros, 1.0), 1), x)
        short = torch.distributions.Independent(torch.distributions.Bernoulli(logits=zeros[:, :2]), 1)
        with pytest.raises(ValueError, match=r"q is over vectors of shape \(2,\), but h has shape \(3,\)"):
            model.expected_log_likelihood(short, x)

    @pytest.mark.slow
    def test_enumeration_score_function_and_iwae_agree(self):
        """Both objectives fit the pair to the same ELBO, and IWAE estimates the enumerated evidence."""
        reached = {}
        for objective in (AnalyticELBO(), ScoreFunction(8)):
            model, x = demo(BinaryVAE)
            guide = Local(model, Bernoulli())
            guide.setup(x)
            start = analytic_elbo(model, guide.q(x), x).sum().item()
            _climb(model, guide, x, objective, steps=500)
            reached[type(objective)] = analytic_elbo(model, guide.q(x), x).sum().item()
            assert reached[type(objective)] - start > 1.0
            found = iwae(model, guide, x)
            assert ((found.value - model.log_evidence(x).detach()).abs() < 5 * found.se + 1e-9).all()
        exact, score = reached.values()
        assert abs(exact - score) < 0.01 * len(x)

    @pytest.mark.slow
    @pytest.mark.parametrize("draws", [2, 8])
    def test_score_function_is_unbiased_and_its_baseline_helps(self, draws):
        """The mean gradient is the enumerated gradient; without the baseline its variance is larger."""
        model, x = demo(BinaryVAE)
        guide = Local(model, Bernoulli())
        guide.setup(x)
        parameters = [guide.table, *model.parameters()]

        def flat(loss):
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

        exact = flat(AnalyticELBO()(model, guide, (x,), {}).surrogate)
        found = torch.stack([flat(ScoreFunction(draws)(model, guide, (x,), {}).surrogate) for _ in range(300)])
        plain = torch.stack([flat(_without_baseline(model, guide, x, draws)) for _ in range(300)])
        for estimates in (found, plain):
            z = (estimates.mean(0) - exact) / (estimates.std(0) / 300**0.5 + 1e-12)
            assert z.abs().max() < 5
        table = guide.table.numel()
        assert found[:, :table].var(0).sum() < 0.5 * plain[:, :table].var(0).sum()
        assert ((found.mean(0) - 1.3 * exact) / (found.std(0) / 300**0.5 + 1e-12)).abs().max() > 5

    def test_the_posterior_as_guide_trains_on_the_evidence(self):
        model, x = demo(BinaryVAE)
        before = model.log_evidence(x).sum().item()
        fit(model, Posterior(model), x, steps=50, lr=0.05, objective=AnalyticELBO())
        assert model.log_evidence(x).sum().item() > before + 1.0

    def test_states(self):
        logits = torch.randn(4, 8, dtype=torch.float64)
        q = States(logits)
        states = all_states(3, like=logits)
        torch.testing.assert_close(q.log_prob(states.unsqueeze(1)).exp().sum(0), torch.ones(4, dtype=torch.float64), **EXACT)
        torch.testing.assert_close(q.log_prob(states.unsqueeze(1)).mT, logits.log_softmax(-1), **EXACT)
        h = q.sample((20_000,))
        z = (h.mean(0) - q.mean) / (q.variance / 20_000) ** 0.5
        assert z.abs().max() < 5

    def test_too_many_states(self):
        model = BinaryVAE((4,), 17)
        with pytest.raises(ValueError, match="17 latents have too many states"):
            model.log_evidence(torch.zeros(2, 4))

    def test_score_function_needs_a_baseline(self):
        with pytest.raises(ValueError, match="at least 2"):
            ScoreFunction(1)


def _climb(model, guide, x, objective, *, steps):
    """Fits the guide with the model fixed, so that every objective has the same optimum."""
    adam = torch.optim.Adam(guide.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        objective(model, guide, (x,), {}).surrogate.backward()
        adam.step()
        decay.step()


def _without_baseline(model, guide, x, draws):
    q = guide.q(x)
    h = q.sample((draws,))
    log_p, log_q = guide.latents.log_joint(model, h, (x,)), q.log_prob(h)
    return -(((log_p - log_q).detach() * log_q + log_p).mean(0)).sum()


@pytest.mark.parametrize("observation", OBSERVATIONS)
class TestObservation:
    def test_is_a_distribution_of_its_support(self, observation):
        made = observation()
        output = torch.linspace(-1.5, 1.5, 4)
        x = made(output).sample((1000,))
        assert made.support.check(x).all()
        assert made(output).log_prob(x).isfinite().all()

    def test_samples_agree_with_the_density(self, observation):
        """E_q[p(x) / q(x)] = 1 for a p of the same class, close enough to q for a finite variance."""
        made = observation()
        x = made(torch.tensor(0.4)).sample((50_000,))
        q, p, wrong = (made(torch.tensor(value)).log_prob(x) for value in (0.4, 0.45, 0.42))
        z = (((p - q).exp()).mean() - 1) / ((p - q).exp().std() / 50_000**0.5)
        assert abs(z) < 5
        shrunk = (p - 0.95 * wrong).exp()
        assert abs((shrunk.mean() - 1) / (shrunk.std() / 50_000**0.5)) > 5

    def test_offset_has_the_mean(self, observation):
        made = observation()
        mean = torch.tensor([0.2, 0.5, 0.8])
        x = made(made.offset(mean)).sample((20_000,))
        assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / 20_000**0.5 + 0.02).all()

    @pytest.mark.slow
    def test_a_vae_learns_with_it(self, observation):
        made = observation(17) if observation is observations.DiscretisedLogistic else observation()
        x = datasets.digits(binarised=observation is observations.Bernoulli).x[:200].reshape(-1, 8, 8)
        torch.manual_seed(0)
        model = VAE((8, 8), 3, decoder=decoders.Conv((4, 4)), observation=made)
        model.start_at(x)
        done = fit(model, Amortized(model, MeanField(scale=1.0), Conv((4, 4))), x, steps=60, lr=0.01)
        assert done.nelbo[-10:].mean() < done.nelbo[:10].mean()


def test_discretised_logistic_is_a_probability():
    made = observations.DiscretisedLogistic(17, scale=0.05)
    levels = torch.arange(17, dtype=torch.float64) / 16
    for output in (-3.0, 0.2, 0.5, 4.0):
        q = made(torch.tensor(output, dtype=torch.float64))
        torch.testing.assert_close(q.log_prob(levels).exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-6, rtol=0.0)
    parameter = torch.zeros(17, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(parameter).log_prob(levels).sum(), parameter)
    assert gradient.isfinite().all()


def test_gaussian_scale_is_learned_or_fixed():
    assert [n for n, _ in observations.Gaussian(0.3).named_parameters()] == ["raw_scale"]
    fixed = observations.Gaussian(0.3, learned=False)
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed.scale, torch.tensor(0.3))


class TestNets:
    @pytest.mark.parametrize("shape", [(8, 8), (3, 8, 12)])
    @pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
    def test_conv_shapes(self, shape, lead):
        decoder = decoders.Conv((6, 4))(3, shape)
        assert decoder(torch.randn(*lead, 3)).shape == (*lead, *shape)
        encoder = Conv((4, 6))(shape, 7)
        assert encoder(torch.randn(*lead, *shape)).shape == (*lead, 7)

    @pytest.mark.parametrize("spec", [getattr(decoders, name)() for name in decoders.__all__])
    def test_a_vae_of_images_is_scored_in_any_batch(self, spec):
        model = VAE((8, 8), 3, decoder=spec)
        h, x = model.simulate(6, seed=0)
        many = torch.stack([h, h + 1.0])
        with torch.no_grad():
            apart = torch.stack([model.decode(part).log_prob(x) for part in many])
            torch.testing.assert_close(model.decode(many).log_prob(x), apart)

    @pytest.mark.parametrize("spec", [decoders.Conv((4,)), Conv((4,))])
    @pytest.mark.parametrize("shape", [(64,), (7, 8), (1, 2, 8, 8)])
    def test_a_shape_that_conv_cannot_take(self, spec, shape):
        arguments = (3, shape) if isinstance(spec, decoders.Conv) else (shape, 3)
        with pytest.raises(ValueError, match=r"of shape \(.*both sides multiples of 2 for 1 layers"):
            spec(*arguments)

    def test_a_decoder_of_the_wrong_shape(self):
        with pytest.raises(ValueError, match=r"maps one h to shape \(1, 3\), but \(1, \*data_shape\) = \(1, 4\) is needed"):
            VAE((4,), 2, decoder=torch.nn.Linear(2, 3))


def test_elbo_of_a_vae_has_the_closed_form_kl():
    """Kingma & Welling 2013, appendix B: the complexity of a Gaussian q is ½ Σ (loc² + scale² − 1 − log scale²)."""
    model, x = demo(VAE)
    guide = Amortized(model, MeanField(), MLP((5,)))
    guide.setup(x)
    q = guide.q(x).base_dist
    closed = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum()
    found = elbo(model, guide, x, draws=2000).total
    assert abs(found.complexity - closed) < 5 * found.complexity_se
    losses = [[o.loss(model, guide, x) for _ in range(60)] for o in (Trace_ELBO(), TraceMeanField_ELBO())]
    noisy, closed_form = (torch.tensor(values) for values in losses)
    assert abs(noisy.mean() - closed_form.mean()) < 5 * (noisy.var() / 60 + closed_form.var() / 60) ** 0.5


class TestImages:
    @pytest.mark.slow
    def test_dynamic_binarisation_is_new_in_each_step(self):
        grey = datasets.digits().x[:50]
        seen = []

        def transform(x):
            seen.append(images.binarise(x))
            return seen[-1]

        model = VAE((64,), 2)
        fit(model, Amortized(model, MeanField()), grey, steps=4, transform=transform, batch_size=25)
        assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
        model = VAE((64,), 2)
        seen.clear()
        fit(model, Amortized(model, MeanField()), grey, steps=300, transform=transform)
        average = torch.stack(seen).mean(0)
        error = (grey * (1 - grey) / len(seen)).sqrt()
        assert ((average - grey).abs() <= 5 * error + 1e-6).all()

    def test_static_binarisation_is_the_same_for_a_seed(self):
        grey = datasets.digits().x[:50]
        assert torch.equal(images.binarise(grey, seed=1), images.binarise(grey, seed=1))
        assert not torch.equal(images.binarise(grey, seed=1), images.binarise(grey, seed=2))
        with pytest.raises(ValueError, match="range from 0 to 16"):
            images.binarise(16 * grey)

    def test_loaders_read_the_layout_of_the_files(self, tmp_path, monkeypatch):
        pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
        labels = np.array([3, 4], dtype=np.uint8)
        np.savez(tmp_path / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels[:1], y_test=labels[:1])
        np.savez(tmp_path / "orl_faces_64x64.npz", x=np.full((2, 64, 64), 255, dtype=np.uint8), subject=labels)
        monkeypatch.setenv("TAUT_DATA", str(tmp_path))
        train, test, face = images.mnist(), images.mnist(train=False, path=tmp_path / "mnist.npz"), images.faces()
        assert (train.x.shape, test.x.shape, face.x.shape) == ((2, 28, 28), (1, 28, 28), (2, 64, 64))
        assert train.y.tolist() == [3, 4]
        assert face.x.min() == face.x.max() == 1.0
        with pytest.raises(FileNotFoundError, match="elsewhere is not there"):
            images.mnist(path=tmp_path / "elsewhere")

    @pytest.mark.skipif("TAUT_DATA" not in os.environ, reason="TAUT_DATA names no folder with mnist.npz and the faces")
    def test_the_real_files(self):
        train, test, face = images.mnist(), images.mnist(train=False), images.faces()
        assert (len(train.x), len(test.x), len(face.x)) == (60_000, 10_000, 400)
        assert train.y[:5].tolist() == [5, 0, 4, 1, 9]


class TestRange:
    """Errors for pixel values outside the support give the range of the data and a remedy."""

    def test_grey_for_binary(self, digits):
        model = VAE((64,), 2).double()
        with pytest.raises(ValueError, match="range from 0 to 1: draw x as Bernoulli.*binarise"):
            fit(model, Amortized(model, MeanField()), digits, steps=1)

    def test_bytes(self, digits):
        model = VAE((64,), 2, observation=observations.ContinuousBernoulli()).double()
        with pytest.raises(ValueError, match="lies outside the support.*range from 0 to 16: divide by 16"):
            elbo(model, Amortized(model, MeanField()), 16 * digits)

    def test_levels(self, digits):
        model = VAE((64,), 2, observation=observations.DiscretisedLogistic(256)).double()
        with pytest.raises(ValueError, match="multiples of 1/255"):
            model.check_data(digits)
        VAE((64,), 2, observation=observations.DiscretisedLogistic(17)).double().check_data(digits)

    def test_other_models_say_the_range_too(self):
        model, x = LocalGaussian.demo()
        x[3, 1] = torch.inf
        with pytest.raises(ValueError, match="row 3 of x holds inf, which is not finite"):
            model.check_data(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE((4,), 0), "latents must be at least 1"),
        (lambda: VAE((), 2), "data_shape must be positive"),
        (lambda: decoders.MLP((0,)), "hidden must be positive"),
        (lambda: decoders.Conv(()), "channels must be positive, at least one"),
        (lambda: Conv((0,)), "channels must be positive"),
        (lambda: observations.Gaussian(0.0), "scale must be positive and finite"),
        (lambda: observations.DiscretisedLogistic(1), "levels must be at least 2"),
        (lambda: States(torch.zeros(3)), "2\\^k numbers"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
