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

from inference import fit, fit_many
from inference.engine import Eager, Graph
from inference.objectives import TraceELBO
from inference.programs.isolation import isolated
from inference.programs.validation import check_pair
from inference.stopping import Converged

STEPS = 6
FAULTS = {
    "tail_adaptive": "Pyro does not compute its loss and returns inf, which fit refuses",
}


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
        check_pair(model, guide, program.args, program.kwargs, enumerated=True, undrawn=True)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
        losses = [svi.step(*program.args, **program.kwargs) for _ in range(STEPS)]
        return torch.tensor([loss[0] if isinstance(loss, tuple) else loss for loss in losses], dtype=torch.float64)


def by_fit(program, objective, engine):
    model, guide = built(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        options = {"objective": objective, "engine": engine, "kwargs": program.kwargs}
        done = fit(model, guide, program.args, steps=STEPS, lr=0.02, schedule=None, seed=3, **options)
    return done.nelbo


@pytest.mark.parametrize("program", cases(PROGRAMS, FAULTS))
def test_pyros_losses_take_the_steps_of_svi(program):
    assert torch.equal(by_fit(program, program.loss(), Eager), by_svi(program, program.loss()))


@pytest.mark.parametrize("program", cases(BY_TRACE_ELBO, FAULTS))
def test_our_objective_takes_the_steps_of_svi(program):
    expected = by_svi(program, Trace_ELBO())
    torch.testing.assert_close(by_fit(program, TraceELBO(), Eager), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", cases(BY_TRACE_ELBO, FAULTS))
def test_the_captured_step_takes_the_steps_of_svi(program):
    expected = by_svi(program, Trace_ELBO())
    torch.testing.assert_close(by_fit(program, TraceELBO(), Graph), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["local_params", "pyro_module", "auto_normal", "bayesian_net", "autoencoder"])
def test_parameters_may_stay_with_their_modules(name):
    """pyro.settings.set(module_local_params=True), as Pyro recommends for new programs."""
    (program,) = (p for p in PROGRAMS if p.name == name)
    expected = by_fit(program, TraceELBO(), Eager)
    with pyro.settings.context(module_local_params=True):
        assert torch.equal(by_fit(program, TraceELBO(), Eager), expected)


def random_length():
    (program,) = (p for p in PROGRAMS if p.name == "random_number_of_sites")
    return built(program)


class TestParametersMetLater:
    def test_by_the_default_rule(self):
        done = fit(*random_length(), torch.tensor([0.5]), stop=Converged(most=200))
        assert len(done.params["params"]) == 3
        assert done.nelbo.isfinite().all()

    @pytest.mark.parametrize("optimiser", ["groups", "pyro"])
    def test_each_is_stepped_once(self, optimiser):
        """The steps of Pyro's SVI, which has an optimiser for each parameter."""
        rates = {"p_0": 0.05, "p_1": 0.1, "p_2": 0.02}

        def groups(parameters, lr):
            return torch.optim.SGD([{"params": [p], "lr": 0.05} for p in parameters], lr=lr)

        def by_name(name):
            return {"lr": rates[name]}

        given, svis = (
            (groups, pyro.optim.SGD({"lr": 0.05}))
            if optimiser == "groups"
            else (pyro.optim.SGD(by_name), pyro.optim.SGD(by_name))
        )
        x = torch.tensor([0.5])
        done = fit(*random_length(), x, steps=30, schedule=None, optimiser=given, seed=3, objective=Trace_ELBO())
        model, guide = random_length()
        with isolated(3), pyro.validation_enabled(False):
            check_pair(model, guide, (x,), {})
            svi = SVI(model, guide, svis, Trace_ELBO())
            losses = torch.tensor([svi.step(x) for _ in range(30)], dtype=torch.float64)
            ends = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
        assert torch.equal(done.nelbo, losses)
        assert all(torch.equal(done.params["params"][name], ends[name]) for name in ends)


class TestPyrosOptimisers:
    def test_the_settings_of_each_parameter(self):
        (program,) = (p for p in PROGRAMS if p.name == "pathwise")
        rates = {"m": 0.1, "s": 0.01, "a": 0.05, "b": 0.02}
        model, guide = built(program)
        adam = pyro.optim.ClippedAdam(lambda name: {"lr": rates[name], "clip_norm": 1.0})
        done = fit(model, guide, program.args, steps=STEPS, schedule=None, optimiser=adam, objective=Trace_ELBO(), seed=3)
        with isolated(3), pyro.validation_enabled(False):
            check_pair(model, guide, program.args, {})
            svi = SVI(model, guide, pyro.optim.ClippedAdam(lambda name: {"lr": rates[name], "clip_norm": 1.0}), Trace_ELBO())
            losses = torch.tensor([svi.step(*program.args) for _ in range(STEPS)], dtype=torch.float64)
        assert torch.equal(done.nelbo, losses)

    @pytest.mark.parametrize(
        ("optimiser", "options", "error", "match"),
        [
            (
                pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {}, "gamma": 0.9}),
                {},
                TypeError,
                "schedule=",
            ),
            (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), {}, ValueError, "ClippedAdam"),
            (pyro.optim.Adam({"lr": 0.1}), {"lr": 0.1}, ValueError, "both given"),
        ],
        ids=["scheduler", "clip_args", "lr"],
    )
    def test_what_fit_does_not_carry_out_is_refused(self, optimiser, options, error, match):
        (program,) = (p for p in PROGRAMS if p.name == "pathwise")
        with pytest.raises(error, match=match):
            fit(*built(program), program.args, steps=2, optimiser=optimiser, **options)

    def test_a_rule_keeps_the_ratio_of_two_rates(self):
        (program,) = (p for p in PROGRAMS if p.name == "pathwise")
        seen = []

        def groups(parameters, lr):
            return (
                seen.append(torch.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1 * lr}], lr=lr))
                or seen[-1]
            )

        fit(*built(program), program.args, lr=0.1, stop=Converged(tolerance=0.1, most=3000), optimiser=groups)
        rates = [group["lr"] for group in seen[-1].param_groups]
        assert rates[0] < 0.1
        assert rates[1] == pytest.approx(0.1 * rates[0])


class TestKeywords:
    def test_fit_many_takes_them(self):
        (program,) = (p for p in PROGRAMS if p.name == "keyword_argument")
        pairs = [built(program) for _ in range(2)]
        options = {"steps": STEPS, "lr": 0.02, "kwargs": program.kwargs}
        together = fit_many(pairs, program.args, seeds=[3, 4], **options)
        alone = [fit(*built(program), program.args, seed=seed, **options) for seed in (3, 4)]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.nelbo, other.nelbo, rtol=1e-5, atol=1e-5)

    def test_what_cannot_be_handed_on_is_refused(self):
        (program,) = (p for p in PROGRAMS if p.name == "keyword_argument")
        with pytest.raises(TypeError, match="kwargs must be"):
            fit(*built(program), program.args, steps=2, kwargs=3)
        with pytest.raises(ValueError, match="a row for each datum"):
            fit(*built(program), program.args, steps=2, batch_size=2, kwargs={"scale": torch.ones(6)})


def test_a_latent_left_to_its_prior_is_named():
    (program,) = (p for p in PROGRAMS if p.name == "latent_left_to_its_prior")
    with pytest.warns(UserWarning, match=r"leaves \['h'\] to the prior"):
        fit(*built(program), program.args, steps=2)
