"""Pyro programs in the shape of Pyro's own tests and examples, for the contract of `fit` with any program.

Each entry builds a fresh model and guide and names the arguments of one call and the loss for Pyro's SVI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.distributions import constraints
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
    init_to_mean,
)
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex

__all__ = ["PROGRAMS", "Program"]

X = torch.tensor([0.3, -1.2, 0.8, 1.9, 0.1, 2.2])
COUNTS = torch.tensor([1.0, 3.0, 0.0, 2.0, 5.0, 1.0])
FLIPS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
TABLE = torch.linspace(-1.5, 1.5, 18).reshape(6, 3).sin()


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        make: builds (model, guide).
        args: of one call of both.
        loss: makes Pyro's ELBO object.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]]
    args: tuple[Any, ...] = (X,)
    kwargs: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[], Any] = Trace_ELBO


PROGRAMS: list[Program] = []


def program(*args: Any, loss: Callable[[], Any] = Trace_ELBO, **kwargs: Any) -> Callable[..., Any]:
    """Adds the decorated builder to the list."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        PROGRAMS.append(Program(make.__name__, make, args or (X,), kwargs, loss))
        return make

    return add


def normal_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def normal_guide(x):
    m = pyro.param("m", torch.tensor(0.1))
    s = pyro.param("s", torch.tensor(0.7), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(m, s))
    a = pyro.param("a", torch.tensor(0.0))
    b = pyro.param("b", torch.tensor(0.4), constraint=constraints.positive)
    pyro.sample("scale", dist.LogNormal(a, b))


def coin_model(x):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def coin_guide(x):
    a = pyro.param("a", torch.tensor(3.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("p", dist.Beta(a, b))


def regression_model(table, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(table @ w + b, 0.5), obs=y)


def hierarchy_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


# Plain functions and losses.


@program()
def pathwise():
    return normal_model, normal_guide


@program(loss=TraceMeanField_ELBO)
def mean_field_kl():
    return normal_model, normal_guide


@program(loss=lambda: RenyiELBO(alpha=0.5, num_particles=3))
def renyi():
    return normal_model, normal_guide


@program(loss=lambda: RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True))
def importance_weighted():
    return normal_model, normal_guide


@program(loss=lambda: Trace_ELBO(num_particles=4))
def particles():
    return normal_model, normal_guide


@program(loss=lambda: Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1))
def vectorised_particles():
    return normal_model, normal_guide


@program(loss=lambda: TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1))
def tail_adaptive():
    return normal_model, normal_guide


@program(loss=lambda: ReweightedWakeSleep(num_particles=3))
def wake_sleep():
    return normal_model, normal_guide


@program(FLIPS)
def beta_coin():
    return coin_model, coin_guide


@program(FLIPS, loss=TraceGraph_ELBO)
def graph_without_baseline():
    return coin_model, coin_guide


@program(COUNTS)
def gamma_poisson():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(3.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(1.5), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(a, b))

    return model, guide


def _geometric(baseline):
    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        k = pyro.sample("k", dist.Bernoulli(p))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        q = pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("p", dist.Beta(a, 2.0))
        pyro.sample("k", dist.Bernoulli(q), infer={"baseline": baseline} if baseline else {})

    return model, guide


@program()
def score_function():
    return _geometric({})


@program(loss=TraceGraph_ELBO)
def decaying_baseline():
    return _geometric({"use_decaying_avg_baseline": True, "baseline_beta": 0.9})


@program(loss=TraceGraph_ELBO)
def neural_baseline():
    class Net(torch.nn.Linear):
        def forward(self, value):
            return super().forward(value).squeeze(-1)

    net = Net(1, 1)
    return _geometric({"nn_baseline": net, "nn_baseline_input": torch.ones(1)})


# Enumeration.


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def enumerated_mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    return model, AutoNormal(poutine.block(model, hide=["z"]), init_loc_fn=init_to_mean)


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def enumerated_point_mass():
    model, _ = enumerated_mixture()
    return model, AutoDelta(poutine.block(model, hide=["z"]), init_loc_fn=init_to_mean)


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def enumerated_in_the_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    @config_enumerate
    def guide(x):
        q = pyro.param("q", 0.5 * torch.ones(len(x)), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(q))

    return model, guide


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=0))
def hidden_markov():
    @config_enumerate
    def model(x):
        stay = pyro.sample("stay", dist.Beta(3.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            p = torch.stack([stay, 1 - stay], -1)
            table = torch.stack([p, p.flip(-1)], -2)
            z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(table)[..., z, :]))
            pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[..., z], 1.0), obs=x[t])

    return model, AutoNormal(poutine.block(model, expose=["stay", "loc"]))


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def enumerated_series_in_a_plate():
    @config_enumerate
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        table = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        series = x.reshape(2, 3)
        with pyro.plate("series", 2):
            z = torch.tensor(0)
            for t in pyro.markov(range(3)):
                z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(table)[z]))
                pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[..., z], 1.0), obs=series[:, t])

    def guide(x):
        m = pyro.param("m", torch.tensor([-0.5, 0.5]))
        pyro.sample("loc", dist.Normal(m, 0.3).to_event(1))

    return model, guide


@program(TABLE.abs().round().long(), loss=lambda: TraceEnum_ELBO(max_plate_nesting=2))
def topics():
    @config_enumerate
    def model(words):
        with pyro.plate("topics", 2):
            topic = pyro.sample("topic", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("documents", words.shape[0], dim=-1):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", words.shape[1], dim=-2):
                z = pyro.sample("z", dist.Categorical(share))
                pyro.sample("w", dist.Categorical(Vindex(topic)[..., z, :]), obs=words.T)

    return model, AutoNormal(poutine.block(model, expose=["topic", "share"]))


# Effects: subsampling, scale, mask, factor, deterministic, reparametrisation.


@program()
def subsampled_plate():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), subsample_size=3) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))

    return model, guide


@program()
def subsampled_local_latents():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x[index])

    def guide(x):
        m = pyro.param("m", torch.zeros(len(x)))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("h", dist.Normal(m[index], 0.7))

    return model, guide


@program()
def scaled():
    return poutine.scale(normal_model, scale=0.5), poutine.scale(normal_guide, scale=0.5)


@program()
def masked():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model, AutoNormal(model)


@program(X.where(X > 0, torch.nan))
def missing_data_masked():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.nan_to_num())

    return model, AutoNormal(model)


@program(X.where(X > 0, torch.nan))
def missing_data_imputed():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.nan_to_num(), obs_mask=~x.isnan())

    return model, AutoNormal(model)


@program()
def factor():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.factor("penalty", -0.5 * (loc - x).square().sum())

    return model, AutoNormal(model)


@program()
def deterministic():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        twice = pyro.deterministic("twice", 2 * loc)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(twice, 1.0), obs=x)

    return model, AutoNormal(model)


@program()
def reparametrised():
    model = poutine.reparam(hierarchy_model, config={"theta": LocScaleReparam()})
    return model, AutoNormal(model)


@program()
def nested_plates():
    def model(x):
        with pyro.plate("columns", 3, dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x), dim=-2):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x.unsqueeze(-1).expand(-1, 3))

    return model, AutoNormal(model)


@program()
def sequential_plate():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[i])

    return model, AutoNormal(model)


@program()
def conditioned():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(loc, 1.0))

    model = poutine.condition(model, data={"y": torch.tensor(0.7)})
    return model, AutoNormal(model)


@program()
def dependent_support():
    def model(x):
        top = pyro.sample("top", dist.LogNormal(0.5, 0.3))
        u = pyro.sample("u", dist.Uniform(0.0, top))
        pyro.sample("x", dist.Normal(u, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        top = pyro.sample("top", dist.LogNormal(pyro.param("m", torch.tensor(0.4)), 0.2))
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        share = dist.Beta(a, 2.0)
        pyro.sample("u", dist.TransformedDistribution(share, dist.transforms.AffineTransform(0.0, top)))

    return model, guide


@program()
def random_number_of_sites():
    def model(x):
        total, i = torch.zeros(()), 0
        while i < 3 and bool(pyro.sample(f"go_{i}", dist.Bernoulli(0.5))):
            total, i = total + 1.0, i + 1
        pyro.sample("x", dist.Normal(total, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        i = 0
        while i < 3:
            p = pyro.param(f"p_{i}", torch.tensor(0.4), constraint=constraints.unit_interval)
            if not bool(pyro.sample(f"go_{i}", dist.Bernoulli(p))):
                break
            i += 1

    return model, guide


# Modules, nets, parameters.


class Line(PyroModule):
    """Weights as PyroSample, scale as PyroParam."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        self.scale = PyroParam(torch.tensor(0.8), constraint=constraints.positive)

    def forward(self, table, y):
        mean = table @ self.weight
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


@program(TABLE, X)
def pyro_module():
    model = Line()
    return model, AutoNormal(model)


@program(TABLE, X)
def bayesian_net():
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = PyroModule[torch.nn.Linear](3, 4)
            self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
            self.first.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
            self.last = PyroModule[torch.nn.Linear](4, 1)

        def forward(self, table, y):
            mean = self.last(self.first(table).tanh()).squeeze(-1)
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    model = Net()
    return model, AutoDiagonalNormal(model)


@program(TABLE, X)
def lifted_net():
    net = torch.nn.Linear(3, 1)

    def model(table, y):
        prior = {
            "weight": dist.Normal(torch.zeros(1, 3), 1.0).to_event(2),
            "bias": dist.Normal(torch.zeros(1), 1.0).to_event(1),
        }
        lifted = pyro.random_module("net", net, prior)()
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(lifted(table).squeeze(-1), 0.5), obs=y)

    return model, AutoNormal(model)


@program(TABLE)
def autoencoder():
    encoder, decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def model(table):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(table)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=table)

    def guide(table):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(table)):
            loc, log_scale = encoder(table).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@program(TABLE, FLIPS)
def conditional_autoencoder():
    prior, posterior, out = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2), torch.nn.Linear(4, 1)

    def model(table, y):
        pyro.module("prior", prior)
        pyro.module("out", out)
        with pyro.plate("data", len(table)):
            z = pyro.sample("z", dist.Normal(prior(table)[..., :1], 1.0).to_event(1))
            logits = out(torch.cat([table, z], -1)).squeeze(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    def guide(table, y=None):
        pyro.module("posterior", posterior)
        with pyro.plate("data", len(table)):
            loc, log_scale = posterior(torch.cat([table, y.unsqueeze(-1)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@program(TABLE, FLIPS, loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def semi_supervised_autoencoder():
    classify, encode, decode = torch.nn.Linear(3, 2), torch.nn.Linear(5, 2), torch.nn.Linear(3, 3)

    def model(table, y):
        pyro.module("decode", decode)
        with pyro.plate("data", len(table)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
            shape = torch.broadcast_shapes(z.shape[:-1], k.shape[:-1], table.shape[:-1])
            both = torch.cat([z.expand(*shape, 1), k.expand(*shape, 2)], -1)
            pyro.sample("x", dist.Normal(decode(both), 0.5).to_event(1), obs=table)

    @config_enumerate
    def guide(table, y):
        pyro.module("classify", classify)
        pyro.module("encode", encode)
        with pyro.plate("data", len(table)):
            k = pyro.sample("k", dist.OneHotCategorical(logits=classify(table)))
            shape = torch.broadcast_shapes(k.shape[:-1], table.shape[:-1])
            both = torch.cat([table.expand(*shape, 3), k.expand(*shape, 2)], -1)
            loc, log_scale = encode(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@program(TABLE.unsqueeze(1))
def deep_markov():
    step, emit, combine = torch.nn.Linear(2, 2), torch.nn.Linear(2, 3), torch.nn.Linear(5, 4)

    def model(series):
        pyro.module("step", step)
        pyro.module("emit", emit)
        z = torch.zeros(series.shape[1], 2)
        with pyro.plate("data", series.shape[1]):
            for t in pyro.markov(range(len(series))):
                z = pyro.sample(f"z_{t}", dist.Normal(step(z).tanh(), 1.0).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(emit(z), 1.0).to_event(1), obs=series[t])

    def guide(series):
        pyro.module("combine", combine)
        z = torch.zeros(series.shape[1], 2)
        with pyro.plate("data", series.shape[1]):
            for t in pyro.markov(range(len(series))):
                loc, log_scale = combine(torch.cat([z, series[t]], -1)).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@program()
def maximum_likelihood():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return model, lambda x: None


@program()
def latent_left_to_its_prior():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        h = pyro.sample("h", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    return model, lambda x: None


@program()
def parameters_by_plate():
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            m = pyro.param("m", torch.zeros(len(x)), event_dim=0)
            pyro.sample("h", dist.Normal(m, 0.7))

    return model, guide


@program(COUNTS)
def simplex_parameter():
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Multinomial(3, p), obs=torch.tensor([1.0, 2.0, 0.0]))

    def guide(x):
        a = pyro.param("a", torch.ones(3), constraint=constraints.positive)
        pyro.sample("p", dist.Dirichlet(a))

    return model, guide


@program({"x": X, "y": FLIPS})
def dict_argument():
    def model(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("x", dist.Normal(loc + data["y"], 1.0), obs=data["x"])

    return model, AutoNormal(model)


@program()
def no_argument_in_the_model():
    def model(*_):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(X)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X)

    return model, AutoNormal(model)


@program(TABLE, X)
def several_arguments():
    return regression_model, AutoMultivariateNormal(regression_model)


@program([X[:2], X[2:]])
def list_argument():
    def model(parts):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        for i, part in enumerate(parts):
            with pyro.plate(f"part_{i}", len(part)):
                pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=part)

    return model, AutoNormal(model)


# Gaussian processes.


@program()
def sparse_regression():
    horseshoe = torch.ones(3)

    def model(x):
        local = pyro.sample("local", dist.HalfCauchy(horseshoe).to_event(1))
        w = pyro.sample("w", dist.Normal(torch.zeros(3), local).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(TABLE @ w, 0.5), obs=x)

    return model, AutoNormal(model)


@program()
def sparse_gaussian_process():
    kernel = gp.kernels.RBF(input_dim=1)
    process = gp.models.VariationalSparseGP(
        X.sort().values, X.sin(), kernel, Xu=torch.tensor([-1.0, 0.5, 2.0]), likelihood=gp.likelihoods.Gaussian(), jitter=1e-4
    )
    return lambda x: process.model(), lambda x: process.guide()


@program()
def sparse_gaussian_process_regression():
    kernel = gp.kernels.RBF(input_dim=1)
    process = gp.models.SparseGPRegression(
        X.sort().values, X.sin(), kernel, Xu=torch.tensor([-1.0, 0.5, 2.0]), noise=torch.tensor(0.2), jitter=1e-4
    )
    return lambda x: process.model(), lambda x: process.guide()


def no_arguments():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(X)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X)

    return model, AutoNormal(model)


PROGRAMS.append(Program("no_arguments", no_arguments, ()))


@program()
def gaussian_process_regression():
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 0.5))
    process = gp.models.GPRegression(X.sort().values, X.sin(), kernel, noise=torch.tensor(0.2), jitter=1e-4)
    return lambda x: process.model(), lambda x: process.guide()


# Autoguides.


def _auto(name, build, loss=Trace_ELBO, model=normal_model):
    PROGRAMS.append(Program(name, lambda: (model, build(model)), (X,), {}, loss))


_auto("auto_delta", AutoDelta)
_auto("auto_normal", AutoNormal)
_auto("auto_normal_of_a_hierarchy", AutoNormal, model=hierarchy_model)
_auto("auto_normal_by_mean_field_kl", AutoNormal, TraceMeanField_ELBO)
_auto("auto_diagonal", AutoDiagonalNormal)
_auto("auto_full_rank", AutoMultivariateNormal)
_auto("auto_low_rank", lambda m: AutoLowRankMultivariateNormal(m, rank=1))
_auto("auto_laplace", AutoLaplaceApproximation)
_auto("auto_iaf", lambda m: AutoIAFNormal(m, hidden_dim=[4], num_transforms=1))
_auto("auto_bnaf", lambda m: AutoNormalizingFlow(m, lambda n: dist.transforms.block_autoregressive(n, hidden_factors=[4])))
_auto("auto_planar_flow", lambda m: AutoNormalizingFlow(m, dist.transforms.planar))
_auto("auto_spline_flow", lambda m: AutoNormalizingFlow(m, lambda n: dist.transforms.Spline(n, count_bins=4)))
_auto("auto_structured", lambda m: AutoStructured(m, conditionals="normal", dependencies="linear"), model=hierarchy_model)
_auto("auto_gaussian", AutoGaussian, model=hierarchy_model)
_auto("auto_messenger", AutoNormalMessenger)
_auto("auto_hierarchical_messenger", AutoHierarchicalNormalMessenger, model=hierarchy_model)


@program()
def guide_list():
    guide = AutoGuideList(normal_model)
    guide.append(AutoDelta(poutine.block(normal_model, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(normal_model, expose=["loc"])))
    return normal_model, guide


@program(loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
def guide_list_with_discrete():
    @config_enumerate
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(loc + 2 * z, 1.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["loc"])))
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["z"])))
    return model, guide


@program()
def easy_guide():
    from pyro.contrib.easyguide import easy_guide as make_easy

    @make_easy(normal_model)
    def guide(self, x):
        group = self.group(match=".*")
        loc = pyro.param("loc_all", torch.zeros(group.event_shape))
        scale = pyro.param("scale_all", 0.5 * torch.ones(group.event_shape), constraint=constraints.positive)
        group.sample("all", dist.Normal(loc, scale).to_event(1))

    return normal_model, guide


@program()
def mixture_prior():
    def model(x):
        parts = dist.Normal(torch.tensor([-1.0, 1.0]), 0.5)
        h = pyro.sample("h", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    def guide(x):
        pyro.sample("h", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.4))

    return model, guide


@program()
def own_generator():
    generator = torch.Generator().manual_seed(0)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        jitter = 1e-3 * torch.randn(len(x), generator=generator)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + jitter, 1.0), obs=x)

    return model, AutoNormal(model)


@program()
def empty_parameter():
    def model(x):
        nothing = pyro.param("nothing", torch.zeros(0))
        loc = pyro.sample("loc", dist.Normal(nothing.sum(), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model, AutoNormal(model)


@program(X, scale=torch.tensor(0.7))
def keyword_argument():
    def model(x, scale=1.0):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return model, AutoNormal(model)


@program()
def improper_prior():
    def model(x):
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.4))

    return model, guide


@program()
def local_params():
    """A module whose parameters stay its own."""

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.m = PyroParam(torch.tensor(0.2))
            self.s = PyroParam(torch.tensor(0.6), constraint=constraints.positive)

        def forward(self, x):
            pyro.sample("loc", dist.Normal(self.m, self.s))
            pyro.sample("scale", dist.LogNormal(self.m, self.s))

    return normal_model, Guide()
