"""Programs that draw their own minibatch, run on all their rows."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.subsample_messenger import SubsampleMessenger

from inference.programs.isolation import isolated
from inference.programs.whole_data import whole_data

X = torch.arange(10.0, dtype=torch.float64)


def model(x, rows=3):
    with pyro.plate("data", len(x), subsample_size=rows) as index:
        h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(h, 1.0), obs=x[index])


def subsample_of_tensor(x):
    with pyro.plate("data", len(x), subsample_size=3):
        pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=pyro.subsample(x, event_dim=0))


def sequential(x):
    for i in pyro.plate("data", len(x), subsample_size=3):
        pyro.sample(f"x_{i}", dist.Normal(x.new_zeros(()), 1.0), obs=x[i])


def log_joint(program, *args):
    return poutine.trace(program).get_trace(*args).log_prob_sum()


def test_a_plate_holds_all_its_rows_at_scale_1():
    with isolated(0), whole_data():
        trace = poutine.trace(model).get_trace(X)
        assert torch.equal(trace.nodes["data"]["value"], torch.arange(10))
        assert trace.nodes["x"]["value"].shape == trace.nodes["h"]["value"].shape == (10,)
        assert trace.nodes["x"]["scale"] == 1.0


@pytest.mark.parametrize("program", [subsample_of_tensor, sequential])
def test_every_way_to_take_rows(program):
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(X).sum()
    with isolated(0):
        with whole_data():
            torch.testing.assert_close(log_joint(program, X), expected, atol=1e-10, rtol=0.0)
        assert abs(log_joint(program, X) - expected) > 1.0


def test_an_autoguide_fitted_by_subsamples_draws_all_rows():
    with isolated(0):
        guide = AutoNormal(model)
        guide(X)
        with whole_data():
            drawn = poutine.trace(guide).get_trace(X)
            replayed = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(X)
        assert drawn.nodes["h"]["value"].shape == (10,)
        assert replayed.nodes["x"]["scale"] == 1.0
        assert guide(X)["h"].shape == (3,)


def test_given_rows_stay_and_nothing_is_left_changed():
    def given(x):
        with pyro.plate("data", len(x), subsample=torch.tensor([1, 2])) as index:
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x[index])

    before = vars(SubsampleMessenger)["_subsample"]
    with isolated(0), whole_data(), whole_data():
        assert poutine.trace(given).get_trace(X).nodes["x"]["scale"] == 5.0
    with pytest.raises(ZeroDivisionError), whole_data():
        raise ZeroDivisionError
    assert vars(SubsampleMessenger)["_subsample"] is before
