"""Long runs of NUTS: they agree with exact posteriors, are refused unless converged, and are kept on disk."""

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from unittest.mock import Mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import demo

from inference import NotConvergedError, reference
from inference.nuts import Chains, numpyro_nuts, nutpie_nuts, pyro_nuts
from inference.programs.log_joint import LogJoint
from models import EightSchools, GaussianMean, LinearRegression, NormalGamma, Ring

module = import_module("inference.nuts.long_run")
needs_numpyro = pytest.mark.skipif(find_spec("numpyro") is None, reason="NumPyro is not installed: pip install .[bench]")
needs_nutpie = pytest.mark.skipif(find_spec("nutpie") is None, reason="nutpie is not installed: pip install .[bench]")
SAMPLERS = [
    pyro_nuts,
    pytest.param(numpyro_nuts, marks=needs_numpyro),
    pytest.param(nutpie_nuts, marks=needs_nutpie),
]
SHORT = {"chains": 2, "draws": 600, "warmup": 200}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model_class", [LinearRegression, NormalGamma])
def test_agrees_with_exact_posteriors(model_class, sampler):
    model, x = demo(model_class)
    before = torch.get_rng_state()
    run = reference(model, x, **SHORT, sampler=sampler)
    assert torch.equal(before, torch.get_rng_state())
    exact = model.posterior(x)
    flat = run.draws.flatten(0, 1)
    error = (flat.mean(0) - exact.mean) / (flat.std(0) / run.ess**0.5)
    assert error.abs().max() < 5
    assert run.rhat.max() <= 1.01
    assert run.draws.shape == (2, 600, len(exact.mean))
    assert "chains=2" in run.about["command"]
    assert sampler.__name__ in run.about["command"]
    assert ("numpyro" in run.about["versions"]) == (sampler is numpyro_nuts)
    assert ("nutpie" in run.about["versions"]) == (sampler is nutpie_nuts)


@pytest.mark.slow
@needs_numpyro
def test_numpyro_is_the_default_if_it_is_installed():
    model, x = demo(GaussianMean)
    run = reference(model, x, draws=600, warmup=150)
    assert "numpyro_nuts" in run.about["command"]
    exact, (mean, sd) = model.posterior(x), run.moments()
    error = (torch.tensor(list(mean.values())) - exact.mean) / (torch.tensor(list(sd.values())) / run.ess**0.5)
    assert error.abs().max() < 5
    assert (error + 0.5 * run.ess**0.5).abs().min() > 5


def test_numpyros_potential_has_the_right_value_and_gradient():
    """Both come from a callback, for all chains at once."""
    jax = pytest.importorskip("jax")
    from inference.nuts.by_numpyro import double_precision, vectorised_potential

    joint = LogJoint(*demo(EightSchools))
    u = torch.randn(3, joint.dim, dtype=torch.float64)
    with double_precision(jax), joint.evaluated():
        potential = vectorised_potential(jax, joint)
        value, score = jax.vmap(jax.value_and_grad(potential))(jax.numpy.asarray(u.numpy()))
    assert torch.allclose(torch.tensor(np.array(value)), -joint(u), atol=1e-10)
    assert torch.allclose(torch.tensor(np.array(score)), -joint.score(u), atol=1e-10)


def test_the_cache_is_used_and_a_damaged_file_or_any_change_means_a_new_run(tmp_path, monkeypatch):
    model, x = demo(LinearRegression)
    posterior = model.posterior(x)

    def sampler(_, length):
        return Chains(posterior.sample((length.chains, length.draws)), 0)

    monkeypatch.setattr(module, "best_sampler", lambda: sampler)
    first = reference(model, x, **SHORT, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    refused = Mock(side_effect=AssertionError("a new run"), __name__="sampler")
    monkeypatch.setattr(module, "best_sampler", lambda: refused)
    again = reference(model, x, **SHORT, cache=tmp_path)
    assert torch.equal(first.draws, again.draws)
    assert again.about == first.about
    for change in (
        lambda: reference(model, x + 1, **SHORT, cache=tmp_path),
        lambda: reference(model, x, **{**SHORT, "draws": 601}, cache=tmp_path),
        lambda: reference(LinearRegression(model.covariates, prior_scale=2.0, noise_scale=0.8), x, **SHORT, cache=tmp_path),
        lambda: (file.write_bytes(file.read_bytes()[:200]), reference(model, x, **SHORT, cache=tmp_path)),
    ):
        with pytest.raises(RuntimeError, match="a new run"):
            change()


X = torch.tensor([0.3, -0.2, 1.1, 0.4], dtype=torch.float64)
PRIOR_MEAN = torch.tensor(0.0, dtype=torch.float64)
SETTINGS = {"sd": 1.0}


def plain(x, sd=1.0):
    h = pyro.sample("h", dist.Normal(PRIOR_MEAN, SETTINGS["sd"]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(h, sd), obs=x)


class Holder(torch.nn.Module):
    """A model with numbers where no parameter or buffer is."""

    def __init__(self, sd, kept=None):
        super().__init__()
        self.options = {"sd": [sd]}
        self.kept = kept

    def forward(self, x):
        plain(x, sd=self.options["sd"][0])


def closed(sd):
    return lambda x: plain(x, sd=sd)


def numpys(sd):
    noise = np.array([sd])
    return lambda x: plain(x, sd=torch.from_numpy(noise))


def by_default(sd):
    def model(x, sd=sd):
        plain(x, sd=sd)

    return model


def sites_named(name):
    def model(x):
        h = pyro.sample(name, dist.Normal(PRIOR_MEAN, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    return model


class Counted:
    """A model that counts its calls, and does something else in each."""

    __name__ = "model"

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        plain(x, sd=1.0 + self.calls)


def branching(x):
    h = pyro.sample("h", dist.Normal(PRIOR_MEAN, 1.0))
    pyro.sample("x", dist.Normal(h if h > 0 else -h, 1.0).expand([len(x)]).to_event(1), obs=x)


def noisy(x):
    plain(x, sd=1.0 + torch.rand(()))


SOURCES = [
    closed,
    numpys,
    Holder,
    pytest.param(by_default, marks=pytest.mark.slow),
    pytest.param(lambda sd: partial(plain, sd=sd), id="partial", marks=pytest.mark.slow),
]


class TestTheCacheKnowsThePosterior:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        """Runs a model and says whether the sampler was called."""
        runs = []

        def sampler(joint, length):
            runs.append(joint)
            return Chains(torch.randn(length.chains, length.draws, joint.dim, dtype=torch.float64), 0)

        monkeypatch.setattr(module, "best_sampler", lambda: sampler)

        def once(model, x=X):
            before = len(runs)
            reference(model, x, **SHORT, cache=tmp_path)
            return len(runs) > before

        return once

    @pytest.mark.parametrize("make", SOURCES)
    def test_a_number_wherever_it_is_kept(self, run, make):
        assert run(make(1.5))
        assert not run(make(1.5))
        assert run(make(1.6))

    def test_a_global_and_what_it_holds(self, run, monkeypatch):
        assert run(plain)
        assert not run(plain)
        monkeypatch.setitem(SETTINGS, "sd", 2.0)
        assert run(plain)
        monkeypatch.setitem(globals(), "PRIOR_MEAN", PRIOR_MEAN + 1)
        assert run(plain)

    def test_data_of_another_shape_or_dtype(self, run):
        assert run(lambda x: plain(x.reshape(-1)))
        assert run(lambda x: plain(x.reshape(-1)), X.reshape(2, 2).mT.contiguous())
        assert run(lambda x: plain(x.double()), X.float())
        assert run(lambda x: plain(x.double()), X.float().double())
        zeros = torch.zeros(2, dtype=torch.float64)
        assert run(plain, zeros)
        assert run(plain, torch.zeros(4, dtype=torch.float64))

    def test_names_of_sites_and_quantities(self, run):
        assert run(sites_named("a"))
        assert run(sites_named("b"))

        class Doubled(LinearRegression):
            def quantities(self, h):
                return {"h": 2 * h["h"]}

        class Renamed(LinearRegression):
            def quantities(self, h):
                return {"weights": h["h"]}

        x = demo(LinearRegression)[1]
        for model_class in (LinearRegression, Doubled, Renamed):
            model_class.__name__ = "Model"
            try:
                assert run(demo(model_class)[0], x)
            finally:
                LinearRegression.__name__ = "LinearRegression"

    @pytest.mark.parametrize(
        ("model", "reason"), [(Counted(), "differs from call"), (branching, "recorded"), (noisy, "random numbers")]
    )
    def test_what_is_no_fixed_sequence_of_operations_is_not_kept(self, run, model, reason, tmp_path):
        for _ in range(2):
            with pytest.warns(UserWarning, match=f"is used and this one is not kept, because .*{reason}"):
                assert run(model)
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_chains_that_disagree_are_no_reference():
    model, x = demo(Ring)
    with pytest.raises(NotConvergedError, match=r"h\[[12]\] has R̂ ="):
        reference(model, x, chains=2, draws=100, warmup=50, sampler=pyro_nuts)


def test_bad_input():
    model, x = demo(LinearRegression)
    with pytest.raises(ValueError, match="chains must be at least 2"):
        reference(model, x, chains=1)
    x[3] = torch.nan
    with pytest.raises(ValueError, match="row 3"):
        reference(model, x)
