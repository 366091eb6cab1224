"""Bounds, gaps and unseen data for pairs with shared and local latents, against exact evidences."""

from __future__ import annotations

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import SOURCES
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from test_cli import run

from guides import Amortized, FullRank, Global, Local, MeanField, Prior, SemiAmortized, Structured
from inference import Ascent, ais, ais_reverse, bidirectional, elbo, fit, fit_unseen, gaps, iwae
from models import EightSchools, HierarchicalModel

X = torch.tensor([0.4, -1.1, 2.0, 0.7, 1.5, -0.3], dtype=torch.float64)
GROUP = torch.tensor([0, 0, 1, 2, 2, 2])
SHARED, LOCAL, NOISE = 2.0, 1.0, 0.7
EXACT = {"atol": 1e-9, "rtol": 0.0}


def normals(x):
    """mu ~ Normal(0, SHARED), h_i ~ Normal(mu, LOCAL), x_i ~ Normal(h_i, NOISE)."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), SHARED))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(mu, LOCAL))
        pyro.sample("x", dist.Normal(h, NOISE), obs=x)


def groups(x):
    """mu ~ Normal(0, SHARED), a_g ~ Normal(mu, LOCAL), x_i ~ Normal(a[group_i], NOISE)."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), SHARED))
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.Normal(mu, LOCAL))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a[GROUP], NOISE), obs=x)


class Normals(HierarchicalModel):
    """`normals`, written as a model of this suite."""

    data_shape = ()
    size = len(X)

    def __init__(self):
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=torch.float64))

    def prior(self):
        return {"mu": pyro.sample("mu", dist.Normal(self.zero, SHARED))}

    def local_prior(self, h):
        return {**h, "h": pyro.sample("h", dist.Normal(h["mu"], LOCAL))}

    def likelihood(self, h, x=None, index=None):
        return pyro.sample("x", dist.Normal(h["h"], NOISE), obs=x)

    @classmethod
    def demo(cls, *, seed=0):
        return cls(), X

    from_dataset = None


def log_evidence(x, member):
    """log p(x) of the models above, from the covariance of x. `member` is the group of each datum."""
    same = (member.unsqueeze(-1) == member).double()
    covariance = SHARED**2 + LOCAL**2 * same + NOISE**2 * torch.eye(len(x)).double()
    return torch.distributions.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)


def raw(scale):
    return torch.as_tensor(scale, dtype=torch.float64).expm1().log()


def exact_guide(source, model, x, *, wide=1.0):
    """The posterior of `normals`, where h_i given mu is affine in mu with a constant scale; `wide` times as wide."""
    guide = source(model, MeanField(), torch.nn.Linear(2, 2)) if issubclass(source, Amortized) else source(model, MeanField())
    guide.setup(x)
    variance = 1 / (SHARED**-2 + len(x) / (LOCAL**2 + NOISE**2))
    mean = variance * x.sum() / (LOCAL**2 + NOISE**2)
    weight, scale = LOCAL**2 / (LOCAL**2 + NOISE**2), (LOCAL**-2 + NOISE**-2) ** -0.5
    rest = 1 - weight
    with torch.no_grad():
        guide.shared_lam.copy_(torch.stack([mean, raw(wide * variance**0.5)]))
        if isinstance(guide, Amortized):
            guide.encoder.weight.copy_(torch.tensor([[weight, rest], [0.0, 0.0]], dtype=torch.float64))
            guide.encoder.bias.copy_(torch.stack([torch.tensor(0.0).double(), raw(wide * scale)]) - guide.start)
        else:
            loc = weight * x + rest * mean
            guide.table.copy_(torch.stack([loc, raw(wide * scale).expand(len(x))], -1))
        if isinstance(guide, Structured):
            # The shared draw is standardised by the scale of its q.
            guide.coupling[:, 0, 0] = rest * wide * variance**0.5
    return guide


MODELS = [normals, Normals()]
ALONE = torch.arange(len(X))


@pytest.mark.parametrize("model", MODELS, ids=["plain", "suite"])
@pytest.mark.parametrize("source", [Structured, Amortized])
class TestAtThePosterior:
    """Every weight is p(x), so every bound is log p(x) whatever the draws. A latent that is left out changes it by nats."""

    def test_bounds(self, source, model):
        guide = exact_guide(source, model, X)
        exact = log_evidence(X, ALONE)
        torch.testing.assert_close(iwae(model, guide, X, draws=5).value, exact, **EXACT)
        torch.testing.assert_close(ais(model, guide, X, temperatures=3, chains=3).value, exact, **EXACT)
        h = {"mu": torch.tensor(0.5).double(), "h": X + 0.1}
        torch.testing.assert_close(ais_reverse(model, guide, X, h, temperatures=3, chains=3).value, exact, **EXACT)

    def test_gaps(self, source, model):
        found = gaps(model, exact_guide(source, model, X), X, ascent=Ascent(steps=3), draws=20, evidence_draws=10)
        for part in (found.evidence, found.elbo, *found.parts.values()):
            assert part.value.shape == part.se.shape == ()
        torch.testing.assert_close(found.elbo.value, log_evidence(X, ALONE), **EXACT)
        assert found.parts["approximation"].value.abs() < 0.1
        assert gaps(model, exact_guide(source, model, X), X, ascent=Ascent(steps=1, lr=1e-12), draws=5).failed == {}


def exact_groups():
    """The posterior of `groups`."""
    guide = Structured(groups, MeanField(), plate="groups")
    guide.setup(X)
    count = torch.bincount(GROUP).double()
    total = torch.zeros(3).double().index_add(0, GROUP, X)
    spread = LOCAL**2 + NOISE**2 / count
    variance = 1 / (SHARED**-2 + (1 / spread).sum())
    mean = variance * (total / count / spread).sum()
    precision = LOCAL**-2 + count * NOISE**-2
    slope = LOCAL**-2 / precision
    with torch.no_grad():
        guide.shared_lam.copy_(torch.stack([mean, raw(variance**0.5)]))
        guide.table.copy_(torch.stack([total * NOISE**-2 / precision + slope * mean, raw(precision**-0.5)], -1))
        guide.coupling[:, 0, 0] = slope * variance**0.5
    return guide


LATENT_SOURCES = [s for s in SOURCES if not issubclass(s, SemiAmortized)]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=["plain", "suite"])
@pytest.mark.parametrize("source", [*LATENT_SOURCES, SemiAmortized, AutoNormal, Prior])
def test_every_source_away_from_the_posterior(model, source):
    exact = log_evidence(X, ALONE)
    if source in (AutoNormal, Prior):
        guide = source(model)
    elif source.local:
        guide = exact_guide(source, model, X, wide=1.2)
    else:
        guide = source(model, FullRank())
    if source is AutoNormal or not getattr(source, "local", True):
        guide = fit(model, guide, X, steps=300, lr=0.05).guide
    by_model = isinstance(model, torch.nn.Module)
    found = iwae(model, guide, X, draws=4000 if by_model else 1500)
    assert found.value.shape == ()
    assert abs(found.value - exact) < 5 * found.se < 2.0
    if source is not AutoNormal:
        found = ais(model, guide, X, temperatures=40, leapfrog=3, chains=100)
        assert abs(found.value - exact) < 5 * found.se < 2.0


@pytest.mark.slow
def test_eight_schools():
    """Exact: −31.311347. From the local block alone the bounds were −36.7 and −76."""
    model, x = EightSchools.demo()
    model, x = model.double(), x.double()
    guide = Structured(model, MeanField())
    guide = fit(model, guide, x, steps=800, lr=0.03, seed=1).guide
    exact = model.log_evidence(x)
    lower = ais(model, guide, x, temperatures=60)
    assert abs(lower.value - exact) < 5 * lower.se < 0.5
    assert abs(iwae(model, guide, x).value - exact) < 0.3
    found = gaps(model, guide, x, ascent=Ascent(steps=50), draws=200)
    assert found.evidence_by == "exact"
    torch.testing.assert_close(found.evidence.value, exact)
    assert abs(found.elbo.value - elbo(model, guide, x, draws=2000).value) < 5 * found.elbo.se + 0.1


def test_gaps_without_an_exact_evidence_are_bounded_jointly():
    model = Normals()
    guide = exact_guide(Local, model, X, wide=1.2)
    found = gaps(model, guide, X, ascent=Ascent(steps=20), draws=50, evidence_draws=4000, temperatures=20)
    assert found.evidence_by in {"IWAE, 4000 draws", "AIS, 20 temperatures"}
    assert abs(found.evidence.value - log_evidence(X, ALONE)) < 5 * found.evidence.se + 0.02
    assert found.amortization.value == 0.0
    total = found.elbo.value + sum(part.value for part in found.parts.values())
    torch.testing.assert_close(total, found.evidence.value, **EXACT)


def test_training_the_encoder_further():
    model = Normals()
    guide = Amortized(model, MeanField(), torch.nn.Linear(2, 2))
    found = gaps(model, guide, X, encoder_steps=60, encoder_lr=0.05, ascent=Ascent(steps=20), draws=200)
    assert found.optimisation.value > 5 * found.optimisation.se
    with pytest.raises(ValueError, match="leave out train and batch_size"):
        gaps(model, guide, X, encoder_steps=3, batch_size=2, ascent=Ascent(steps=3))


@pytest.mark.parametrize("model", [pytest.param(MODELS[0], marks=pytest.mark.slow), MODELS[1]], ids=["plain", "suite"])
def test_the_bounds_sandwich_simulated_data(model):
    if isinstance(model, torch.nn.Module):
        both = bidirectional(model, 6, temperatures=40, leapfrog=3)
        exact = log_evidence(both.x, ALONE)
        lower, upper = both.lower, both.upper
    else:
        mu = torch.tensor(1.0).double()
        h = mu + torch.tensor([0.1, -1.0, 0.3, 1.2, -0.2, 0.5]).double()
        x = h + torch.tensor([0.5, -0.3, 0.1, 0.9, -1.0, 0.0]).double()
        exact = log_evidence(x, ALONE)
        lower = ais(model, Prior(model), x, temperatures=40, leapfrog=3)
        upper = ais_reverse(model, Prior(model), x, {"mu": mu, "h": h}, temperatures=40, leapfrog=3)
    assert lower.value.shape == upper.value.shape == ()
    assert lower.value - 5 * lower.se < exact < upper.value + 5 * upper.se
    assert upper.value - lower.value < 1.5


@pytest.mark.parametrize("source", [pytest.param(Local, marks=pytest.mark.slow), Structured, Amortized])
def test_unseen_data(source):
    """The q of the shared latents is fitted too: the ELBO reaches the evidence, and is its family's."""
    model = Normals()
    guide = exact_guide(source, model, X)
    unseen = X.flip(0) + 1.0
    local = fit_unseen(guide, unseen, ascent=Ascent(steps=500, lr=0.05))
    assert isinstance(local, Structured) == (source is not Local)
    found = elbo(model, local, unseen, draws=2000)
    gap = float(log_evidence(unseen, ALONE)) - found.value
    assert -5 * found.se - 0.01 < gap < (0.1 if source is not Local else 1.5)
    torch.testing.assert_close(guide.shared_lam, exact_guide(source, model, X).shared_lam)


class TestGroups:
    """Latents of groups that the data point to, by ``a[group]``."""

    def test_every_bound_is_the_evidence_at_the_posterior(self):
        guide, exact = exact_groups(), log_evidence(X, GROUP)
        torch.testing.assert_close(iwae(groups, guide, X, draws=5).value, exact, **EXACT)
        torch.testing.assert_close(ais(groups, guide, X, temperatures=3, chains=3).value, exact, **EXACT)
        found = gaps(groups, guide, X, ascent=Ascent(steps=1, lr=1e-12), draws=5)
        torch.testing.assert_close(found.elbo.value, exact, **EXACT)
        torch.testing.assert_close(found.evidence.value, exact, **EXACT)

    @pytest.mark.slow
    @pytest.mark.parametrize("source", [Local, Structured, Prior, Global, AutoMultivariateNormal])
    def test_bounds(self, source):
        exact = log_evidence(X, GROUP)
        if source in (Prior, AutoMultivariateNormal):
            guide = source(groups)
        elif source is Global:
            guide = source(groups, FullRank())
        else:
            guide = source(groups, MeanField(), plate="groups")
        if source is not Prior:
            guide = fit(groups, guide, X, steps=300, lr=0.05).guide
        found = iwae(groups, guide, X, draws=1500)
        assert abs(found.value - exact) < 5 * found.se < 1.5
        if source is not AutoMultivariateNormal:
            found = ais(groups, guide, X, temperatures=40, leapfrog=3, chains=100)
            assert found.value.shape == ()
            assert abs(found.value - exact) < 5 * found.se < 2.0

    @pytest.mark.slow
    @pytest.mark.parametrize("source", [Local, Structured])
    def test_gaps_and_unseen_data(self, source):
        guide = source(groups, FullRank(), plate="groups")
        found = gaps(groups, guide, X, ascent=Ascent(steps=300, lr=0.05), draws=300, evidence_draws=2000)
        assert abs(found.evidence.value - log_evidence(X, GROUP)) < 5 * found.evidence.se + 0.05
        assert abs(found.approximation.value) < 5 * found.approximation.se + 1.0
        assert found.optimisation.value > 1.0
        local = fit_unseen(guide, X + 1.0, ascent=Ascent(steps=300, lr=0.05))
        assert log_evidence(X + 1.0, GROUP) - elbo(groups, local, X + 1.0, draws=500).value < 1.5

    @pytest.mark.slow
    def test_minibatches_of_data_draw_all_groups(self):
        def model(x, index=None, size=None):
            mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), SHARED))
            with pyro.plate("groups", 3):
                a = pyro.sample("a", dist.Normal(mu, LOCAL))
            with pyro.plate("data", len(x) if size is None else size, subsample=index):
                pyro.sample("x", dist.Normal(a[GROUP if index is None else GROUP[index]], NOISE), obs=x)

        guide = Structured(model, MeanField(), plate="groups")
        done = fit(model, guide, X, steps=600, lr=0.03, batch_size=2)
        found = elbo(model, done.guide, X, draws=1000)
        assert -5 * found.se < float(log_evidence(X, GROUP)) - found.value < 0.3

    def test_an_encoder_needs_data_in_the_plate(self):
        with pytest.raises(ValueError, match="plate 'groups' holds no data: use Local or Structured"):
            iwae(groups, Amortized(groups, MeanField(), plate="groups"), X)


def test_independence_is_read_off_the_plates():
    """A site outside the plate that ties the data together leaves one number for all of them."""

    def tied(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(h, NOISE), obs=x)
        pyro.sample("total", dist.Normal(h.sum(-1), 1.0), obs=x.new_tensor(0.0))

    covariance = torch.eye(len(X) + 1).double()
    covariance[:-1, :-1] *= 1 + NOISE**2
    covariance[-1, :-1] = covariance[:-1, -1] = 1.0
    covariance[-1, -1] = len(X) + 1.0
    at = torch.cat([X, torch.zeros(1).double()])
    exact = torch.distributions.MultivariateNormal(torch.zeros_like(at), covariance).log_prob(at)
    guide = Local(tied, MeanField(scale=0.6))
    guide.setup(X)
    guide.table.data[:, 0] = X / 2
    for found in (iwae(tied, guide, X, draws=1500), ais(tied, guide, X, temperatures=15, leapfrog=3)):
        assert found.value.shape == ()
        assert abs(found.value - exact) < 5 * found.se < 1.5
    assert gaps(tied, guide, X, ascent=Ascent(steps=20), draws=20).elbo.value.shape == ()


def test_a_model_with_a_constant_for_each_row_is_not_cut():
    """More rows than a block holds, each with a noise of its own that the model looks up."""
    noise = torch.linspace(0.5, 2.0, 150).double()

    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(h, noise), obs=x)

    x = torch.linspace(-2.0, 2.0, 150).double()
    guide = Local(model, MeanField())
    guide.setup(x)
    scale = (1 + noise**-2) ** -0.5
    guide.table.data = torch.stack([x / (1 + noise**2), raw(scale)], -1)
    exact = torch.distributions.Normal(0.0, (1 + noise**2).sqrt()).log_prob(x)
    torch.testing.assert_close(iwae(model, guide, x, draws=3).value, exact, **EXACT)
    torch.testing.assert_close(ais(model, guide, x, temperatures=3, chains=2).value, exact, **EXACT)


@pytest.mark.slow
def test_the_commands_take_all_data_that_share_a_latent(tmp_path):
    """`--rows` does not cut them, and gaps are shares of all data."""
    options = ["--model", "EightSchools", "--rows", 3, "--steps", 300, "--lr", 0.03]
    text = run("evidence", *options, "--guide", "Structured(MeanField)", "--draws", 2000)
    assert "log p(x) of 8 of 8 data" in text
    assert f"{-31.311347 / 8:.4f}" in text
    run("gaps", *options, "--guides", "Structured(MeanField)", "--ascent-steps", 20, "--jobs", 1, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "gaps.csv")
    assert table["data"][0] == 8
    assert abs(table["log p(x)"][0] + 31.311347 / 8) < 1e-4
    assert 0 < table["log p(x)"][0] - table["ELBO"][0] < 0.5
