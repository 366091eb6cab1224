"""Arguments are converted or refused in words of the library's own: rules, and a sample of benchmarks/inputs.py."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from inputs import command_outcomes, function_outcomes, subjects
from pyro.infer.autoguide import AutoNormal

import guides.arguments
import models.arguments
from guides import Blocks, Flow, Global, Local, LowRank, MeanField
from inference import elbo, fit, fit_many, gaps
from inference.cli.names import UsageError, parse_guide, parse_rules
from inference.objectives import TraceELBO
from inference.programs.arguments import checked
from inference.starting import FromDraws
from inference.stopping import Converged, MaxSeconds, MaxSteps, Plateau, When
from models import GaussianMean, LocalGaussian


def pair():
    model = GaussianMean(1)
    return model, Global(model, MeanField())


X = torch.linspace(-1.0, 1.0, 5).unsqueeze(-1)


class TestNumbers:
    @pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16, torch.tensor])
    def test_integers_of_every_kind_are_counts_and_seeds(self, kind):
        done = fit(*pair(), X, steps=kind(3), lr=0.1, seed=kind(7))
        assert done.nelbo.equal(fit(*pair(), X, steps=3, lr=0.1, seed=7).nelbo)
        assert type(done.seed) is int

    @pytest.mark.parametrize("kind", [np.float32, np.float64, np.longdouble, Fraction, torch.tensor])
    def test_reals_of_every_kind_are_rates(self, kind):
        assert fit(*pair(), X, steps=3, lr=kind(0.5)).nelbo.equal(fit(*pair(), X, steps=3, lr=0.5).nelbo)

    @pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63 - 1, np.uint64(2**63)])
    def test_any_seed(self, seed):
        model, guide = pair()
        assert math.isfinite(elbo(model, guide, X, draws=5, seed=seed).value)
        assert fit(model, guide, X, steps=2, lr=0.01, seed=seed).seed == seed
        assert math.isfinite(gaps(model, guide, X, draws=5, seed=seed).elbo.mean)

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, np.True_, "1", None, math.nan, torch.tensor(1.0)])
    def test_no_other_seed(self, seed):
        with pytest.raises((TypeError, ValueError), match="elbo: seed must be"):
            elbo(*pair(), X, seed=seed)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1.5, True, "3", None, torch.tensor(3.5)])
    def test_what_would_never_stop_is_no_rule(self, bad):
        with pytest.raises((TypeError, ValueError), match="MaxSteps: steps"):
            MaxSteps(bad)
        with pytest.raises((TypeError, ValueError), match="When: every"):
            When(lambda run: None, every=bad)
        with pytest.raises((TypeError, ValueError), match="Plateau: least"):
            Plateau(least=bad)
        with pytest.raises((TypeError, ValueError), match="fit_many: steps"):
            fit_many([pair()], X, seeds=[0], steps="a" if bad is None else bad)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, True, "3", 1j])
    def test_rates_and_tolerances_are_finite(self, bad):
        for make in (lambda: MaxSeconds(bad), lambda: Converged(tolerance=bad), lambda: MeanField(scale=bad)):
            with pytest.raises((TypeError, ValueError), match="seconds|tolerance|scale"):
                make()
        with pytest.raises((TypeError, ValueError), match="fit: lr must be"):
            fit(*pair(), X, steps=2, lr=bad)

    def test_sizes(self):
        assert GaussianMean(np.int64(2)).prior_loc.shape == (2,)
        assert LowRank(np.int32(2)).rank == 2
        for make in (
            lambda: GaussianMean(0), lambda: GaussianMean(1.5), lambda: LowRank(1.5), lambda: LowRank(True),
            lambda: Blocks(2, 0.5),
            lambda: Flow(hidden="8"), lambda: GaussianMean(1).simulate(1.5, seed=0), lambda: TraceELBO(np.float64(2.0)),
        ):  # fmt: skip
            with pytest.raises((TypeError, ValueError), match="must be"):
                make()

    @pytest.mark.parametrize("value", [np.int8(3), 3, np.uint64(3), 0, -1, 1.5, True, np.True_, "3", None, 10**30, math.nan])
    def test_guides_and_models_take_the_same_counts(self, value):
        def outcome(count):
            try:
                return count("k", value)
            except (TypeError, ValueError) as error:
                return type(error)

        assert outcome(guides.arguments.count) == outcome(models.arguments.count)


class TestData:
    @pytest.mark.parametrize("made", [np.asarray, torch.Tensor.tolist, lambda x: x.double().numpy(), lambda x: (x.numpy(),)])
    def test_arrays_and_lists_become_tensors_of_the_models_dtype(self, made):
        model, guide = pair()
        fitted = fit(model, guide, X, steps=2, lr=0.01)
        assert elbo(model, fitted.guide, made(X), draws=5).value == elbo(model, fitted.guide, X, draws=5).value

    def test_a_double_model_gets_the_digits_of_a_list(self):
        model = GaussianMean(1).double()
        x = [[1.0 + 1e-12]]
        exact = torch.tensor(x, dtype=torch.float64)
        assert (
            elbo(model, guides.Posterior(model), x, draws=2).value
            == elbo(model, guides.Posterior(model), exact, draws=2).value
        )

    def test_a_plain_program_keeps_its_integers(self):
        seen = []

        def model(x):
            seen.append(x.dtype)
            h = pyro.sample("h", dist.Gamma(1.0, 1.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Poisson(h), obs=x)

        fit(model, AutoNormal(model), np.arange(4), steps=1)
        assert set(seen) == {torch.int64}

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            (X > 0, "booleans"), (X.numpy() > 0, "real numbers"), (X.to(torch.complex64), "complex"),
            (X.to_sparse(), "sparse"), (X.to("meta"), "no values"), (X.clone().requires_grad_(), "carries a graph"),
            (torch.nn.Parameter(X), "graph"),
            ([[1.0], [2.0, 3.0]], "rows of one length"), (np.array(["a"]), "real numbers"),
            ("data.csv", "tensor"), (None, "tensor"), (3.0, "tensor"), (np.full((5, 1), 1e300), "beyond torch.float32"),
            ((X, X), "takes one argument"),
            (np.ma.masked_array(X.numpy(), X.numpy() > 0), "masked"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "call", [elbo, lambda *a: fit(*a, steps=1), lambda *a: fit_many([a[:2]], a[2], seeds=[0], steps=1)]
    )
    def test_what_is_no_data(self, call, bad, says):
        with pytest.raises((TypeError, ValueError), match=says):
            call(*pair(), bad)

    def test_a_transform_keeps_the_rows(self):
        with pytest.raises(ValueError, match="transform must return one row for each of the 5 rows"):
            fit(*pair(), X, steps=1, transform=lambda x: x[:-1])

    def test_draws_to_start_from_are_finite(self):
        with pytest.raises(ValueError, match="latents\\['h'\\].*nan"):
            FromDraws({"h": torch.tensor([[math.nan]])})


class TestObjects:
    @pytest.mark.parametrize(
        "name", ["model", "guide", "optimiser", "engine", "objective", "start", "stop", "schedule", "transform"]
    )
    @pytest.mark.parametrize("bad", ["Adam", 3.5, MeanField, MeanField()])
    def test_an_object_of_another_kind_is_named(self, name, bad):
        model, guide = pair()
        options = {"model": model, "guide": guide, "x": X, "steps": 1, name: bad}
        if name in ("model", "guide", "transform", "optimiser", "schedule") and isinstance(bad, MeanField):
            pytest.skip("it can be called, so only the call shows that it is no program")
        if name == "transform" and bad is MeanField:
            pytest.skip("a class that can be called")
        with pytest.raises(TypeError, match=f"fit: {name} must be|each of {name}"):
            fit(**options)

    def test_a_family_and_a_model(self):
        for bad in ("MeanField", None, 3, MeanField):
            with pytest.raises(TypeError, match="family must be a Family"):
                Local(LocalGaussian(1), bad)
            with pytest.raises(TypeError, match="model must be a Pyro program"):
                Global("model" if bad is MeanField else bad, MeanField())

    def test_shared_without_shared_latents(self):
        guide = Local(LocalGaussian(1), MeanField(), shared=MeanField())
        with pytest.raises(ValueError, match="no latents outside the plate 'data'"):
            guide(X)
        with pytest.raises(ValueError, match="leave shared=None"):
            Global(GaussianMean(1), MeanField(), shared=MeanField())

    def test_a_surplus_argument_is_named(self):
        with pytest.raises(TypeError, match="elbo: .* unexpected keyword argument 'draw'; it takes model, guide, x, draws"):
            elbo(*pair(), X, draw=3)

    def test_signature_and_documentation_stay(self):
        @checked
        def function(k: int, *, scale: float = 1.0) -> float:
            """Says what it does."""
            return k * scale

        assert function(np.int64(2), scale=np.float32(0.5)) == 1.0
        assert function.__doc__ == "Says what it does."
        assert function.__name__ == "function"


def test_expressions_at_the_command_line():
    for bad in ("Global(**x)", "Global(*x)", "Global(MeanField, **{})", "()", "\x00", "(" * 500, "Global(LowRank(1.5))"):
        with pytest.raises((UsageError, TypeError), match="cannot read|holds no name|integer|is not a"):
            parse_guide(bad)
    with pytest.raises((UsageError, TypeError), match="steps must be an integer"):
        parse_rules("MaxSteps(2.5)")


def test_every_public_function_is_tried():
    assert len(subjects()) > 80


def test_a_sample_of_generated_calls():
    found = function_outcomes(250, seed=1, only="(?!reference|c2st|compare|trust|fit_many|calibration|drift|fit|.*nuts).*")
    assert [one for one in found if one.kind not in ("right", "refused")] == []


@pytest.mark.parametrize(("count", "seed"), [(8, 1), pytest.param(60, 2, marks=pytest.mark.slow)])
def test_a_sample_of_generated_commands(count, seed):
    found = command_outcomes(count, seed=seed)
    assert [one for one in found if one.kind not in ("right", "refused")] == []
