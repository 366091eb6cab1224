"""Any Pyro program: a fit takes the steps of Pyro's SVI for the programs of tests/programs.py.

Programs in `FAULTS` do not yet; each is expected to fail, and the test fails once it no longer does.
"""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch
from programs import PROGRAMS
from pyro.infer import SVI, Trace_ELBO

from inference import fit
from inference.engine import Eager, Graph
from inference.objectives import TraceELBO
from inference.programs.isolation import isolated
from inference.programs.validation import check_pair

STEPS = 6
FAULTS = {
    "tail_adaptive": "Pyro does not compute its loss and returns inf, which fit refuses",
    "wake_sleep": "its loss is a tuple",
    "maximum_likelihood": "a model without a latent is refused",
    "latent_left_to_its_prior": "a guide that draws less than the model is refused",
    "keyword_argument": "fit takes no keyword arguments of the model",
}
OUR_FAULTS = FAULTS | {"own_generator": "a generator among the captured operations raises"}


def cases(programs, faults):
    marks = {name: pytest.mark.xfail(strict=True, reason=reason) for name, reason in faults.items()}
    return [pytest.param(p, id=p.name, marks=[marks[p.name]] if p.name in marks else []) for p in programs]


BY_TRACE_ELBO = [p for p in PROGRAMS if p.loss is Trace_ELBO]


def built(program):
    with isolated(0):
        return program.make()


def by_svi(program, loss):
    """The losses of Pyro's SVI, from the random state that a fit begins with."""
    model, guide = built(program)
    with isolated(3), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        check_pair(model, guide, program.args, program.kwargs, enumerated=True)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
        return torch.tensor([svi.step(*program.args, **program.kwargs) for _ in range(STEPS)], dtype=torch.float64)


def by_fit(program, objective, engine):
    assert not program.kwargs, "fit takes none"
    model, guide = built(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        done = fit(model, guide, program.args, steps=STEPS, lr=0.02, schedule=None, objective=objective, engine=engine, seed=3)
    return done.nelbo


@pytest.mark.parametrize("program", cases(PROGRAMS, FAULTS))
def test_pyros_losses_take_the_steps_of_svi(program):
    assert torch.equal(by_fit(program, program.loss(), Eager), by_svi(program, program.loss()))


@pytest.mark.parametrize("program", cases(BY_TRACE_ELBO, FAULTS))
def test_our_objective_takes_the_steps_of_svi(program):
    expected = by_svi(program, Trace_ELBO())
    torch.testing.assert_close(by_fit(program, TraceELBO(), Eager), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", cases(BY_TRACE_ELBO, OUR_FAULTS))
def test_the_captured_step_takes_the_steps_of_svi(program):
    expected = by_svi(program, Trace_ELBO())
    torch.testing.assert_close(by_fit(program, TraceELBO(), Graph), expected, rtol=1e-4, atol=1e-4)
